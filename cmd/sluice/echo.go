package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"
	"golang.org/x/net/ipv6"

	"github.com/sluice-vpn/sluice/cmd/internal/status"
)

// echoer sends echo requests to one address. It belongs to one goroutine.
type echoer interface {
	// echo sends one and waits for its answer; os.ErrDeadlineExceeded: none came within echoWait.
	echo(ctx context.Context, sequence int) (time.Duration, error)
	Close() error
}

// echoerOf is that for a node: the kernel, or the node itself where it has no interface.
func echoerOf(ctx context.Context, node *status.Node, to netip.Addr) (echoer, error) {
	n := &nodeEchoer{node, to}
	if _, err := n.node.Echo(ctx, to, 0); !errors.Is(err, status.ErrInterface) { // any other error is told by the next one
		return n, nil
	}
	return newKernelEchoer(to)
}

// nodeEchoer has a node do it.
type nodeEchoer struct {
	node *status.Node
	to   netip.Addr
}

func (n *nodeEchoer) Close() error { return nil }

func (n *nodeEchoer) echo(ctx context.Context, sequence int) (time.Duration, error) {
	e, err := n.node.Echo(ctx, n.to, sequence)
	if err == nil && !e.Answered {
		err = os.ErrDeadlineExceeded
	}
	return time.Duration(e.RTTS * float64(time.Second)), err
}

// kernelEchoer sends them by ICMP (RFC 792; RFC 4443, section 4).
type kernelEchoer struct {
	conn     *icmp.PacketConn
	to       net.Addr
	request  icmp.Type
	reply    icmp.Type
	protocol int    // IANA's number
	secret   []byte // tells our echoes from those of others
	id       int
}

// newKernelEchoer opens an unprivileged ping socket, or a raw one where the system has none for us (net.ipv4.ping_group_range).
func newKernelEchoer(to netip.Addr) (*kernelEchoer, error) {
	e := &kernelEchoer{secret: make([]byte, 16), id: os.Getpid() & 0xffff}
	rand.Read(e.secret) // never fails
	datagram, raw, any := "udp4", "ip4:icmp", "0.0.0.0"
	e.request, e.reply, e.protocol = ipv4.ICMPTypeEcho, ipv4.ICMPTypeEchoReply, 1
	if to.Is6() {
		datagram, raw, any = "udp6", "ip6:ipv6-icmp", "::"
		e.request, e.reply, e.protocol = ipv6.ICMPTypeEchoRequest, ipv6.ICMPTypeEchoReply, 58
	}
	var err, rawErr error
	e.to = &net.UDPAddr{IP: to.AsSlice()}
	if e.conn, err = icmp.ListenPacket(datagram, any); err != nil {
		e.to = &net.IPAddr{IP: to.AsSlice()}
		if e.conn, rawErr = icmp.ListenPacket(raw, any); rawErr != nil {
			return nil, fmt.Errorf("ping needs root, or the system's leave for ping sockets (sysctl net.ipv4.ping_group_range): %w", rawErr)
		}
	}
	return e, nil
}

// Close closes the socket.
func (e *kernelEchoer) Close() error { return e.conn.Close() }

func (e *kernelEchoer) echo(ctx context.Context, sequence int) (time.Duration, error) {
	body := &icmp.Echo{ID: e.id, Seq: sequence, Data: e.secret}
	packet, err := (&icmp.Message{Type: e.request, Body: body}).Marshal(nil)
	if err != nil {
		return 0, err
	}
	began := time.Now()
	if err := e.conn.SetReadDeadline(began.Add(echoWait)); err != nil {
		return 0, err
	}
	stop := context.AfterFunc(ctx, func() { e.conn.SetReadDeadline(began) })
	defer stop()
	if _, err := e.conn.WriteTo(packet, e.to); err != nil {
		return 0, fmt.Errorf("ping: %w", errors.Unwrap(err))
	}
	buffer := make([]byte, 1500)
	for {
		n, _, err := e.conn.ReadFrom(buffer)
		if err != nil {
			return 0, err
		}
		took := time.Since(began)
		answer, err := icmp.ParseMessage(e.protocol, buffer[:n])
		if err != nil || answer.Type != e.reply {
			continue
		}
		if echo, ok := answer.Body.(*icmp.Echo); ok && echo.Seq == sequence && bytes.Equal(echo.Data, e.secret) {
			return took, nil
		}
	}
}
