package host

import (
	"net/netip"
	"slices"
	"syscall"
)

// Defaults of a Routing.
const (
	DefaultTable = 51888
	DefaultMark  = 51888
	// rulePriority and the three numbers behind it are where our policy rules stand: before main (32766).
	rulePriority = 5188
)

// RoutingConfig describes a Routing. Interface is required; the zero value of the rest is its default.
//
// Routes are in a table of their own, so that what the machine has in main stays as it is, and the program's own outer
// packets, which carry Mark, never see them: the tunnel cannot swallow itself. The rules of each family that has a route:
//
//	5188: not fwmark MARK lookup TABLE suppress_prefixlength 31   routes to single addresses, which peers have (IPv6: 127)
//	5189: to NETWORK lookup main suppress_prefixlength 0          for each network on another interface of the machine, and each
//	                                                              of Keep, that a route of TABLE overlaps with
//	5190: not fwmark MARK lookup TABLE                            and only then all the rest
//
//	5191: not fwmark MARK unreachable                             with FailClosed, of both families
//
// So the machine's own links come first, if their network is one that [LocalNetwork] is true of, but for the parts that a route leads to.
// Otherwise no route of main counts where TABLE has one: networks are those that the
// machine has an address in, and a route that somebody else on the link has pushed (DHCP, RFC 3442) leads nothing past the tunnel.
//
// As long as there are routes to more than single tunnel addresses, or the machine fails closed, an nftables table of ours, `inet sluice-INTERFACE-mark`, puts the mark (by conntrack) on what
// answers marked packets, and on what answers connections that came by another interface, so that answers go back the way the
// question came. A UDP server that listens at all addresses must name the source of its answers (IP_PKTINFO), or the route names
// the tunnel's, and they are no answers any more; to guess that they are would let a forged question lead flows past the tunnel.
// For strict reverse path filtering (rp_filter=1) of both, src_valid_mark is set; a note in the table has it
// reset after a program was killed. See Routing.Unmarked for machines where this cannot be.
//
// Several programs may share Table and Mark; the last one to leave deletes the rules. A route belongs to the one who had it
// first.
type RoutingConfig struct {
	Interface string
	Table     int            // 0: DefaultTable
	Mark      uint32         // 0: DefaultMark
	Keep      []netip.Prefix // networks that are reached as main says, in spite of a default route
	// FailClosed has nothing leave the machine unmarked that is neither in TABLE nor for a network that is kept. Close leaves it so, and so
	// does a process that is killed; Release ends it.
	FailClosed bool
}

// local are the networks that a link may have without being asked, of as many addresses at most: private, shared, link-local and unique
// local ones (RFC 1918, RFC 6598, RFC 3927, RFC 4193, RFC 4291).
var local = func() (list []netip.Prefix) {
	for _, p := range []string{"10.0.0.0/8", "172.16.0.0/12", "192.168.0.0/16", "100.64.0.0/10", "169.254.0.0/16", "fc00::/7", "fe80::/10"} {
		list = append(list, netip.MustParsePrefix(p))
	}
	return list
}()

const (
	localBits4 = 16
	localBits6 = 48
)

// LocalNetwork tells whether a network on a link stays outside of a default route through the tunnel: who runs the link says which network
// it is, and could have all of the Internet be on it.
func LocalNetwork(p netip.Prefix) bool {
	if p.Addr().Is4() && p.Bits() < localBits4 || p.Addr().Is6() && p.Bits() < localBits6 {
		return false
	}
	return slices.ContainsFunc(local, func(l netip.Prefix) bool { return l.Contains(p.Addr()) })
}

// besides is what is left of p without a prefix inside it: one for each bit that it is longer.
func besides(p, inside netip.Prefix) (rest []netip.Prefix) {
	for bits := p.Bits() + 1; bits <= inside.Bits(); bits++ {
		other := inside.Addr().AsSlice()
		other[(bits-1)/8] ^= 0x80 >> ((bits - 1) % 8)
		a, _ := netip.AddrFromSlice(other)
		rest = append(rest, netip.PrefixFrom(a, bits).Masked())
	}
	return rest
}

func (c RoutingConfig) withDefaults() RoutingConfig {
	if c.Table == 0 {
		c.Table = DefaultTable
	}
	if c.Mark == 0 {
		c.Mark = DefaultMark
	}
	return c
}

// Marks tells whether there are marks, so that the program's own packets can be kept out of the tunnel where a route leads into it that
// they would take.
const Marks = marks

// MarkControl sets the mark on sockets; it is for net.Dialer.Control and net.ListenConfig.Control. Where there are no marks
// it does nothing, and for mark 0 it is nil.
func MarkControl(mark uint32) func(network, address string, c syscall.RawConn) error {
	if mark == 0 { // to set that one needs a right, too
		return nil
	}
	return func(_, _ string, c syscall.RawConn) error { return setMark(c, mark) }
}
