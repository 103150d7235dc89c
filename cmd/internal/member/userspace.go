package member

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"slices"
	"strconv"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sluice-vpn/sluice/cmd/internal/names"
	"github.com/sluice-vpn/sluice/cmd/internal/proxy"
	"github.com/sluice-vpn/sluice/cmd/internal/status"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
)

// UserspaceInterface is what a node without an interface is called where others name theirs.
const UserspaceInterface = "userspace"

// Userspace says how programs reach the tunnel of a node without an interface. It needs no rights, and changes nothing of the machine.
type Userspace struct {
	SOCKS5, HTTPProxy string // as proxy.Address has it; "": none
	Forwards          []proxy.Forward
}

// listen opens what programs reach the tunnel by, at once, so that a port that is in use is told before anything else.
func (p *presence) listen() (*proxy.Server, error) {
	s := proxy.New(proxy.Config{Dial: p.dial, Logger: p.logger})
	var ways []string
	note := func(what string, at net.Addr, err error) error {
		if err != nil {
			return err
		}
		ways = append(ways, fmt.Sprintf("%s at %v", what, at))
		p.logger.Info("programs reach the tunnel by a proxy", "kind", what, "address", at.String())
		if !proxy.Loopback(at) {
			warning := fmt.Sprintf("everybody who reaches %v can use this tunnel; 127.0.0.1 is for this machine only", at)
			p.notes = append(p.notes, warning)
			p.logger.Warn(warning)
		}
		return nil
	}
	var err error
	if at := p.options.Userspace.SOCKS5; at != "" {
		bound, e := s.SOCKS("-socks5", at)
		err = note("SOCKS5", bound, e)
	}
	if at := p.options.Userspace.HTTPProxy; at != "" && err == nil {
		bound, e := s.HTTP("-http-proxy", at)
		err = note("HTTP proxy", bound, e)
	}
	for _, f := range p.options.Userspace.Forwards {
		if err == nil {
			bound, e := s.Forward("-forward", f)
			err = note(f.To.String(), bound, e)
		}
	}
	if err != nil {
		s.Close()
		return nil, err
	}
	if p.options.Role == protocol.Gateway {
		p.notes = append(p.notes, "there is no interface: what comes through the tunnel is dialed from here, TCP and UDP only, with this machine's addresses")
		return s, nil
	}
	p.notes = append(p.notes, "there is no interface; programs reach the tunnel by: "+strings.Join(ways, ", "))
	return s, nil
}

// dial connects to a host by the node that there is at the time. Any goroutine.
func (p *presence) dial(ctx context.Context, host string, port uint16) (proxy.Conn, error) {
	n := p.node.Load()
	if n == nil {
		return nil, errors.New("this node is signed out: " + p.state.Load().Why)
	}
	return n.dial(ctx, host, port)
}

// reach is what the portal says of where the tunnel leads, frozen.
type reach struct {
	own       []netip.Addr
	zone      names.Zone
	routes    []netip.Prefix
	resolvers []netip.Addr // that the tunnel leads to; none: the machine's
}

// dial connects by the tunnel, and by nothing else: what is not routed through it is refused.
func (n *node) dial(ctx context.Context, host string, port uint16) (proxy.Conn, error) {
	r := n.reach.Load()
	if r == nil {
		return nil, errors.New("the portal has not said yet where this tunnel leads")
	}
	found, err := r.resolve(ctx, host, n.resolver(r))
	if err != nil {
		return nil, err
	}
	routed := slices.DeleteFunc(slices.Clone(found), func(a netip.Addr) bool { return !r.leads(a) })
	if len(routed) == 0 {
		return nil, fmt.Errorf("%s is %w; sluice why %v says more", host, proxy.ErrNotRouted, found[0])
	}
	var failed error
	for i, a := range routed { // each has its part of the time that is left
		conn, err := n.attempt(ctx, netip.AddrPortFrom(a, port), len(routed)-i)
		if err == nil {
			return conn, nil
		}
		failed = errors.Join(failed, err)
	}
	return nil, failed
}

// attempt connects to one of so many addresses.
func (n *node) attempt(ctx context.Context, to netip.AddrPort, among int) (proxy.Conn, error) {
	if deadline, ok := ctx.Deadline(); ok {
		part, stop := context.WithTimeout(ctx, time.Until(deadline)/time.Duration(among))
		defer stop()
		ctx = part
	}
	return n.stack.DialTCP(ctx, to)
}

// leads tells whether a peer is behind the address. What is this node's own has nobody who listens.
func (r *reach) leads(a netip.Addr) bool {
	return protocol.Within(r.routes, netip.PrefixFrom(a, a.BitLen())) && !slices.Contains(r.own, a) && slices.ContainsFunc(r.own, func(own netip.Addr) bool { return own.Is4() == a.Is4() })
}

// resolver asks a gateway's name servers by the tunnel, or the machine's where there are none.
func (n *node) resolver(r *reach) *net.Resolver {
	if len(r.resolvers) == 0 {
		return net.DefaultResolver
	}
	var next atomic.Uint32
	return &net.Resolver{PreferGo: true, Dial: func(ctx context.Context, network, _ string) (net.Conn, error) {
		at := netip.AddrPortFrom(r.resolvers[int(next.Add(1)-1)%len(r.resolvers)], 53)
		if strings.HasPrefix(network, "udp") {
			return n.stack.DialUDP(at)
		}
		return n.stack.DialTCP(ctx, at)
	}}
}

// resolve finds the addresses of a host, IPv4 first: the names of nodes from the portal, others by a resolver.
func (r *reach) resolve(ctx context.Context, host string, by *net.Resolver) ([]netip.Addr, error) {
	if a, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{a.Unmap().WithZone("")}, nil
	}
	addrs, inside, known := r.zone.Lookup(host)
	if !inside {
		var err error
		addrs, err = by.LookupNetIP(ctx, "ip", host)
		var unresolved *net.DNSError
		if known = err == nil; errors.As(err, &unresolved) && !unresolved.IsNotFound {
			return nil, fmt.Errorf("%s: the name is not found out: %w", host, err)
		}
	}
	if !known || len(addrs) == 0 {
		return nil, fmt.Errorf("%s: %w", host, proxy.ErrNoName)
	}
	list := make([]netip.Addr, len(addrs))
	for i, a := range addrs {
		list[i] = a.Unmap()
	}
	slices.SortStableFunc(list, func(a, b netip.Addr) int { return a.BitLen() - b.BitLen() })
	return list, nil
}

// echo answers whether an address gives a sign of life by the tunnel: the machine's own ICMP does not get there.
func (n *node) echo(w http.ResponseWriter, r *http.Request) {
	to, err := netip.ParseAddr(r.URL.Query().Get("to"))
	sequence, bad := strconv.ParseUint(r.URL.Query().Get("sequence"), 10, 16)
	if err != nil || bad != nil {
		http.Error(w, "want to=ADDRESS and sequence=NUMBER", http.StatusConflict)
		return
	}
	ctx, stop := context.WithTimeout(r.Context(), status.EchoLimit)
	defer stop()
	took, err := n.stack.Echo(ctx, to.Unmap(), uint16(sequence))
	switch {
	case err == nil:
		reply(w, status.Echo{Answered: true, RTTS: took.Seconds()})
	case errors.Is(err, context.DeadlineExceeded):
		reply(w, status.Echo{})
	default:
		http.Error(w, err.Error(), http.StatusConflict)
	}
}
