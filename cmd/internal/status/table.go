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
// With an earlier sample the traffic is told in bytes a second as well; the zero Sample is none.
func Write(w io.Writer, now, before Sample) error {
	var b strings.Builder
	s := &now.Status
	fmt.Fprintf(&b, "%s %s on %s  %s  UDP port %d\n", s.Role, clean(s.Name), clean(s.Interface), addresses(s.Addresses), s.Port)
	fmt.Fprintf(&b, "portal: %s\n", portal(s.Portal, now.At))
	for i := range s.Relays {
		r := &s.Relays[i]
		fmt.Fprintf(&b, "relay %s: %s, %s", clean(r.Name), r.Server, clean(r.State))
		if r.RoundTrip > 0 {
			fmt.Fprintf(&b, ", %s away", span(r.RoundTrip))
		}
		if r.Reason != "" {
			fmt.Fprintf(&b, " (%s)", clean(r.Reason))
		}
		b.WriteByte('\n')
	}
	if len(s.Peers) == 0 {
		b.WriteString("\nno peers: the portal allows none to this node yet\n")
	} else {
		b.WriteByte('\n')
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

func portal(p edge.PortalStatus, now time.Time) string {
	if p.Up {
		return "connected for " + span(now.Sub(p.Since))
	}
	text := "not connected"
	if !p.Since.IsZero() {
		text += " for " + span(now.Sub(p.Since))
	}
	if p.Why != "" {
		text += ": " + clean(p.Why)
	}
	return text
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
	for i := range now.Status.Peers {
		p := &now.Status.Peers[i]
		row := []string{clean(p.Name), clean(p.State), PathOf(p), age(p.LastHandshake, now.At), rtt(p.RoundTrip), size(p.RxBytes), size(p.TxBytes)}
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
			explain(b, &now.Status.Peers[i-1], now.At)
		}
	}
}

func explain(b *strings.Builder, p *edge.PeerStatus, now time.Time) {
	if p.Explanation != "" {
		fmt.Fprintf(b, "  %s\n", clean(p.Explanation))
	}
	if c := p.LastClose; c != nil {
		fmt.Fprintf(b, "  last close %s: %s", age(c.At, now), c.Reason)
		if c.Cause != "" {
			fmt.Fprintf(b, ", %s", clean(c.Cause))
		}
		b.WriteByte('\n')
	}
}

// PathOf tells how a peer is reached: direct ADDRESS, relay NAME, or -.
func PathOf(p *edge.PeerStatus) string {
	switch {
	case p.Relay != "":
		return "relay " + clean(p.Relay)
	case p.Endpoint.IsValid():
		return "direct " + p.Endpoint.String()
	}
	return "-"
}

// rates are unknown for a peer that was not there, or was counted anew.
func rates(p *edge.PeerStatus, now, before Sample) (in, out string) {
	seconds := now.At.Sub(before.At).Seconds()
	for i := range before.Status.Peers {
		old := &before.Status.Peers[i]
		if old.Name == p.Name && p.RxBytes >= old.RxBytes && p.TxBytes >= old.TxBytes && seconds > 0 {
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
	return fmt.Sprintf("%.3g Gbit/s", bits)
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

func rtt(d time.Duration) string {
	if d <= 0 {
		return "-"
	}
	return span(d)
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
