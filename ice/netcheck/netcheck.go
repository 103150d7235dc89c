// Package netcheck finds out what the network around this machine lets through: UDP, what its NATs do (RFC 5780, where a server has two
// addresses or ports, and less where it has not), IPv6, and TCP to the portal. It needs no rights and no tunnel, has sockets of its
// own, and gives facts only.
package netcheck

import (
	"context"
	"net"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"syscall"
	"time"

	"github.com/sluice-vpn/sluice/ice/signal"
)

// Config says what to ask. Limits: all that is asked at once is answered or given up within a few times Wait.
type Config struct {
	Servers []Server // STUN servers, as relays are; at most maxServers are asked
	Portals []string // host:port
	// Fingerprint is the portal's certificate's, nil: any will do.
	Fingerprint *signal.Fingerprint
	// Control is called for each socket before it is bound, nil: not.
	Control func(network, address string, c syscall.RawConn) error
	// Getenv reads proxy variables, nil: there are none.
	Getenv func(string) string
	Wait   time.Duration // for an answer; 0: 3 s
}

// Server is a STUN server.
type Server struct {
	Name string
	Addr netip.AddrPort
}

const (
	defaultWait = 3 * time.Second
	maxServers  = 16
	maxPortals  = 8
)

// State is whether something gets through.
type State string

// The states. Refused is an answer: the path works, nobody listens.
const (
	Untested State = "untested"
	Works    State = "works"
	Refused  State = "refused"
	Blocked  State = "blocked" // no answer at all
	Failed   State = "failed"  // an error of this machine's, such as no route
)

// Behavior is what a NAT's mapping or filtering depends on (RFC 4787, sections 4.1 and 5).
type Behavior string

// The behaviors. Those of two words are what fewer servers or ports can tell.
const (
	Unknown                 Behavior = "unknown"
	NoNAT                   Behavior = "no_nat"
	EndpointIndependent     Behavior = "endpoint_independent"
	AddressDependent        Behavior = "address_dependent"
	AddressAndPortDependent Behavior = "address_and_port_dependent"
	Dependent               Behavior = "dependent"          // on the address, or on address and port
	NotPortDependent        Behavior = "not_port_dependent" // perhaps on the address
)

// Evidence is what a behavior was told by.
type Evidence string

// The evidence there can be, from the best.
const (
	OtherAddress Evidence = "other_address" // a server with two addresses and two ports: RFC 5780, sections 4.3 and 4.4
	OtherPort    Evidence = "other_port"    // a server with two ports of one address
	OtherServers Evidence = "other_servers" // several servers
	OneServer    Evidence = "one_server"    // which tells little
	NoAnswer     Evidence = "no_answer"
)

// Report is what was found. Durations are in seconds.
type Report struct {
	At      time.Time         `json:"at"`
	UDP     State             `json:"udp"`
	IPv4    Family            `json:"ipv4"`
	IPv6    Family            `json:"ipv6"`
	Servers []ServerReport    `json:"servers"` // by round trip, those without an answer last
	Portals []PortalReport    `json:"portals"`
	Proxy   map[string]string `json:"proxy"` // variables, without passwords
}

// Family is what there is of an address family.
type Family struct {
	Address netip.Addr       `json:"address,omitzero"` // this machine's own towards others; not valid: no route
	Via     string           `json:"interface,omitempty"`
	UDP     State            `json:"udp"`
	Mapped  []netip.AddrPort `json:"mapped"` // as servers see it, each once
	// Mapping and Filtering are of the NATs before this machine.
	Mapping           Behavior `json:"mapping"`
	MappingEvidence   Evidence `json:"mapping_evidence"`
	Filtering         Behavior `json:"filtering"`
	FilteringEvidence Evidence `json:"filtering_evidence"`
	PortKept          bool     `json:"port_kept"` // the mapped port is the local one
}

// ServerReport is what came of one server.
type ServerReport struct {
	Name     string         `json:"name"`
	Server   netip.AddrPort `json:"server"`
	Answered bool           `json:"answered"`
	RTTS     float64        `json:"rtt_s,omitempty"`
	Mapped   netip.AddrPort `json:"mapped,omitzero"`
	Other    netip.AddrPort `json:"other,omitzero"` // its other address and port (RFC 5780, section 7.4)
	Error    string         `json:"error,omitempty"`
}

// PortalReport is what came of one portal. TLS is whether the portal, with its certificate, answers there.
type PortalReport struct {
	Portal   string         `json:"portal"`
	Address  netip.AddrPort `json:"address,omitzero"`
	TCP      State          `json:"tcp"`
	ConnectS float64        `json:"connect_s,omitempty"`
	TLS      State          `json:"tls"`
	// OtherCertificate: somebody else answers, or a box in between opens what is encrypted.
	OtherCertificate bool   `json:"other_certificate"`
	Port443          State  `json:"port_443"` // of the same machine
	Error            string `json:"error,omitempty"`
}

// Check asks all at once. It ends early with ctx, with what is known then.
func Check(ctx context.Context, c Config) Report {
	if c.Wait == 0 {
		c.Wait = defaultWait
	}
	c.Servers, c.Portals = c.Servers[:min(len(c.Servers), maxServers)], c.Portals[:min(len(c.Portals), maxPortals)]
	r := Report{At: time.Now(), UDP: Untested, Servers: []ServerReport{}, Portals: make([]PortalReport, len(c.Portals)), Proxy: proxies(c.Getenv)}
	var tasks sync.WaitGroup
	for i, portal := range c.Portals {
		tasks.Go(func() { r.Portals[i] = c.portal(ctx, portal) })
	}
	var four, six []ServerReport
	tasks.Go(func() { r.IPv4, four = c.family(ctx, "udp4", c.of(false)) })
	tasks.Go(func() { r.IPv6, six = c.family(ctx, "udp6", c.of(true)) })
	tasks.Wait()
	r.Servers = append(r.Servers, append(four, six...)...)
	slices.SortStableFunc(r.Servers, byRoundTrip)
	switch {
	case r.IPv4.UDP == Works || r.IPv6.UDP == Works:
		r.UDP = Works
	case r.IPv4.UDP == Blocked || r.IPv6.UDP == Blocked:
		r.UDP = Blocked
	case r.IPv4.UDP == Failed || r.IPv6.UDP == Failed:
		r.UDP = Failed
	}
	return r
}

func byRoundTrip(x, y ServerReport) int {
	switch {
	case x.Answered != y.Answered && x.Answered, x.Answered && x.RTTS < y.RTTS:
		return -1
	case x.Answered != y.Answered, x.RTTS > y.RTTS:
		return 1
	}
	return 0
}

// of are the servers of one family.
func (c *Config) of(v6 bool) (list []Server) {
	for _, s := range c.Servers {
		if s.Addr.Addr().Unmap().Is6() == v6 {
			list = append(list, Server{s.Name, netip.AddrPortFrom(s.Addr.Addr().Unmap(), s.Addr.Port())})
		}
	}
	return list
}

// proxies are the variables that programs take for proxies, without passwords.
func proxies(getenv func(string) string) map[string]string {
	found := map[string]string{}
	for _, name := range []string{"ALL_PROXY", "HTTPS_PROXY", "HTTP_PROXY", "NO_PROXY"} {
		for _, name := range []string{name, strings.ToLower(name)} {
			if getenv == nil || getenv(name) == "" {
				continue
			}
			value := getenv(name)
			if u, err := url.Parse(value); err == nil && u.User != nil {
				u.User = nil
				value = u.String()
			} else if at := strings.LastIndexByte(value, '@'); at >= 0 { // of a form that is not understood
				value = value[at+1:]
			}
			found[name] = value
		}
	}
	return found
}

// source is this machine's own address towards another, which is not sent anything, and its interface.
func (c *Config) source(ctx context.Context, network string, to netip.AddrPort) (own netip.Addr, via string) {
	conn, err := (&net.Dialer{Control: c.Control}).DialContext(ctx, network, to.String())
	if err != nil {
		return own, ""
	}
	defer conn.Close()
	own = conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
	links, _ := net.Interfaces() // nil: it is not known
	for _, l := range links {
		addresses, _ := l.Addrs()
		for _, a := range addresses {
			if prefix, err := netip.ParsePrefix(a.String()); err == nil && prefix.Addr().Unmap() == own {
				return own, l.Name
			}
		}
	}
	return own, ""
}
