// Package netstack is a TUN device without a kernel behind it: what is written to it goes to a TCP/IP stack in this program
// (gVisor's), and what that stack sends is read from it. So a program reaches a tunnel by [Stack.DialTCP] and the like, without
// rights and without touching its machine.
//
// Superpackets go both ways. The stack hands over up to 64 KiB of a TCP flow behind one header and leaves checksum and
// segmentation to whoever reads, and takes joined TCP packets as they come. UDP goes packet by packet.
//
// golang.zx2c4.com/wireguard/tun/netstack has the same stack behind a device that carries single packets only, holds one between stack
// and reader, and has the addresses that it was made with for its life; hence a link of our own.
package netstack

import (
	"errors"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"

	"gvisor.dev/gvisor/pkg/log"
	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv4"
	"gvisor.dev/gvisor/pkg/tcpip/network/ipv6"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
	"gvisor.dev/gvisor/pkg/tcpip/transport/icmp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/tcpip/transport/udp"

	"github.com/sluice-vpn/sluice/tun"
)

// Config describes a Stack.
type Config struct {
	Name string // what Device.Name says; "": netstack
	MTU  int    // bytes; 0: tun.DefaultMTU
	// NoOffload asks for a device without superpackets.
	NoOffload bool
}

// Buffers of one connection, in bytes: at its begin, and at most once it has shown that it is fast. A connection whose owner does
// not read holds what it had at the begin.
const (
	leastBuffer, usualBuffer, mostBuffer = 4 << 10, 256 << 10, 4 << 20
)

// nic is the number of the stack's only link.
const nic tcpip.NICID = 1

// Stack is a TCP/IP stack and the [tun.Device] that leads to it. Its methods may be called by any goroutine, those of its queue by the
// queue's owner.
type Stack struct {
	// Frozen.
	name   string
	mtu    int
	stack  *stack.Stack
	queue  *queue
	queues []tun.Queue
	events chan tun.Event

	closed atomic.Bool
	own    atomic.Pointer[[]netip.Addr] // addresses, frozen

	mu        sync.Mutex
	addresses []netip.Addr // guarded by mu
}

// New makes a stack without addresses, which reaches nobody yet.
func New(c Config) (*Stack, error) {
	if c.Name == "" {
		c.Name = "netstack"
	}
	if c.MTU == 0 {
		c.MTU = tun.DefaultMTU
	}
	q, err := newQueue(c.MTU, !c.NoOffload)
	if err != nil {
		return nil, err
	}
	s := &Stack{name: c.Name, mtu: c.MTU, queue: q, queues: []tun.Queue{q}, events: make(chan tun.Event, 1)}
	silence()
	// Without HandleLocal, since with it a stack that forwards takes all sources for its own and drops their packets.
	s.stack = stack.New(stack.Options{
		NetworkProtocols:   []stack.NetworkProtocolFactory{ipv4.NewProtocol, ipv6.NewProtocol},
		TransportProtocols: []stack.TransportProtocolFactory{tcp.NewProtocol, udp.NewProtocol, icmp.NewProtocol4, icmp.NewProtocol6},
	})
	if err := s.tune(); err != nil {
		return nil, err
	}
	if err := s.stack.CreateNIC(nic, q); err != nil {
		return nil, fmt.Errorf("netstack: %s", err)
	}
	s.events <- tun.EventUp
	return s, nil
}

// silence keeps the stack from writing to standard error, which has our log in a form of its own: what it drops, it counts.
var silence = sync.OnceFunc(func() { log.SetTarget(log.GoogleEmitter{Writer: &log.Writer{Next: io.Discard}}) })

// tune sets what the stack has another default of.
func (s *Stack) tune() error {
	sack := tcpip.TCPSACKEnabled(true)
	// Its RACK-TLP takes reordering for loss where acknowledgements come for 64 KiB at a time.
	recovery := tcpip.TCPRecovery(0)
	moderate := tcpip.TCPModerateReceiveBufferOption(true)
	send := tcpip.TCPSendBufferSizeRangeOption{Min: leastBuffer, Default: usualBuffer, Max: mostBuffer}
	receive := tcpip.TCPReceiveBufferSizeRangeOption{Min: leastBuffer, Default: usualBuffer, Max: mostBuffer}
	for _, o := range []tcpip.SettableTransportProtocolOption{&sack, &recovery, &moderate, &send, &receive} {
		if err := s.stack.SetTransportProtocolOption(tcp.ProtocolNumber, o); err != nil {
			return fmt.Errorf("netstack: %T: %s", o, err)
		}
	}
	return nil
}

// SetAddresses makes these the stack's own, whatever their prefix lengths. Connections of one that goes end.
func (s *Stack) SetAddresses(prefixes []netip.Prefix) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	var wanted []netip.Addr
	for _, p := range prefixes {
		wanted = append(wanted, p.Addr())
	}
	var failed error
	for _, a := range s.addresses {
		if !slices.Contains(wanted, a) {
			if err := s.stack.RemoveAddress(nic, tcpip.AddrFromSlice(a.AsSlice())); err != nil {
				failed = errors.Join(failed, fmt.Errorf("netstack: remove %v: %s", a, err))
			}
		}
	}
	var routes []tcpip.Route
	for _, a := range wanted {
		own, everywhere := protocolOf(a), header.IPv4EmptySubnet
		if a.Is6() {
			everywhere = header.IPv6EmptySubnet
		}
		routes = append(routes, tcpip.Route{Destination: everywhere, NIC: nic})
		if slices.Contains(s.addresses, a) {
			continue
		}
		address := tcpip.ProtocolAddress{Protocol: own, AddressWithPrefix: tcpip.AddrFromSlice(a.AsSlice()).WithPrefix()}
		if err := s.stack.AddProtocolAddress(nic, address, stack.AddressProperties{}); err != nil {
			failed = errors.Join(failed, fmt.Errorf("netstack: add %v: %s", a, err))
		}
	}
	s.addresses = wanted
	s.own.Store(&wanted)
	s.stack.SetRouteTable(routes)
	return failed
}

// protocolOf is the network protocol of an address.
func protocolOf(a netip.Addr) tcpip.NetworkProtocolNumber {
	if a.Is4() {
		return ipv4.ProtocolNumber
	}
	return ipv6.ProtocolNumber
}

// Name is Config.Name.
func (s *Stack) Name() string { return s.name }

// MTU is Config.MTU.
func (s *Stack) MTU() int { return s.mtu }

// Capabilities are those for TCP, if any: the stack does not cut datagrams that were joined.
func (s *Stack) Capabilities() tun.Capabilities {
	offload := s.queue.offload
	return tun.Capabilities{VNETHeader: offload, TSO4: offload, TSO6: offload}
}

// Queues is the one queue.
func (s *Stack) Queues() []tun.Queue { return s.queues }

// Events has an EventUp.
func (s *Stack) Events() <-chan tun.Event { return s.events }

// Close ends all connections.
func (s *Stack) Close() error {
	if s.closed.Swap(true) {
		return nil
	}
	s.stack.Destroy()
	s.queue.close()
	close(s.events)
	return nil
}
