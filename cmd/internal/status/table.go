package status

import (
	"fmt"
	"io"
	"net/netip"
	"strings"
	"text/tabwriter"
	"time"
	"unicode"

	"github.com/sluice-vpn/sluice/ice/edge"
)

// Sample is a status and when it was taken.
type Sample struct {
	At     time.Time
	Status edge.Status
}

// Write describes a node for a person: itself, portal, relays, then a table of peers with what there is to explain below each.
// With an earlier sample the traffic is told in bits a second as well; the zero Sample is none.
func Write(w io.Writer, now, before Sample) error {
	var b strings.Builder
	s := &now.Status
	fmt.Fprintf(&b, "%s %s on %s: %s, UDP port %d, running for %s\n",
		clean(string(s.Role)), clean(s.Name), clean(s.Interface), addresses(s.Addresses), s.ListenPort, span(now.At.Sub(s.Since)))
	if len(s.Routes) > 0 {
		fmt.Fprintf(&b, "offers %s\n", prefixes(s.Routes))
	}
	if s.Problem != "" {
		fmt.Fprintf(&b, "PROBLEM: %s\n", clean(s.Problem))
	}
	writePortal(&b, s.Portal, now.At)
	for i := range s.Relays {
		r := &s.Relays[i]
		fmt.Fprintf(&b, "relay %s: %s, %s", clean(r.Name), r.Server, clean(r.State))
		if r.RoundTrip > 0 {
			fmt.Fprintf(&b, ", %s round trip", span(r.RoundTrip))
		}
		if r.Reason != "" {
			fmt.Fprintf(&b, " (%s)", clean(r.Reason))
		}
		b.WriteByte('\n')
	}
	b.WriteByte('\n')
	if len(s.Connections) == 0 {
		b.WriteString("no peers: the portal lets this node talk to none yet\n")
	} else {
		writePeers(&b, now, before)
	}
	_, err := io.WriteString(w, b.String())
	return err
}

func addresses(list []netip.Prefix) string {
	if len(list) == 0 {
		return "no address yet"
	}
	texts := make([]string, len(list))
	for i, p := range list {
		texts[i] = p.Addr().String()
	}
	return strings.Join(texts, " ")
}

func prefixes(list []netip.Prefix) string {
	texts := make([]string, len(list))
	for i, p := range list {
		texts[i] = p.String()
	}
	return strings.Join(texts, " ")
}

// clockAhead is from when on a clock's difference is told, in seconds.
const clockAhead = 60

func writePortal(b *strings.Builder, p edge.PortalStatus, now time.Time) {
	b.WriteString("portal: ")
	if !p.Up {
		b.WriteString("not ")
	}
	b.WriteString("connected")
	if !p.Since.IsZero() {
		fmt.Fprintf(b, " for %s", span(now.Sub(p.Since)))
	}
	if !p.Up && p.Why != "" {
		fmt.Fprintf(b, ": %s", clean(p.Why))
	}
	b.WriteByte('\n')
	if p.Refused != "" {
		fmt.Fprintf(b, "PROBLEM: the portal refuses this node: %s\n", clean(p.Refused))
	}
	if p.AheadS >= clockAhead || p.AheadS <= -clockAhead {
		apart := time.Duration(max(p.AheadS, -p.AheadS) * float64(time.Second))
		fmt.Fprintf(b, "PROBLEM: the portal's clock and ours are %s apart\n", span(apart))
	}
}

// writePeers makes the columns first, because the explanations between them must not count for their widths.
func writePeers(b *strings.Builder, now, before Sample) {
	var columns strings.Builder
	rated := !before.At.IsZero()
	t := tabwriter.NewWriter(&columns, 0, 0, 2, ' ', 0)
	header := []string{"PEER", "STATE", "PATH", "HANDSHAKE", "RTT", "RECEIVED", "SENT"}
	if rated {
		header = append(header, "IN", "OUT")
	}
	fmt.Fprintln(t, strings.Join(header, "\t"))
	for i := range now.Status.Connections {
		p := &now.Status.Connections[i]
		row := []string{
			clean(p.Peer), clean(p.State), PathOf(p), age(p.LastHandshake, now.At), rtt(p.RTTms), size(p.RxBytes), size(p.TxBytes),
		}
		if rated {
			in, out := rates(p, now, before)
			row = append(row, in, out)
		}
		fmt.Fprintln(t, strings.Join(row, "\t"))
	}
	t.Flush() // to a strings.Builder, which takes everything
	lines := strings.Split(strings.TrimSuffix(columns.String(), "\n"), "\n")
	for i, line := range lines {
		b.WriteString(strings.TrimRight(line, " ") + "\n")
		if i > 0 {
			explain(b, &now.Status.Connections[i-1], now.At)
		}
	}
}

func explain(b *strings.Builder, p *edge.ConnectionStatus, now time.Time) {
	if p.Explanation != "" {
		fmt.Fprintf(b, "  %s\n", clean(p.Explanation))
	}
	if c := p.LastClose; c != nil {
		fmt.Fprintf(b, "  last close %s: %s", age(c.At, now), c.Reason)
		if c.Cause != "" {
			fmt.Fprintf(b, ", %s", clean(c.Cause))
		}
		if c.PeerReports != "" {
			fmt.Fprintf(b, "; the peer reports %s", clean(c.PeerReports))
		}
		b.WriteByte('\n')
	}
}

// PathOf tells how a peer is reached: direct ADDRESS, relay NAME (ours), relay ADDRESS (the peer's), or -.
func PathOf(p *edge.ConnectionStatus) string {
	switch {
	case p.Relay != "":
		return "relay " + clean(p.Relay)
	case p.Via != "" && p.Endpoint.IsValid():
		return clean(p.Via) + " " + p.Endpoint.String()
	}
	return "-"
}

// rates are unknown for a peer that was not there, or was counted anew.
func rates(p *edge.ConnectionStatus, now, before Sample) (in, out string) {
	seconds := now.At.Sub(before.At).Seconds()
	for i := range before.Status.Connections {
		old := &before.Status.Connections[i]
		if old.Peer == p.Peer && p.RxBytes >= old.RxBytes && p.TxBytes >= old.TxBytes && seconds > 0 {
			return rate(float64(p.RxBytes-old.RxBytes) / seconds), rate(float64(p.TxBytes-old.TxBytes) / seconds)
		}
	}
	return "-", "-"
}

// rate is in bits a second, as links are.
func rate(bytes float64) string {
	bits := bytes * 8
	for _, unit := range []string{"bit/s", "kbit/s", "Mbit/s"} {
		if bits < 999.5 {
			return fmt.Sprintf("%.3g %s", bits, unit)
		}
		bits /= 1000
	}
	return fmt.Sprintf("%.1f Gbit/s", bits)
}

func size(bytes uint64) string {
	if bytes < 1024 {
		return fmt.Sprintf("%d B", bytes)
	}
	value := float64(bytes)
	for _, unit := range []string{"B", "KiB", "MiB", "GiB", "TiB"} {
		if value < 1023.5 {
			return fmt.Sprintf("%.1f %s", value, unit)
		}
		value /= 1024
	}
	return fmt.Sprintf("%.1f PiB", value)
}

func rtt(ms float64) string {
	if ms <= 0 {
		return "-"
	}
	return span(time.Duration(ms * float64(time.Millisecond)))
}

func age(t, now time.Time) string {
	if t.IsZero() {
		return "never"
	}
	return span(now.Sub(t)) + " ago"
}

// span is a duration with as many digits as a person wants.
func span(d time.Duration) string {
	switch {
	case d < 0:
		return "0 s"
	case d < 10*time.Millisecond:
		return fmt.Sprintf("%.1f ms", float64(d)/float64(time.Millisecond))
	case d < time.Second:
		return fmt.Sprintf("%d ms", d.Milliseconds())
	case d < 2*time.Minute:
		return fmt.Sprintf("%d s", int(d.Seconds()))
	case d < 2*time.Hour:
		return fmt.Sprintf("%d min", int(d.Minutes()))
	case d < 48*time.Hour:
		return fmt.Sprintf("%d h", int(d.Hours()))
	}
	return fmt.Sprintf("%d days", int(d.Hours()/24))
}

// clean shows what could steer a terminal as a question mark: names and reasons come from others.
func clean(s string) string {
	return strings.Map(func(r rune) rune {
		if unicode.In(r, unicode.Cc, unicode.Cf, unicode.Zl, unicode.Zp) || r == unicode.ReplacementChar {
			return '?'
		}
		return r
	}, s)
}
