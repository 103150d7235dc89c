package member

import (
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"slices"
	"strings"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/tun/host"
)

// machine makes the operating system follow the portal. The goroutine that calls apply owns it, and after that one who calls
// Close.
type machine struct {
	options    Options
	logger     *slog.Logger
	begun      bool // what lasts until Close is there
	up         bool // addresses and routes were set once
	routing    *host.Routing
	forwarding *host.Forwarding
	shadowed   []netip.Prefix // what was told last
}

func newMachine(o Options, logger *slog.Logger) *machine { return &machine{options: o, logger: logger} }

// apply sets addresses and routes, and for a gateway forwarding. What fails is tried again with the portal's next answer.
func (m *machine) apply(answer protocol.Sync) error {
	if err := m.begin(); err != nil {
		return err
	}
	m.begun = true
	routes, shadowed := routesOf(answer, m.options.Routes)
	if !slices.Equal(shadowed, m.shadowed) {
		m.shadowed = shadowed
		m.logger.Warn("routes of other gateways overlap with what this one offers, and are not used", "routes", texts(shadowed))
	}
	if err := errors.Join(m.routing.SetAddresses(answer.Addresses), m.routing.Set(routes)); err != nil {
		return err
	}
	if !m.up {
		m.up = true
		m.logger.Info(fmt.Sprintf("%s %s is up", m.options.Role, answer.Name), "interface", m.options.Interface,
			"addresses", texts(answer.Addresses), "routes", texts(routes), "peers", len(answer.Peers))
	}
	return nil
}

// begin makes what lasts until Close.
func (m *machine) begin() (err error) {
	if m.routing == nil {
		if err := host.SetUp(m.options.Interface); err != nil {
			return err
		}
		m.routing, err = host.NewRouting(host.RoutingConfig{
			Interface: m.options.Interface, Table: m.options.Table, Mark: m.options.Mark,
		})
		if err != nil {
			m.routing = nil
			return err
		}
	}
	if m.forwarding != nil || m.options.Role != protocol.Gateway {
		return nil
	}
	m.forwarding, err = host.StartForwarding(host.Forward{Interface: m.options.Interface, NoMasquerade: m.options.NoMasquerade})
	if err != nil {
		m.forwarding = nil
		return err
	}
	m.warnOfObstacles()
	return nil
}

func (m *machine) warnOfObstacles() {
	obstacles, err := m.forwarding.Obstacles()
	if err != nil || len(obstacles) == 0 {
		return
	}
	chains := make([]string, len(obstacles))
	for i, o := range obstacles {
		chains[i] = o.String()
	}
	m.logger.Warn("another firewall drops what is forwarded unless it is told otherwise: let it accept this interface"+
		" (with Docker: iptables -I DOCKER-USER -i "+m.options.Interface+" -j ACCEPT, and the same with -o)",
		"interface", m.options.Interface, "chains", strings.Join(chains, ", "))
}

// Close puts everything back.
func (m *machine) Close() error {
	var err error
	if m.forwarding != nil {
		err = m.forwarding.Close()
	}
	if m.routing != nil {
		err = errors.Join(err, m.routing.Close())
	}
	return err
}

// routesOf are the prefixes behind the peers, each once and in order, and those that are left out because they overlap with
// what this node itself offers: they would lead the network behind it into the tunnel.
func routesOf(answer protocol.Sync, own []netip.Prefix) (routes, shadowed []netip.Prefix) {
	for i := range answer.Peers {
		for _, p := range answer.Peers[i].AllowedIPs {
			p = p.Masked()
			if slices.ContainsFunc(own, func(o netip.Prefix) bool { return shadows(o, p) }) {
				shadowed = append(shadowed, p)
			} else {
				routes = append(routes, p)
			}
		}
	}
	return unique(routes), unique(shadowed)
}

// shadows tells whether the offered prefix keeps a peer's out. A default route says nothing about the network behind this node,
// and tunnel addresses are never there.
func shadows(own, p netip.Prefix) bool {
	inTunnel := func(o netip.Prefix) bool { return o.Bits() <= p.Bits() && o.Overlaps(p) }
	return own.Overlaps(p) && (own.Bits() == 0) == (p.Bits() == 0) && !slices.ContainsFunc(protocol.DefaultOverlay(), inTunnel)
}

func unique(list []netip.Prefix) []netip.Prefix {
	slices.SortFunc(list, netip.Prefix.Compare)
	return slices.Compact(list)
}

func texts(list []netip.Prefix) string {
	all := make([]string, len(list))
	for i, p := range list {
		all[i] = p.String()
	}
	return strings.Join(all, " ")
}
