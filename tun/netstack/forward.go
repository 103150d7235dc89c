package netstack

import (
	"fmt"
	"net"
	"net/netip"
	"slices"

	"gvisor.dev/gvisor/pkg/tcpip/adapters/gonet"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"
	"gvisor.dev/gvisor/pkg/waiter"

	"github.com/sluice-vpn/sluice/tun/ip"
)

// mostOpening TCP connections are being forwarded of which the other side has not answered yet; the first packets of more are dropped.
const mostOpening = 1024

// Forwarder takes what is for other addresses than the stack's own, as a router's next hop would. All functions are called by goroutines
// of the stack.
type Forwarder struct {
	// TCP is called for each connection that is asked for, on a goroutine of its own. accept completes it; without that it is refused when TCP
	// returns.
	TCP func(to netip.AddrPort, accept func() (Conn, error))
	// UDP is called for the first datagram to an address and port from another, and must not block. nil: it is dropped, and so is the next. The
	// function that it returns carries what comes on the connection, nil if there is none, on a goroutine of its own, and closes it.
	UDP func(from netip.Addr, to netip.AddrPort) func(net.Conn)
}

// Forward begins to forward. Echo requests to others are dropped then: the stack would answer in their place.
func (s *Stack) Forward(f Forwarder) error {
	s.queue.foreign.Store(&s.own)
	if err := s.stack.SetPromiscuousMode(nic, true); err != nil {
		return fmt.Errorf("netstack: %s", err)
	}
	if err := s.stack.SetSpoofing(nic, true); err != nil {
		return fmt.Errorf("netstack: %s", err)
	}
	opening := tcp.NewForwarder(s.stack, 0, mostOpening, func(r *tcp.ForwarderRequest) {
		accepted := false
		f.TCP(destination(r.ID()), func() (Conn, error) {
			var queue waiter.Queue
			ep, err := r.CreateEndpoint(&queue)
			if err != nil {
				return nil, errorOf(err)
			}
			accepted = true
			r.Complete(false)
			keepAlive(ep)
			return gonet.NewTCPConn(&queue, ep), nil
		})
		if !accepted {
			r.Complete(true)
		}
	})
	s.stack.SetTransportProtocolHandler(tcp.ProtocolNumber, opening.HandlePacket)
	datagrams := udp.NewForwarder(s.stack, func(r *udp.ForwarderRequest) bool {
		id := r.ID()
		from, _ := netip.AddrFromSlice(id.RemoteAddress.AsSlice())
		carry := f.UDP(from, destination(id))
		if carry == nil {
			return true // else the stack would tell that the port is closed
		}
		var queue waiter.Queue
		ep, err := r.CreateEndpoint(&queue)
		if err != nil {
			go carry(nil)
			return true
		}
		go carry(gonet.NewUDPConn(&queue, ep))
		return true
	})
	s.stack.SetTransportProtocolHandler(udp.ProtocolNumber, datagrams.HandlePacket)
	return nil
}

func destination(id stack.TransportEndpointID) netip.AddrPort {
	a, _ := netip.AddrFromSlice(id.LocalAddress.AsSlice())
	return netip.AddrPortFrom(a, id.LocalPort)
}

// isForeignEcho tells whether a packet asks another address than the stack's own for a sign of life.
func isForeignEcho(packet []byte, own []netip.Addr) bool {
	t, ok := ip.FindTransport(packet)
	if !ok || t.Offset >= len(packet) {
		return false
	}
	kind := packet[t.Offset]
	echo := t.Protocol == uint8(header.ICMPv4ProtocolNumber) && kind == uint8(header.ICMPv4Echo)
	if packet[0]>>4 == 6 {
		echo = t.Protocol == uint8(header.ICMPv6ProtocolNumber) && kind == uint8(header.ICMPv6EchoRequest)
	}
	return echo && !slices.Contains(own, ip.Destination(packet))
}
