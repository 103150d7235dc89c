package proxy

import (
	"context"
	"errors"
	"io"
	"net"
	"net/netip"
	"syscall"
	"time"
)

// Of RFC 1928.
const (
	socksVersion = 5

	socksNoAuthentication = 0x00
	socksNoMethod         = 0xff

	socksConnect = 1

	socksIPv4, socksName, socksIPv6 = 1, 3, 4

	socksSucceeded           = 0
	socksFailure             = 1
	socksNotAllowed          = 2
	socksNetworkUnreachable  = 3
	socksHostUnreachable     = 4
	socksRefused             = 5
	socksExpired             = 6
	socksCommandNotSupported = 7
	socksAddressNotSupported = 8
)

// serveSOCKS serves one client. Only CONNECT is there: neither BIND, since nobody opens connections to a client of a tunnel, nor UDP.
func (s *Server) serveSOCKS(client Conn) {
	client.SetDeadline(time.Now().Add(s.config.Handshake))
	to, reply, err := readSOCKS(client)
	if err != nil {
		if reply != socksSucceeded {
			answerSOCKS(client, reply)
		}
		s.config.Logger.Debug("a client speaks no SOCKS5 that is served here", "why", Why(err))
		return
	}
	client.SetDeadline(time.Time{})
	there, err := s.dial(s.ctx, to)
	if err != nil {
		client.SetDeadline(time.Now().Add(s.config.Handshake))
		answerSOCKS(client, replyOf(err))
		return
	}
	client.SetWriteDeadline(time.Now().Add(s.config.Handshake))
	if err := answerSOCKS(client, socksSucceeded); err != nil {
		there.Close()
		return
	}
	client.SetWriteDeadline(time.Time{})
	s.join(client, client, there)
}

// readSOCKS reads what a client wants. With an error, reply is what to tell it, socksSucceeded: nothing.
func readSOCKS(client io.ReadWriter) (to Target, reply byte, err error) {
	var b [256]byte
	if _, err := io.ReadFull(client, b[:2]); err != nil {
		return to, 0, err
	}
	if b[0] != socksVersion {
		return to, 0, errors.New("the first byte is not that of SOCKS5")
	}
	methods := b[:b[1]]
	if _, err := io.ReadFull(client, methods); err != nil {
		return to, 0, err
	}
	method := byte(socksNoMethod)
	for _, m := range methods {
		if m == socksNoAuthentication {
			method = m
		}
	}
	if _, err := client.Write([]byte{socksVersion, method}); err != nil {
		return to, 0, err
	}
	if method == socksNoMethod {
		return to, 0, errors.New("the client wants to authenticate, which is not needed here")
	}
	request := b[:4] // version, command, reserved, kind of address
	if _, err := io.ReadFull(client, request); err != nil {
		return to, 0, err
	}
	command := request[1]
	to, reply, err = readTarget(client, request[3])
	if err == nil && command != socksConnect {
		reply, err = socksCommandNotSupported, errors.New("the client asks for UDP or for a port to listen at; only CONNECT is served")
	}
	return to, reply, err
}

// readTarget reads an address of a kind, and a port.
func readTarget(client io.Reader, kind byte) (to Target, reply byte, err error) {
	var b [256]byte
	size := 0
	switch kind {
	case socksIPv4:
		size = 4
	case socksIPv6:
		size = 16
	case socksName:
		if _, err := io.ReadFull(client, b[:1]); err != nil {
			return to, 0, err
		}
		size = int(b[0])
	default:
		return to, socksAddressNotSupported, errors.New("an address of no known kind")
	}
	var port [2]byte
	if _, err := io.ReadFull(client, b[:size]); err != nil {
		return to, 0, err
	}
	if _, err := io.ReadFull(client, port[:]); err != nil {
		return to, 0, err
	}
	to = Target{string(b[:size]), uint16(port[0])<<8 | uint16(port[1])}
	if kind != socksName {
		a, _ := netip.AddrFromSlice(b[:size])
		to.Host = a.Unmap().String()
	}
	if to.Host == "" || to.Port == 0 {
		return to, socksFailure, errors.New("no host or no port is named")
	}
	return to, 0, nil
}

// answerSOCKS ends the handshake. The address that it has to name is none of this machine's.
func answerSOCKS(client net.Conn, reply byte) error {
	_, err := client.Write([]byte{socksVersion, reply, 0, socksIPv4, 0, 0, 0, 0, 0, 0})
	return err
}

// replyOf is the reply that tells a client an error.
func replyOf(err error) byte {
	switch {
	case errors.Is(err, ErrNotRouted):
		return socksNotAllowed
	case errors.Is(err, ErrNoName), errors.Is(err, syscall.EHOSTUNREACH):
		return socksHostUnreachable
	case errors.Is(err, syscall.ENETUNREACH):
		return socksNetworkUnreachable
	case errors.Is(err, syscall.ECONNREFUSED):
		return socksRefused
	case errors.Is(err, context.DeadlineExceeded), errors.Is(err, syscall.ETIMEDOUT):
		return socksExpired
	}
	return socksFailure
}
