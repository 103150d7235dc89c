package status

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"net"
	"slices"
	"strings"

	"github.com/sluice-vpn/sluice/ice/netcheck"
)

// NetcheckProblems are the reasons why a connection will not come about here, or only over a relay that is not there.
func NetcheckProblems(r *netcheck.Report) (list []string) {
	reached := len(r.Portals) == 0
	for _, p := range r.Portals {
		reached = reached || p.TCP == netcheck.Works && p.TLS == netcheck.Works
	}
	if !reached {
		list = append(list, "no portal is reached")
	}
	if r.UDP == netcheck.Blocked || r.UDP == netcheck.Failed {
		list = append(list, "UDP does not get through")
	}
	return list
}

// WriteNetcheck describes a network for a person.
func (v View) WriteNetcheck(out io.Writer, r *netcheck.Report) error {
	if v.Width == 0 {
		v.Width = Columns
	}
	var b strings.Builder
	v.say(&b, "", "UDP: %s", udpText(r))
	v.writeFamily(&b, "IPv4", &r.IPv4)
	v.writeFamily(&b, "IPv6", &r.IPv6)
	for i := range r.Portals {
		v.writePortalCheck(&b, &r.Portals[i])
	}
	if len(r.Servers) > 0 {
		rows := [][]string{{"RELAY", "ADDRESS", "RTT", "SEES US AS"}}
		for _, s := range r.Servers {
			row := []string{clean(s.Name), s.Server.String(), "-", "no answer"}
			if s.Answered {
				row[2], row[3] = rtt(s.RTTS), s.Mapped.String()
			}
			rows = append(rows, row)
		}
		b.WriteString("\n" + strings.Join(Table(rows, v.Width), "\n") + "\n")
	}
	if len(r.Proxy) > 0 {
		b.WriteByte('\n')
		for _, name := range slices.Sorted(maps.Keys(r.Proxy)) {
			v.say(&b, "", "%s=%s", name, r.Proxy[name])
		}
		v.say(&b, "", "NOTE: Sluice does not go through proxies: the portal's TCP port must be reached without")
	}
	_, err := io.WriteString(out, b.String())
	return err
}

func udpText(r *netcheck.Report) string {
	portal := slices.ContainsFunc(r.Portals, func(p netcheck.PortalReport) bool { return p.TCP == netcheck.Works })
	switch {
	case r.UDP == netcheck.Works:
		return "works"
	case r.UDP == netcheck.Untested:
		return "not tested: no relay is known (-relay ADDRESS:PORT)"
	case r.UDP == netcheck.Failed:
		return "PROBLEM: this machine has no way to the relays"
	case portal:
		return "PROBLEM: no relay answers, while the portal's TCP port does: a network on the way blocks UDP, or no relay runs there;" +
			" without UDP there are no tunnels"
	}
	return "PROBLEM: no relay answers, and the portal neither: this machine is not connected, or all of them are down"
}

// mappings and filterings say what a behavior means for direct paths.
var mappings = map[netcheck.Behavior]string{
	netcheck.NoNAT:                   "no NAT: relays see this machine's own address",
	netcheck.EndpointIndependent:     "one outer port for all destinations (endpoint-independent): direct paths work",
	netcheck.NotPortDependent:        "one outer port for all ports of a destination; whether it is another for another address cannot be told by a relay with one address",
	netcheck.AddressDependent:        "another outer port for each address (address-dependent): direct paths to others behind such NATs are rare",
	netcheck.AddressAndPortDependent: "another outer port for each destination (address- and port-dependent, symmetric): direct paths to others behind NATs are rare",
	netcheck.Dependent:               "another outer port for each destination (symmetric): direct paths to others behind NATs are rare",
}

var filterings = map[netcheck.Behavior]string{
	netcheck.EndpointIndependent:     "lets in packets from anybody (endpoint-independent)",
	netcheck.NotPortDependent:        "lets in packets from other ports of who was sent to",
	netcheck.AddressDependent:        "lets in packets from addresses that were sent to (address-dependent)",
	netcheck.AddressAndPortDependent: "lets in packets only from who was sent to (address- and port-dependent)",
}

// evidences say why nothing is known.
var evidences = map[netcheck.Evidence]string{
	netcheck.OneServer: "not known: that takes two relays at different addresses, or one with two (RFC 5780)",
	netcheck.NoAnswer:  "not known",
}

func (v View) writeFamily(b *strings.Builder, name string, f *netcheck.Family) {
	if !f.Address.IsValid() {
		v.say(b, "", "%s: no route", name)
		return
	}
	text := "from " + f.Address.String()
	if f.Via != "" {
		text += " on " + f.Via
	}
	if f.UDP != netcheck.Untested {
		text += ", UDP " + string(f.UDP)
	} else {
		text += ", not tested with UDP: no relay has an address of it"
	}
	v.say(b, "", "%s: %s", name, text)
	if f.UDP != netcheck.Works {
		return
	}
	kept := ""
	if f.PortKept && f.Mapping != netcheck.NoNAT {
		kept = "; the port is kept"
	}
	v.say(b, "  ", "mapping: %s%s", cmp.Or(mappings[f.Mapping], evidences[f.MappingEvidence], "not known"), kept)
	if f.Mapping == netcheck.NoNAT && f.Filtering == netcheck.Unknown {
		v.say(b, "  ", "filtering: not known: a firewall may be there all the same, and that takes a relay with two addresses or ports (RFC 5780)")
		return
	}
	unknown := "not known: that takes a relay with two addresses or ports (RFC 5780)"
	v.say(b, "  ", "filtering: %s", cmp.Or(filterings[f.Filtering], unknown))
}

func (v View) writePortalCheck(b *strings.Builder, p *netcheck.PortalReport) {
	var text string
	switch p.TCP {
	case netcheck.Works:
		text = fmt.Sprintf("TCP works, connected in %s", rtt(p.ConnectS))
	case netcheck.Refused:
		text = "PROBLEM: refused: no portal listens there, or a firewall rejects it"
	case netcheck.Blocked:
		text = "PROBLEM: no answer: the address is wrong, or a network on the way blocks this port"
		if _, port, _ := net.SplitHostPort(p.Portal); p.Port443 == netcheck.Works || p.Port443 == netcheck.Refused {
			text += fmt.Sprintf("; port 443 of that machine answers, so it is port %s that is blocked: let the portal listen there (sluice portal -listen :443)", port)
		}
	default:
		text = "PROBLEM: " + p.Error
	}
	switch {
	case p.TCP != netcheck.Works:
	case p.TLS == netcheck.Works:
		text += ", TLS works"
	case p.OtherCertificate:
		text += ", PROBLEM: another certificate than the token says: a box on the way opens what is encrypted, or the portal is another one"
	default:
		text += ", PROBLEM: no TLS: " + p.Error
	}
	v.say(b, "", "portal %s: %s", p.Portal, text)
}
