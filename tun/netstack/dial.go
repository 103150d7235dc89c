package netstack

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"net"
	"net/netip"
	"syscall"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

// Conn is a connection of which either direction may end before the other.
type Conn interface {
	net.Conn
	CloseWrite() error
}

// A connection whose other end is gone ends after about keepaliveIdle + keepaliveCount * keepaliveInterval, or, with data under way, after
// userTimeout.
const (
	keepaliveIdle     = time.Minute
	keepaliveInterval = 15 * time.Second
	keepaliveCount    = 4
	userTimeout       = 2 * time.Minute
)

// DialTCP connects to an address by the tunnel. Errors are those that package net has too, by errors.Is: syscall.ECONNREFUSED and so on, or
// that of ctx.
func (s *Stack) DialTCP(ctx context.Context, to netip.AddrPort) (Conn, error) {
	failed := func(err error) (Conn, error) {
		return nil, &net.OpError{Op: "dial", Net: "tcp", Addr: net.TCPAddrFromAddrPort(to), Err: err}
	}
	var queue waiter.Queue
	ep, err := s.stack.NewEndpoint(tcp.ProtocolNumber, protocolOf(to.Addr()), &queue)
	if err != nil {
		return failed(errorOf(err))
	}
	keepAlive(ep)
	entry, connected := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	queue.EventRegister(&entry)
	defer queue.EventUnregister(&entry)
	err = ep.Connect(full(to))
	if _, waits := err.(*tcpip.ErrConnectStarted); waits {
		select {
		case <-ctx.Done():
			ep.Abort()
			return failed(ctx.Err())
		case <-connected:
		}
		err = ep.LastError()
	}
	if err != nil {
		ep.Close()
		return failed(errorOf(err))
	}
	return gonet.NewTCPConn(&queue, ep), nil
}

// keepAlive has the endpoint notice that its other end is gone. None of these fails on one that is new.
func keepAlive(ep tcpip.Endpoint) {
	idle, interval := tcpip.KeepaliveIdleOption(keepaliveIdle), tcpip.KeepaliveIntervalOption(keepaliveInterval)
	limit := tcpip.TCPUserTimeoutOption(userTimeout)
	ep.SetSockOpt(&idle)
	ep.SetSockOpt(&interval)
	ep.SetSockOpt(&limit)
	ep.SetSockOptInt(tcpip.KeepaliveCountOption, keepaliveCount)
	ep.SocketOptions().SetKeepAlive(true)
}

// DialUDP returns a socket that sends to an address by the tunnel, and takes answers from there only.
func (s *Stack) DialUDP(to netip.AddrPort) (net.Conn, error) {
	remote := full(to)
	return gonet.DialUDP(s.stack, nil, &remote, protocolOf(to.Addr()))
}

// echoData is how many bytes tell one of our echoes from others.
const echoData = 16

// Echo sends an ICMP echo request to an address by the tunnel, and waits for its answer until ctx ends.
func (s *Stack) Echo(ctx context.Context, to netip.Addr, sequence uint16) (time.Duration, error) {
	transport, request, reply := icmp.ProtocolNumber4, uint8(header.ICMPv4Echo), uint8(header.ICMPv4EchoReply)
	if to.Is6() {
		transport, request, reply = icmp.ProtocolNumber6, uint8(header.ICMPv6EchoRequest), uint8(header.ICMPv6EchoReply)
	}
	var queue waiter.Queue
	ep, err := s.stack.NewEndpoint(transport, protocolOf(to), &queue)
	if err != nil {
		return 0, errorOf(err)
	}
	conn := gonet.NewUDPConn(&queue, ep)
	defer conn.Close()
	if err := ep.Connect(full(netip.AddrPortFrom(to, 0))); err != nil {
		return 0, errorOf(err)
	}
	stop := context.AfterFunc(ctx, func() { conn.SetDeadline(time.Now()) })
	defer stop()
	// Type, code, checksum, identifier, sequence number: the stack sets checksum and identifier (RFC 792; RFC 4443, section 4.1).
	packet := make([]byte, 8+echoData)
	packet[0], packet[6], packet[7] = request, byte(sequence>>8), byte(sequence)
	rand.Read(packet[8:]) // never fails
	began := time.Now()
	if _, err := conn.Write(packet); err != nil {
		return 0, err
	}
	answer := make([]byte, 1500)
	for {
		n, err := conn.Read(answer)
		switch {
		case ctx.Err() != nil:
			return 0, ctx.Err()
		case err != nil:
			return 0, err
		case n == len(packet) && answer[0] == reply && bytes.Equal(answer[6:n], packet[6:]):
			return time.Since(began), nil
		}
	}
}

func full(a netip.AddrPort) tcpip.FullAddress {
	return tcpip.FullAddress{NIC: nic, Addr: tcpip.AddrFromSlice(a.Addr().AsSlice()), Port: a.Port()}
}

// errorOf is the system's error for one of the stack's, where there is one.
func errorOf(err tcpip.Error) error {
	switch err.(type) {
	case *tcpip.ErrConnectionRefused:
		return syscall.ECONNREFUSED
	case *tcpip.ErrConnectionReset:
		return syscall.ECONNRESET
	case *tcpip.ErrTimeout:
		return syscall.ETIMEDOUT
	case *tcpip.ErrHostUnreachable, *tcpip.ErrHostDown:
		return syscall.EHOSTUNREACH
	case *tcpip.ErrNetworkUnreachable:
		return syscall.ENETUNREACH
	}
	return errors.New(err.String())
}
