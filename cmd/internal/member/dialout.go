package member

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-vpn/sluice/cmd/internal/proxy"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/tun/netstack"
)

// This file is a gateway without an interface: what comes through the tunnel for the networks that it offers is dialed from here, so that it
// needs neither forwarding nor rights. TCP and UDP go that way, and nothing else.

const (
	// dialOutLimit is how long a host behind the gateway may take to answer.
	dialOutLimit = 10 * time.Second
	// mostFlows are UDP flows at once, mostOfOne those of one address, so that nobody takes the place of all others; flowLimit is how long
	// one is kept that is silent in both directions (RFC 4787, section 4.3).
	mostFlows = 1024
	mostOfOne = mostFlows / 4
	flowLimit = 2 * time.Minute
)

// dialOut dials for peers.
type dialOut struct {
	reach   atomic.Pointer[dialOutReach] // nil: nothing yet
	proxies *proxy.Server
	ctx     context.Context
	end     context.CancelFunc

	mu    sync.Mutex
	flows map[netip.Addr]int // UDP flows by who began them, none is 0; guarded by mu
	all   int                // their sum; guarded by mu
}

// dialOutReach is what the portal says of where peers may be led, frozen.
type dialOutReach struct {
	approved []netip.Prefix // networks that peers may reach
	overlay  []netip.Prefix // tunnel addresses, which nobody on this machine's networks has, whatever is approved
}

// startDialOut has a stack's peers reach the networks behind this machine.
func (n *node) startDialOut(s *netstack.Stack) error {
	d := &dialOut{flows: make(map[netip.Addr]int), proxies: proxy.New(proxy.Config{Logger: n.logger})}
	d.ctx, d.end = context.WithCancel(context.Background())
	n.dialOut = d
	return s.Forward(netstack.Forwarder{TCP: d.tcp, UDP: d.udp})
}

func (d *dialOut) close() {
	d.end()
	d.proxies.Close()
}

// set says where peers may be led.
func (d *dialOut) set(r dialOutReach) { d.reach.Store(&r) }

// allows tells whether peers reach an address: one in an approved network, and none that means something on this machine, its link or in
// the tunnel only.
func (d *dialOut) allows(to netip.AddrPort) bool {
	a, r := to.Addr().Unmap(), d.reach.Load()
	if r == nil || a.IsLoopback() || a.IsUnspecified() || a.IsMulticast() || a.IsLinkLocalUnicast() || a == netip.AddrFrom4([4]byte{255, 255, 255, 255}) {
		return false
	}
	single := netip.PrefixFrom(a, a.BitLen())
	return protocol.Within(r.approved, single) && !protocol.Within(r.overlay, single)
}

// tcp connects first, so that who asks is told by a refusal that the host refuses.
func (d *dialOut) tcp(to netip.AddrPort, accept func() (netstack.Conn, error)) {
	if !d.allows(to) {
		return
	}
	ctx, stop := context.WithTimeout(d.ctx, dialOutLimit)
	there, err := new(net.Dialer).DialContext(ctx, "tcp", to.String())
	stop()
	if err != nil {
		return
	}
	client, err := accept()
	if err != nil {
		there.Close()
		return
	}
	go d.proxies.Carry(client, there.(*net.TCPConn))
}

// take finds a place for one more UDP flow of an address; false: there is none.
func (d *dialOut) take(from netip.Addr) bool {
	d.mu.Lock()
	defer d.mu.Unlock()
	if d.all == mostFlows || d.flows[from] == mostOfOne {
		return false
	}
	d.all++
	d.flows[from]++
	return true
}

// give gives it back.
func (d *dialOut) give(from netip.Addr) {
	d.mu.Lock()
	defer d.mu.Unlock()
	d.all--
	if d.flows[from]--; d.flows[from] == 0 {
		delete(d.flows, from)
	}
}

func (d *dialOut) udp(from netip.Addr, to netip.AddrPort) func(net.Conn) {
	if !d.allows(to) || !d.take(from) {
		return nil
	}
	return func(client net.Conn) {
		defer d.give(from)
		if client == nil {
			return
		}
		defer client.Close()
		there, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(to))
		if err != nil {
			return
		}
		defer there.Close()
		stop := context.AfterFunc(d.ctx, func() { client.Close(); there.Close() })
		defer stop()
		var active atomic.Int64 // nanoseconds since 1970, when a datagram was carried last
		back := make(chan struct{})
		go func() { defer close(back); carryDatagrams(client, there, &active); client.Close() }()
		carryDatagrams(there, client, &active)
		there.Close()
		<-back
	}
}

// carryDatagrams copies one direction until both were silent for flowLimit, or something fails: the next datagram begins another flow.
func carryDatagrams(to, from net.Conn, active *atomic.Int64) {
	buffer := make([]byte, 64<<10)
	for {
		from.SetReadDeadline(time.Now().Add(flowLimit))
		n, err := from.Read(buffer)
		var silent net.Error
		if errors.As(err, &silent) && silent.Timeout() && time.Since(time.Unix(0, active.Load())) < flowLimit {
			continue
		}
		if err != nil {
			return
		}
		active.Store(time.Now().UnixNano())
		if _, err := to.Write(buffer[:n]); err != nil {
			return
		}
	}
}
