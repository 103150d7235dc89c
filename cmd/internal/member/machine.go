package member

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/tun/host"
	"github.com/sluice-vpn/sluice/tun/netstack"
)

// machine makes the operating system follow the portal. The goroutine that calls apply and mend owns it, and after that one who
// calls Close.
type machine struct {
	options    Options
	logger     *slog.Logger
	stack      *netstack.Stack // instead of the operating system's; nil: that one
	begun      bool            // what lasts until Close is there
	up         bool            // addresses and routes were set once
	answer     protocol.Sync
	routing    *host.Routing
	forwarding *host.Forwarding
	problem    error // of the last remark
	// interferences are by their text.
	interferences map[string]*interference
	remarks       atomic.Pointer[remarks] // read by any goroutine
}

// remarks are what the status tells of the machine, frozen.
type remarks struct {
	notes   []string // what may be in the way, each a sentence
	problem string   // why it could not be mended
	refuses bool     // what nobody here has asked for does not come in
}

func newMachine(o Options, logger *slog.Logger) *machine {
	return &machine{options: o, logger: logger, interferences: map[string]*interference{}}
}

// apply sets addresses and routes, and for a gateway forwarding. What fails is tried again with the portal's next answer.
func (m *machine) apply(answer protocol.Sync) error {
	m.answer = answer
	if err := m.begin(); err != nil {
		return err
	}
	m.begun = true
	routes, err := m.set()
	m.remark(nil)
	if err == nil && !m.up {
		m.up = true
		attrs := []any{"role", string(m.options.Role), "name", answer.Name, "interface", m.options.Interface, "addresses", texts(answer.Addresses), "routes", texts(routes), "peers", len(answer.Peers)}
		if m.options.Role == protocol.Gateway {
			attrs = append(attrs, "offers", texts(answer.Offers.Approved()), "masquerade", !m.options.NoMasquerade)
		}
		m.logger.Info("node is up", attrs...)
	}
	return err
}

func (m *machine) set() (routes []netip.Prefix, err error) {
	routes = routesOf(m.answer)
	if m.stack != nil { // what leads into the tunnel is asked of the stack
		return routes, m.stack.SetAddresses(m.answer.Addresses)
	}
	lead := routes
	if v6, lacks := lacking(routes); lacks && m.blocks(v6) {
		// No peer has it: the pipeline answers that the destination is unreachable. When the interface goes, so does this.
		lead = append(slices.Clone(routes), everywhere(v6))
	}
	if m.forwarding != nil {
		if err := m.forwarding.Set(m.forward()); err != nil {
			return nil, err
		}
	}
	m.routing.SetOverlay(m.answer.Overlay)
	return routes, errors.Join(m.routing.SetAddresses(m.answer.Addresses), m.routing.Set(lead))
}

// blocks tells whether a family that nobody has a default route for is kept from going past the tunnel. A gateway may lead others to it.
func (m *machine) blocks(v6 bool) bool {
	return m.options.Role == protocol.Client && !slices.Contains(m.options.Keep, everywhere(v6))
}

// mend puts right what others have changed since: a firewall that was loaded anew, a service that manages the network and
// does not know us, an interface that came or went. It tells whether it is to be called once more soon.
func (m *machine) mend() (again bool) {
	if !m.ready() || m.stack != nil { // nobody else gets at the stack
		return false
	}
	before := m.routing.Changes()
	_, err := m.set()
	if m.routing.Changes() != before {
		m.interfered("addresses, routes or rules were changed by somebody else, and are set again")
	}
	if m.forwarding != nil {
		mended, e := m.forwarding.Mend()
		if mended {
			m.interfered("forwarding or its nftables table was touched by somebody else, and is set up again")
		}
		err, again = errors.Join(err, e), m.forwarding.Unended()
	}
	m.remark(err)
	return again
}

// interferedTold is how often the same is logged at most: who changes things all the time does not fill the log.
const interferedTold = time.Minute

// interfered logs what was mended, with how often since it was logged.
func (m *machine) interfered(what string) {
	i := m.interferences[what]
	if i == nil {
		i = &interference{}
		m.interferences[what] = i
	}
	if i.times++; time.Since(i.told) >= interferedTold {
		m.logger.Warn(what, "interface", m.options.Interface, "times", i.times)
		*i = interference{told: time.Now()}
	}
}

// interference is what somebody else does again and again.
type interference struct {
	times int // since it was told
	told  time.Time
}

// review looks again for what may be in the way.
func (m *machine) review() {
	if m.ready() {
		m.remark(m.problem)
	}
}

// ready tells whether there is something to look after: without the portal, that the machine fails closed.
func (m *machine) ready() bool { return m.up || m.options.FailClosed && m.routing != nil }

// release ends that the machine fails closed.
func (m *machine) release() error {
	m.options.FailClosed = false
	if m.routing == nil {
		return errors.New("the node has not signed in yet; try again")
	}
	m.logger.Info("the machine does not fail closed any more", "interface", m.options.Interface)
	return m.routing.Release()
}

// remark finds what is to be told, and logs what was not told before.
func (m *machine) remark(problem error) {
	m.problem = problem
	now := &remarks{notes: m.obstacles(), refuses: m.begun && m.options.answersOnly()}
	if problem != nil {
		now.problem = oneLine(problem)
	}
	before := m.remarks.Swap(now)
	if before == nil {
		before = &remarks{}
	}
	for _, note := range now.notes {
		if !slices.Contains(before.notes, note) {
			m.logger.Warn(note)
		}
	}
	if now.problem != before.problem && problem != nil {
		m.logger.Error("the host could not be configured", "error", problem)
	}
}

// obstacles are what may keep packets from arriving, though all is as it was asked for.
func (m *machine) obstacles() (notes []string) {
	if m.options.Role == protocol.Gateway && len(m.options.Routes) == 0 {
		notes = append(notes, "this gateway offers no network, so that peers reach this machine only: -routes names the networks")
	}
	notes = append(notes, unapproved(m.options.Routes, m.answer.Offers)...)
	if len(m.options.DNS) > 0 && !slices.ContainsFunc(m.answer.Offers.Approved(), func(p netip.Prefix) bool { return p.Bits() == 0 }) {
		notes = append(notes, "the name servers of -dns are given to nobody until a default route is approved")
	}
	if m.stack != nil {
		return notes
	}
	if v6 := slices.DeleteFunc(slices.Clone(m.options.Routes), func(p netip.Prefix) bool { return p.Addr().Is4() }); len(v6) > 0 && !host.HasIPv6(m.options.Interface) {
		notes = append(notes, fmt.Sprintf("this machine has no IPv6 on %s (net.ipv6.conf.all.disable_ipv6, or ipv6.disable at boot), so that"+
			" what is offered of it is not reached: %s", m.options.Interface, texts(v6)))
	}
	networks, err := host.Networks(m.options.Interface)
	if err != nil {
		return notes
	}
	routes := routesOf(m.answer)
	notes = append(notes, covered(routes, networks, m.answer.Overlay, m.options.Keep)...)
	if v6, lacks := lacking(routes); lacks {
		notes = append(notes, m.other(v6, networks))
	}
	if m.routing.FailsClosed() {
		notes = append(notes, m.closed(routes))
	}
	if err := m.routing.Unmarked(); err != nil {
		notes = append(notes, "answers to who reaches this machine past the tunnel may go into it, and are lost: "+oneLine(err))
	}
	if m.forwarding == nil {
		return notes
	}
	if m.forwarding.Strangers() {
		notes = append(notes, "this gateway switched forwarding on for itself only, and has dropped packets that others sent through"+
			" this machine: sysctl -w "+strings.Join(m.forwarding.SwitchedOn(), "=1 ")+"=1 before it starts lets this machine forward other things too")
	}
	list, err := m.forwarding.Obstacles()
	if err != nil {
		return notes
	}
	for _, o := range list {
		notes = append(notes, o.Explain(m.options.Interface))
	}
	return notes
}

// other tells what becomes of the family that there is no default route for.
func (m *machine) other(v6 bool, networks []host.Network) string {
	family, tunneled := "IPv4", "IPv6"
	if v6 {
		family, tunneled = tunneled, family
	}
	of := func(n host.Network) bool { return n.Prefix.Addr().Is6() == v6 && !n.Prefix.Addr().IsLinkLocalUnicast() }
	switch past := fmt.Sprintf("all %s goes through the tunnel and %s past it", tunneled, family); {
	case m.options.Role != protocol.Client:
		return past + ", since this is a gateway, which may lead others there"
	case !m.blocks(v6):
		return fmt.Sprintf("%s, as -keep %v says", past, everywhere(v6))
	case v6 && !host.HasIPv6(m.options.Interface) && slices.ContainsFunc(networks, of):
		return fmt.Sprintf("%s, since there is no IPv6 on %s (net.ipv6.conf.%[2]s.disable_ipv6)", past, m.options.Interface)
	}
	return fmt.Sprintf("no gateway leads to %v, so that %s is unreachable while all %s goes through the tunnel; -keep %[1]v lets it go past the tunnel",
		everywhere(v6), family, tunneled)
}

// closed tells that the machine fails closed, and what is unreachable because of it now.
func (m *machine) closed(routes []netip.Prefix) string {
	since, now := "", "nothing goes past the tunnel, also after this program's end"
	if !m.options.FailClosed {
		since = ", since a client with -fail-closed has run"
	}
	if m.up && !leadsAll(routes, false) && !leadsAll(routes, true) {
		now = "no gateway leads to 0.0.0.0/0 or ::/0, so that little else than this machine's own networks is reached"
	}
	return fmt.Sprintf("this machine fails closed%s: %s; sluice client -release ends that", since, now)
}

// unapproved tells which networks of this gateway the portal gives to nobody, and what to do.
func unapproved(offered []netip.Prefix, decided protocol.Offers) (notes []string) {
	for _, p := range offered {
		i := slices.IndexFunc(decided, func(o protocol.Offer) bool { return o.Prefix == p })
		if i < 0 {
			notes = append(notes, fmt.Sprintf("%v is offered to nobody: the portal says nothing about it; if it is of an older version, update it", p))
			continue
		}
		o := decided[i]
		if o.State == protocol.Approved {
			continue
		}
		note := fmt.Sprintf("%v is offered to nobody (%s): %s", p, o.State, o.Why)
		if o.Remedy != "" {
			note += "; to approve it, on the portal's machine: " + o.Remedy
		}
		notes = append(notes, note)
	}
	return notes
}

func oneLine(err error) string { return strings.ReplaceAll(err.Error(), "\n", "; ") }

// covered tells of networks of the machine's own that a gateway offers too, or that the tunnels' addresses are of, and of those that a route
// takes into the tunnel.
func covered(routes []netip.Prefix, networks []host.Network, overlay, keep []netip.Prefix) (notes []string) {
	for _, n := range networks {
		for _, o := range overlay {
			if !n.Prefix.IsSingleIP() && n.Prefix.Overlaps(o) {
				notes = append(notes, fmt.Sprintf("%s on %s overlaps with the tunnels' own addresses %s: hosts there that have a node's address"+
					" are not reached; before there are nodes, sluice portal -network chooses other addresses", n.Prefix, n.Interface, o))
			}
		}
		stays := host.LocalNetwork(n.Prefix) || protocol.Within(keep, n.Prefix)
		for _, r := range routes {
			switch around := protocol.Within([]netip.Prefix{r}, n.Prefix) && r != n.Prefix; {
			case protocol.Within(overlay, r) || !around: // what is inside was asked for
			case !stays:
				notes = append(notes, fmt.Sprintf("%s on %s goes into the tunnel, as all of %s does, since it is no private network, or too large for a"+
					" link's: -keep %[1]s has it stay on %[2]s", n.Prefix, n.Interface, r))
			case !protocol.Broad(r):
				notes = append(notes, fmt.Sprintf("%s on %s overlaps with %s, which a gateway offers: those addresses are reached on %s, not through the tunnel",
					n.Prefix, n.Interface, r, n.Interface))
			}
		}
	}
	return notes
}

// begin makes what lasts until Close.
func (m *machine) begin() (err error) {
	if m.stack != nil {
		return nil
	}
	if m.routing == nil {
		if err := host.SetUp(m.options.Interface); err != nil {
			return err
		}
		m.routing, err = host.NewRouting(host.RoutingConfig{
			Interface: m.options.Interface, Table: m.options.Table, Mark: m.options.Mark, Keep: slices.Concat(m.options.Routes, m.options.Keep),
			FailClosed: m.options.FailClosed,
		})
		if err != nil {
			m.routing = nil
			return err
		}
		if m.options.Role != protocol.Gateway {
			_ = host.ClearForwarding(m.options.Interface) // of a gateway that was killed
		}
	}
	if m.forwarding != nil || m.options.Role != protocol.Gateway {
		return nil
	}
	m.forwarding, err = host.StartForwarding(m.forward())
	if err != nil {
		m.forwarding = nil
		return err
	}
	if on := m.forwarding.SwitchedOn(); len(on) > 0 {
		m.logger.Info("forwarding is on until this gateway ends", "settings", strings.Join(on, " "))
	}
	return nil
}

// forward is what the portal's answer lets a gateway forward. What lies behind peers and is no tunnel address is approved of another
// gateway.
func (m *machine) forward() host.Forward {
	return host.Forward{
		Interface: m.options.Interface, NoMasquerade: m.options.NoMasquerade, Routes: m.answer.Offers.Approved(), Addresses: m.answer.Addresses,
		Overlay: m.answer.Overlay,
		Reach:   slices.DeleteFunc(routesOf(m.answer), func(p netip.Prefix) bool { return protocol.Within(m.answer.Overlay, p) }),
	}
}

// Close puts everything back, at the node's end.
func (m *machine) Close() error {
	err := m.restore()
	if m.routing != nil && m.routing.FailsClosed() {
		m.logger.Warn("nothing leaves this machine past the tunnel from now on either, but for its own networks: sluice client -release ends that")
	}
	return err
}

// restore puts everything back but what fails closed.
func (m *machine) restore() error {
	var err error
	if m.forwarding != nil {
		err = m.forwarding.Close()
	}
	if m.routing != nil {
		err = errors.Join(err, m.routing.Close())
	}
	return err
}

// routesOf are the prefixes behind the peers, each once and in order.
func routesOf(answer protocol.Sync) (routes []netip.Prefix) {
	for i := range answer.Peers {
		for _, p := range answer.Peers[i].AllowedIPs {
			routes = append(routes, p.Masked())
		}
	}
	slices.SortFunc(routes, netip.Prefix.Compare)
	return slices.Compact(routes)
}

func texts(list []netip.Prefix) string {
	all := make([]string, len(list))
	for i, p := range list {
		all[i] = p.String()
	}
	return strings.Join(all, " ")
}
