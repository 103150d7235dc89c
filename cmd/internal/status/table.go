package status

import (
	"cmp"
	"fmt"
	"io"
	"maps"
	"net/netip"
	"slices"
	"strings"
	"time"
	"unicode"

	"github.com/sluice-vpn/sluice/ice/edge"
)

// Sample is a status and when it was taken.
type Sample struct {
	At     time.Time
	Status edge.Status
}

// View says how a status is to look. The zero value is for a pipe.
type View struct {
	// Width is how many columns there are; 0: Columns.
	Width int
	// Rates has columns for the traffic in bits a second, which an earlier sample tells.
	Rates bool
}

// Write describes a node for a person: itself, portal and relays, what is wrong, then a table of peers with what there is to
// explain below each. The zero Sample is no earlier one.
func (v View) Write(w io.Writer, now, before Sample) error {
	var b strings.Builder
	s := &now.Status
	if v.Width == 0 {
		v.Width = Columns
	}
	if s.SignIn.Reason != "" {
		v.writeSignedOut(&b, s, now.At)
		_, err := io.WriteString(w, b.String())
		return err
	}
	v.say(&b, "", "%s %s on %s: %s, running for %s", s.Role, s.Name, s.Interface, addresses(s.Addresses), Span(now.At.Sub(s.Since)))
	if approved := s.Offers.Approved(); len(approved) > 0 {
		v.say(&b, "", "offers %s", prefixes(approved))
	}
	if s.ListenPort > 0 { // else the interface is not up
		v.say(&b, "", "UDP port %d%s", s.ListenPort, seenAs(s.Mappings))
	}
	if s.Identity != "" {
		v.say(&b, "", "identity %s", s.Identity)
	}
	v.writePortal(&b, s.Portal, now.At)
	v.writeRelays(&b, s)
	v.writeRemarks(&b, s)
	v.writeLost(&b, s.Lost)
	b.WriteByte('\n')
	v.writePeers(&b, now, before)
	_, err := io.WriteString(w, b.String())
	return err
}

// writeSignedOut describes a program that has no node to speak of.
func (v View) writeSignedOut(b *strings.Builder, s *edge.Status, now time.Time) {
	v.say(b, "", "%s on %s: signed out for %s (%s)", s.Role, s.Interface, Span(now.Sub(s.SignIn.Since)), s.SignIn.Reason)
	v.say(b, "", "%s", s.SignIn.Why)
	v.writeRemarks(b, s)
}

// writeRemarks tells what is wrong and what may be in the way.
func (v View) writeRemarks(b *strings.Builder, s *edge.Status) {
	if s.SignIn.Problem != "" {
		v.say(b, "", "PROBLEM: the token is not taken: %s", s.SignIn.Problem)
	}
	if s.Problem != "" {
		v.say(b, "", "PROBLEM: %s", s.Problem)
	}
	for _, note := range s.Notes {
		v.say(b, "", "NOTE: %s", note)
	}
}

// lostWhere says in words where the packets of a counter were lost.
var lostWhere = map[string]string{
	"tun_read_dropped":      "on their way into the tunnel, which was too slow for them",
	"tun_read_unserved":     "on their way into the tunnel, of a kind that it cannot cut",
	"tun_read_malformed":    "on their way into the tunnel, which were no IP packets",
	"drop_too_big":          "too long for a UDP datagram",
	"drop_staged_full":      "while too many waited for a session",
	"drop_send_stalled":     "because the UDP socket took nothing more",
	"udp_send_no_buffer":    "because the network device took nothing more",
	"udp_send_too_big":      "too long for the path",
	"udp_receive_dropped":   "in front of the UDP socket, which was read too slowly",
	"udp_receive_truncated": "longer than a datagram can be",
	"tun_write_refused":     "which the kernel refused to receive",
	"drop_tun_full":         "because the interface took nothing more",
	"tun_write_dropped":     "by the kernel behind the tunnel",
}

// writeLost tells how many packets were lost, and where, the most first.
func (v View) writeLost(b *strings.Builder, lost map[string]uint64) {
	names := slices.SortedFunc(maps.Keys(lost), func(x, y string) int {
		return cmp.Or(cmp.Compare(lost[y], lost[x]), cmp.Compare(x, y))
	})
	for _, name := range names {
		v.say(b, "", "LOST: %s %s (%s)", packets(lost[name]), lostWhere[name], name)
	}
}

// say writes something in words, on as many lines as it takes.
func (v View) say(b *strings.Builder, indent, format string, a ...any) {
	for _, line := range Wrap(clean(fmt.Sprintf(format, a...)), indent, indent+"  ", v.Width) {
		b.WriteString(line + "\n")
	}
}

// seenAs tells what relays see of our socket. A NAT that shows several of them the same address lets paths be direct more often.
func seenAs(mappings []edge.MappingStatus) string {
	if len(mappings) == 0 {
		return ""
	}
	var mapped []string
	ports := map[uint16]bool{}
	for _, m := range mappings {
		if text := m.Mapped.String(); !slices.Contains(mapped, text) {
			mapped = append(mapped, text)
		}
		if m.Mapped.Addr().Is4() {
			ports[m.Mapped.Port()] = true
		}
	}
	text := ", seen from outside as " + strings.Join(mapped, " ")
	if len(ports) > 1 {
		text += ": the NAT before us has another port for each destination (symmetric), which makes direct paths rare"
	}
	return text
}

func (v View) writeRelays(b *strings.Builder, s *edge.Status) {
	for i := range s.Relays {
		r := &s.Relays[i]
		text := fmt.Sprintf("relay %s: %s, %s", r.Name, r.Server, r.State)
		if r.RoundTripS > 0 {
			text += fmt.Sprintf(", %s round trip", Span(seconds(r.RoundTripS)))
		}
		if r.Reason != "" {
			text += fmt.Sprintf(" (%s)", r.Reason)
		}
		v.say(b, "", "%s", text)
	}
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

func (v View) writePortal(b *strings.Builder, p edge.PortalStatus, now time.Time) {
	text := "portal: "
	if !p.Up {
		text += "not "
	}
	text += "connected"
	if !p.Since.IsZero() {
		text += " for " + Span(now.Sub(p.Since))
	}
	if !p.Up && p.Why != "" {
		text += ": " + p.Why
	}
	v.say(b, "", "%s", text)
	if p.Refused != "" {
		v.say(b, "", "PROBLEM: the portal refuses this node: %s", p.Refused)
	}
	if p.AheadS >= clockAhead || p.AheadS <= -clockAhead {
		v.say(b, "", "PROBLEM: the portal's clock and ours are %s apart", Span(seconds(max(p.AheadS, -p.AheadS))))
	}
}

// writePeers makes the columns first, because the explanations between them must not count for their widths. Peers that are away
// and of which there is nothing to tell come last, together.
func (v View) writePeers(b *strings.Builder, now, before Sample) {
	var shown []*edge.ConnectionStatus
	var away []string
	for i := range now.Status.Connections {
		if p := &now.Status.Connections[i]; absent(p) {
			away = append(away, p.Peer)
		} else {
			shown = append(shown, p)
		}
	}
	if len(now.Status.Connections) == 0 {
		v.say(b, "", "%s", Lonely(&now.Status))
	}
	if len(shown) > 1 {
		v.say(b, "", "%s", summary(shown, len(away)))
	}
	if len(shown) > 0 {
		lines := v.columns(shown, now, before)
		b.WriteString(lines[0] + "\n")
		for i, p := range shown {
			b.WriteString(lines[i+1] + "\n")
			v.explain(b, p, now.At)
			v.writeRoutes(b, now.Status.Routes, p.Peer)
		}
	}
	if len(away) > 0 {
		v.say(b, "", "not signed in to the portal: %s", strings.Join(away, ", "))
		for _, peer := range away {
			v.writeRoutes(b, now.Status.Routes, peer)
		}
	}
	if len(now.Status.Connections) > 0 && len(now.Status.Awaited) > 0 {
		v.say(b, "", "never signed in so far: %s", strings.Join(now.Status.Awaited, ", "))
	}
}

// Lonely says why a node has no peers.
func Lonely(s *edge.Status) string {
	switch n := len(s.Awaited); {
	case n > 0:
		return fmt.Sprintf("no peers yet: %s never signed in so far", strings.Join(s.Awaited, ", ")+map[bool]string{true: " has", false: " have"}[n == 1])
	case len(s.Addresses) == 0:
		return "no peers yet: this node has not signed in"
	case s.Role == "gateway":
		return "no peers: the portal has no node that may reach this gateway (sluice portal node add, or set -allow)"
	}
	return "no peers: the portal has no gateway that this client may reach (sluice portal node add -role gateway, or set -allow)"
}

// absent: the peer is not there, and has left in good order if it ever was.
func absent(p *edge.ConnectionStatus) bool {
	return p.State == "none" && !p.Online && p.Distrust == "" && (p.LastClose == nil || p.LastClose.Cause == "" && p.LastClose.Reason == "peer_closed")
}

// states are those of connections, the best first.
var states = []string{"up", "idle", "handshake", "checking", "candidates", "waiting", "none"}

// summary counts peers by state, and those with a session by path.
func summary(list []*edge.ConnectionStatus, away int) string {
	total, relayed := map[string]int{}, map[string]int{}
	for _, p := range list {
		total[p.State]++
		if p.Via == "relay" {
			relayed[p.State]++
		}
	}
	var parts []string
	for _, state := range states {
		if total[state] == 0 {
			continue
		}
		part := fmt.Sprintf("%d %s", total[state], state)
		if relayed[state] > 0 {
			part += fmt.Sprintf(" (%d relayed)", relayed[state])
		}
		parts = append(parts, part)
	}
	if away > 0 {
		parts = append(parts, fmt.Sprintf("%d away", away))
	}
	return fmt.Sprintf("%d peers: %s", len(list)+away, strings.Join(parts, ", "))
}

// roomy is from how many columns on a table has room for both sums and rates.
const roomy = 110

// columns are the table's lines, the header first.
func (v View) columns(list []*edge.ConnectionStatus, now, before Sample) []string {
	header := []string{"PEER", "STATE", "PATH", "UP FOR", "HANDSHAKE", "RTT"}
	sums := !v.Rates || v.Width >= roomy
	if sums {
		header = append(header, "RECEIVED", "SENT")
	}
	if v.Rates {
		header = append(header, "IN", "OUT")
	}
	rows := [][]string{header}
	for _, p := range list {
		up := "-"
		if !p.Since.IsZero() {
			up = Span(now.At.Sub(p.Since))
		}
		row := []string{
			clean(p.Peer), clean(p.State), cmp.Or(clean(p.Via), "-"), up, age(p.LastHandshake, now.At), rtt(p.RTTS),
		}
		if sums {
			row = append(row, size(p.RxBytes), size(p.TxBytes))
		}
		if v.Rates {
			in, out := rates(p, now, before)
			row = append(row, in, out)
		}
		rows = append(rows, row)
	}
	return Table(rows, v.Width)
}

func (v View) explain(b *strings.Builder, p *edge.ConnectionStatus, now time.Time) {
	if text := historyText(p.History, now); v.Rates && text != "" {
		v.say(b, "  ", "%s", text)
	}
	if p.Explanation != "" {
		v.say(b, "  ", "%s", p.Explanation)
	}
	if p.LastClose != nil {
		v.say(b, "  ", "%s", closeText(p.LastClose, now))
	}
}

// closeText says how the latest connection ended.
func closeText(c *edge.CloseStatus, now time.Time) string {
	text := "last close " + age(c.At, now)
	if c.LastedS > 0 {
		text += ", after " + Span(seconds(c.LastedS))
	}
	text += ": " + c.Reason
	if c.Cause != "" {
		text += ", " + c.Cause
	}
	if c.PeerReports != nil {
		text += "; the peer reports " + reported(c.PeerReports)
	}
	return text
}

// writeRoutes tells which routes lead to the peer, and which that the portal gives are refused.
func (v View) writeRoutes(b *strings.Builder, routes []edge.RouteStatus, peer string) {
	var used []netip.Prefix
	for _, r := range routes {
		if r.Peer == peer && r.State == edge.RouteUsed {
			used = append(used, r.Prefix)
		}
	}
	if len(used) > 0 {
		v.say(b, "  ", "leads to %s", prefixes(used))
	}
	for _, r := range routes {
		if r.Peer == peer && r.State != edge.RouteUsed {
			v.say(b, "  ", "REFUSED: %v of %s: %s", r.Prefix, peer, r.Why)
		}
	}
}

// reported is what a peer says of the end: its reason, and what became of handshake messages there.
func reported(r *edge.PeerReport) string {
	var counts []string
	for _, name := range slices.Sorted(maps.Keys(r.Counters)) {
		counts = append(counts, fmt.Sprintf("%s %d", strings.ReplaceAll(name, "_", " "), r.Counters[name]))
	}
	if len(counts) == 0 {
		return r.Reason
	}
	return fmt.Sprintf("%s (%s)", r.Reason, strings.Join(counts, ", "))
}

// PeerPath is how a peer is reached. The zero value: not at all.
type PeerPath struct {
	Via      string         `json:"via,omitempty"`   // direct or relay
	Relay    string         `json:"relay,omitempty"` // the name of ours; "": it is the peer's
	Endpoint netip.AddrPort `json:"endpoint,omitzero"`
}

// PathOf is the path of a connection.
func PathOf(p *edge.ConnectionStatus) PeerPath {
	return PeerPath{p.Via, p.Relay, p.Endpoint}
}

// String shows direct ADDRESS, relay NAME ADDRESS (ours), relay ADDRESS (the peer's), or no path.
func (p PeerPath) String() string {
	text := clean(p.Via)
	if p.Relay != "" {
		text += " " + clean(p.Relay)
	}
	if p.Endpoint.IsValid() {
		text += " " + p.Endpoint.String()
	}
	return cmp.Or(text, "no path")
}

// rates are unknown for a peer that was not there, or was counted anew.
func rates(p *edge.ConnectionStatus, now, before Sample) (in, out string) {
	seconds := now.At.Sub(before.At).Seconds() // of the zero Sample, nothing is known
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

func rtt(s float64) string {
	if s <= 0 {
		return "-"
	}
	return Span(seconds(s))
}

// seconds is a number of them as a duration.
func seconds(s float64) time.Duration { return time.Duration(s * float64(time.Second)) }

func age(t, now time.Time) string {
	switch {
	case t.IsZero():
		return "never"
	case now.Sub(t) < time.Second:
		return "just now"
	}
	return Span(now.Sub(t)) + " ago"
}

// Span is a duration with as many digits as a person wants.
func Span(d time.Duration) string {
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
