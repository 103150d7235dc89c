package relay

import "net/netip"

// special are the IPv4 addresses that no peer on the public internet has, from the IANA special-purpose registry (RFC 6890).
// The documentation networks (RFC 5737) are not here: nothing is routed there, and laboratories use them as their internet.
var special = prefixes(
	"0.0.0.0/8",        // this network; 0.0.0.0 reaches the host itself
	"10.0.0.0/8",       // private
	"100.64.0.0/10",    // shared address space, RFC 6598
	"127.0.0.0/8",      // loopback
	"169.254.0.0/16",   // link-local, and the metadata services of clouds
	"172.16.0.0/12",    // private
	"192.0.0.0/24",     // IETF protocol assignments
	"192.88.99.0/24",   // 6to4 relay anycast, RFC 7526
	"192.168.0.0/16",   // private
	"198.18.0.0/15",    // benchmarking, RFC 2544
	"224.0.0.0/4",      // multicast
	"240.0.0.0/4",      // reserved, and the limited broadcast
	"168.63.129.16/32", // public by its number, but the host of a virtual machine in one large cloud
)

// unicast is what IANA has given out for global unicast. All else is denied: the unspecified and the loopback address,
// IPv4-compatible (::/96), -mapped (::ffff:0:0/96) and -translated (::ffff:0:0:0/96) addresses, NAT64 (64:ff9b::/96 and
// 64:ff9b:1::/48), discard-only (100::/64), segment identifiers (5f00::/16), unique local (fc00::/7), link-local
// (fe80::/10), site-local (fec0::/10) and multicast (ff00::/8).
var unicast = netip.MustParsePrefix("2000::/3")

// special6 are the parts of unicast that are no peers: they carry an IPv4 address inside, or are no locators.
var special6 = prefixes(
	"2001::/23", // IETF protocol assignments: Teredo 2001::/32, benchmarking 2001:2::/48, ORCHID 2001:10::/28 and 2001:20::/28
	"2002::/16", // 6to4
)

func prefixes(list ...string) []netip.Prefix {
	out := make([]netip.Prefix, len(list))
	for i, s := range list {
		out[i] = netip.MustParsePrefix(s)
	}
	return out
}

// peerPolicy says which peers may be reached. Frozen.
type peerPolicy struct {
	denied, allowed []netip.Prefix
	listening       map[netip.AddrPort]bool   // where we listen, as far as it is known: a relay that talks to itself makes loops
	ports           map[uint16]bool           // the ports of listening
	own             map[netip.Addr]bool       // addresses of relayed transport addresses
	local           map[netip.Addr]bool       // the other addresses of this machine, as they were when it was made
	live            func(netip.AddrPort) bool // whether an allocation has that relayed address now
}

// admitsAddr reports whether a permission for a may be made. a is as it stood in the message: not unmapped.
//
// An address of our own is admitted, since the peer may be another allocation of this relay; its port is looked at when
// there is one.
func (p *peerPolicy) admitsAddr(a netip.Addr) bool {
	switch {
	case !a.IsValid(), a.Is4In6(), a.Zone() != "": // mapped addresses never: an IPv4 peer is named by its IPv4 address
		return false
	case within(p.denied, a):
		return false
	case within(p.allowed, a), p.own[a]:
		return true
	}
	return public(a) && !p.local[a]
}

// admits reports whether datagrams may go to peer and come from it. At an address of our own that is an allocation, unless it was
// allowed: other programs of this machine have ports in the same range.
func (p *peerPolicy) admits(peer netip.AddrPort) bool {
	a, port := peer.Addr(), peer.Port()
	switch {
	case port == 0, !p.admitsAddr(a), p.listening[peer]:
		return false
	case p.own[a]:
		return !p.ports[port] && (within(p.allowed, a) || p.live(peer))
	}
	return true
}

// public reports whether a is a unicast address of the public internet.
func public(a netip.Addr) bool {
	if a.Is4() {
		return !within(special, a)
	}
	return unicast.Contains(a) && !within(special6, a)
}

func within(list []netip.Prefix, a netip.Addr) bool {
	for _, p := range list {
		if p.Contains(a) {
			return true
		}
	}
	return false
}
