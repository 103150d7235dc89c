package member

import (
	"context"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/sluice-vpn/sluice/cmd/internal/status"
	"github.com/sluice-vpn/sluice/ice/edge"
	"github.com/sluice-vpn/sluice/pipeline"
	"github.com/sluice-vpn/sluice/pipeline/count"
	"github.com/sluice-vpn/sluice/tun/host"
)

// maxSubject bounds what is asked about: an address, or a node's name.
const maxSubject = 64

// tellWhy answers what becomes of packets to an address or a peer.
func (n *node) tellWhy(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
	defer cancel()
	subject := r.URL.Query().Get("of")
	if subject == "" || len(subject) > maxSubject {
		http.Error(w, "want an address or the name of a peer", http.StatusConflict)
		return
	}
	s, err := n.status(ctx)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	why, ok := status.Explain(&s, subject)
	if !ok {
		http.Error(w, fmt.Sprintf("no peer is called %q; sluice status lists them", subject), http.StatusConflict)
		return
	}
	why.At, why.Drops = time.Now(), dropsOf(n.pipeline.Counters())
	if route, ok := kernelRoute(why.Address, 0); ok && n.stack == nil {
		why.SetKernel(route)
	}
	why.MTU = n.mtu(why.Connection)
	reply(w, why)
}

// kernelRoute is where the kernel sends packets with that mark.
func kernelRoute(to netip.Addr, mark uint32) (r status.KernelRoute, ok bool) {
	if !to.IsValid() {
		return r, false
	}
	found, err := host.Lookup(to, mark)
	if err != nil {
		return r, false
	}
	return status.KernelRoute{
		Interface: found.Interface, Router: found.Router, Source: found.Source, Table: found.Table, Unreachable: found.Unreachable,
	}, true
}

// Sizes of outer headers in bytes: IPv4 (RFC 791), IPv6 (RFC 8200), UDP (RFC 768), ChannelData (RFC 8656, section 12.4), transport data
// with its tag (the WireGuard paper, section 5.4.6).
const ipv4Header, ipv6Header, udpHeader, channelHeader, transportHeader = 20, 40, 8, 4, 32

// mtu is what the tunnel and the way to the peer take.
func (n *node) mtu(c *edge.ConnectionStatus) (m status.MTU) {
	if n.stack != nil {
		m.Tunnel = n.stack.MTU()
	} else if link, err := net.InterfaceByName(n.options.Interface); err == nil {
		m.Tunnel = link.MTU
	}
	if c == nil || !c.Endpoint.IsValid() {
		return m
	}
	m.Overhead = ipv4Header + udpHeader + transportHeader
	if c.Endpoint.Addr().Is6() {
		m.Overhead += ipv6Header - ipv4Header
	}
	if c.Relay != "" {
		m.Overhead += channelHeader
	}
	if found, err := host.Lookup(c.Endpoint.Addr(), n.options.Mark); err == nil {
		m.Outer = found.MTU
	}
	return m
}

// dropsOf are the counters of packets that were dropped or lost, without those that are 0.
func dropsOf(counters []count.Counter) map[string]uint64 {
	drops, lost := map[string]uint64{}, map[string]bool{}
	for _, name := range pipeline.LossNames() {
		lost[name] = true
	}
	for _, c := range counters {
		if c.Value > 0 && (lost[c.Name] || strings.HasPrefix(c.Name, "drop_")) {
			drops[c.Name] = c.Value
		}
	}
	return drops
}
