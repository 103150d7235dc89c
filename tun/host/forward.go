package host

import (
	"net/netip"
	"slices"
)

// Forward says how a gateway forwards. Interface is required.
//
// Two things of the namespace are changed. IP forwarding is switched on for the families of Routes
// (net.ipv4.ip_forward and net.ipv6.conf.all.forwarding; interfaces that take router advertisements go on doing so,
// accept_ra=2). And there is an nftables table of our own, `inet sluice-INTERFACE`. It decides who may begin a connection, and lets
// answers pass:
//
//	from the interface to another one    to Routes
//	from the interface to this machine   to Addresses, and to its other addresses that are in Routes
//	from another one to the interface    to Reach
//	from a tunnel of ours to another     nobody, nor back into the same
//	between other interfaces             nobody, in a family that was not forwarded before; a machine that forwarded before goes on.
//	                                     What a bridge passes from port to port is not forwarded, and goes on
//
// It clamps the MSS of TCP connections through the interface to the path's MTU, masquerades what came in by the interface and leaves
// by another one (Linux 5.7 and newer), and gives ICMP errors about such flows our own address if their sender's is not in Routes,
// because peers take packets from there only. It also notes what the settings were. The table outlives a process that is
// killed, as the settings do. Tables that such have left are replaced, and their notes kept: those whose interface is gone, and
// the interface's own.
//
// No other table is touched. So where another one drops forwarded packets, ours cannot help, because a drop is final in
// nftables: see Forwarding.Obstacles.
type Forward struct {
	// Interface is the TUN device's name.
	Interface string
	// Routes are the networks that are reached through this machine. What else it can reach is not for who comes through the
	// tunnel.
	Routes []netip.Prefix
	// Reach are the networks behind other gateways, where those behind this one may open connections to.
	Reach []netip.Prefix
	// Overlay are the networks that all tunnel addresses come from.
	Overlay []netip.Prefix
	// Addresses are the interface's. The first of a family stands for routers that peers cannot know.
	Addresses []netip.Prefix
	// NoMasquerade leaves addresses as they are: the network behind then needs routes back.
	NoMasquerade bool
}

// equal tells whether both ask for the same.
func (f Forward) equal(g Forward) bool {
	return f.Interface == g.Interface && f.NoMasquerade == g.NoMasquerade && slices.Equal(f.Routes, g.Routes) &&
		slices.Equal(f.Reach, g.Reach) && slices.Equal(f.Overlay, g.Overlay) && slices.Equal(f.Addresses, g.Addresses)
}

func (f Forward) clone() Forward {
	f.Routes, f.Reach = slices.Clone(f.Routes), slices.Clone(f.Reach)
	f.Overlay, f.Addresses = slices.Clone(f.Overlay), slices.Clone(f.Addresses)
	return f
}

// offers tells whether a family is to be forwarded.
func (f Forward) offers(ipv6 bool) bool {
	return slices.ContainsFunc(f.Routes, func(p netip.Prefix) bool { return p.Addr().Is6() == ipv6 })
}

// Obstacle is a chain of somebody else that drops or rejects what no rule of it accepts. The zero value is one that is not known,
// though packets get lost.
type Obstacle struct {
	Family string // of the table: ip, ip6, inet
	Table  string
	Chain  string
}

// String names the chain as nft does.
func (o Obstacle) String() string { return o.Family + " " + o.Table + " " + o.Chain }

// Explain says in a sentence what is wrong, and what helps.
func (o Obstacle) Explain(name string) string {
	if o == (Obstacle{}) {
		return "a firewall on this machine drops some of the packets that this gateway lets on, which a rule of nftables or the legacy" +
			" iptables may do: let it forward what comes and goes by " + name
	}
	return "the firewall chain " + o.String() + " drops what it is not told to forward; let it know: " + o.Remedy(name)
}

// Remedy is a command that has the chain accept what comes and goes by an interface.
func (o Obstacle) Remedy(name string) string {
	if o.Chain == "FORWARD" && o.Family != "inet" { // of iptables, which do not like to be edited by others
		program := map[bool]string{false: "iptables", true: "ip6tables"}[o.Family == "ip6"]
		if o.Table != "filter" {
			return program + " -t " + o.Table + " -I FORWARD -i " + name + " -j ACCEPT, and the same with -o"
		}
		return program + " -I FORWARD -i " + name + " -j ACCEPT, and the same with -o (with Docker: DOCKER-USER in place of FORWARD)"
	}
	return "nft insert rule " + o.String() + " iifname " + name + " accept, and the same with oifname"
}
