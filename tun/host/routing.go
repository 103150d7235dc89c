package host

import (
	"net/netip"
	"syscall"
)

// Defaults of a Routing.
const (
	DefaultTable = 51888
	DefaultMark  = 51888
	// rulePriority and the two numbers behind it are where our policy rules stand: before main (32766).
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
// So the machine's own links come first. Otherwise no route of main counts where TABLE has one: networks are those that the
// machine has an address in, and a route that somebody else on the link has pushed (DHCP, RFC 3442) leads nothing past the tunnel.
//
// As long as there are routes, an nftables table of ours, `inet sluice-INTERFACE-mark`, puts the mark (by conntrack) on what
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

// MarkControl sets the mark on sockets; it is for net.Dialer.Control and net.ListenConfig.Control. Where there are no marks
// it does nothing.
func MarkControl(mark uint32) func(network, address string, c syscall.RawConn) error {
	return func(_, _ string, c syscall.RawConn) error { return setMark(c, mark) }
}
