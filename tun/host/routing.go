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
//	5188: not fwmark MARK lookup TABLE suppress_prefixlength 0    routes to peers
//	5189: to NETWORK lookup main suppress_prefixlength 0          if there is a default route in TABLE: for each network on
//	                                                              another interface of the machine, and each of Keep
//	5190: not fwmark MARK lookup TABLE                            and only then all the rest
//
// With a default route, no other route of main counts but those to the networks of 5189. Networks are those that the machine
// has an address in: a route that somebody else on the link has pushed (DHCP, RFC 3442) leads nothing past the tunnel.
//
// With a default route, and where reverse path filtering is strict (rp_filter=1), the mark is also put on what answers
// marked packets (conntrack, in a table of ours `inet sluice-INTERFACE-mark`), and src_valid_mark is set; a killed
// program leaves that on, which does no harm.
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
