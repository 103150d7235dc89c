package status

import (
	"cmp"
	"fmt"
	"io"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sluice-vpn/sluice/ice/edge"
)

// Verdict is what becomes of packets to an address or a peer, in one word.
type Verdict string

// The verdicts, in the order in which they are looked for.
const (
	VerdictOwn          Verdict = "own_address"     // it is the node's own
	VerdictNotSignedIn  Verdict = "not_signed_in"   // the portal has not said anything yet, or refuses the node
	VerdictAwaited      Verdict = "never_signed_in" // the peer
	VerdictRefused      Verdict = "route_refused"   // the only route there is refused by this node
	VerdictNoRoute      Verdict = "no_route"        // no peer leads there
	VerdictNotTunneled  Verdict = "not_tunneled"    // a peer leads there, the kernel sends it elsewhere
	VerdictUp           Verdict = "up"              // it goes through the tunnel
	VerdictDistrusted   Verdict = "distrusted"      // the peer has another identity
	VerdictConnecting   Verdict = "connecting"      // a connection is being made
	VerdictNotConnected Verdict = "not_connected"
)

// Why is all that decides about packets to Subject: an address, or a peer, whose tunnel address then counts. Facts only.
type Why struct {
	At      time.Time  `json:"at"`
	Node    string     `json:"node"`
	Subject string     `json:"subject"`
	Verdict Verdict    `json:"verdict"`
	Address netip.Addr `json:"address,omitzero"`
	Peer    string     `json:"peer,omitempty"`
	// Route is the one that is used, Refused are those that would lead there, or to the peer.
	Route   netip.Prefix       `json:"route,omitzero"`
	Refused []edge.RouteStatus `json:"refused"`
	// Kernel is where the kernel sends packets to the address, nil: it does not say.
	Kernel     *KernelRoute           `json:"kernel_route,omitempty"`
	Interface  string                 `json:"interface"`
	Connection *edge.ConnectionStatus `json:"connection,omitempty"`
	Portal     edge.PortalStatus      `json:"portal"`
	MTU        MTU                    `json:"mtu"`
	// Drops are the packets that the node has dropped for any peer, by the counter's name, those of 0 left out. New are those of the last NewS
	// seconds.
	Drops map[string]uint64 `json:"drops"`
	New   map[string]uint64 `json:"new_drops,omitempty"`
	NewS  float64           `json:"new_drops_s,omitempty"`
	// Problem and Notes are those of the status: the host's firewall among them.
	Problem string   `json:"problem,omitempty"`
	Notes   []string `json:"notes,omitempty"`
}

// KernelRoute is a route of the kernel.
type KernelRoute struct {
	Interface string     `json:"interface,omitempty"`
	Router    netip.Addr `json:"router,omitzero"`
	Source    netip.Addr `json:"source,omitzero"`
	Table     int        `json:"table,omitempty"`
	// Unreachable: the kernel refuses to send there.
	Unreachable bool `json:"unreachable,omitempty"`
}

// MTU is in bytes: of the tunnel's interface, of the way to the peer's endpoint (0: not known), and what the tunnel adds to a packet there.
type MTU struct {
	Tunnel   int `json:"tunnel"`
	Outer    int `json:"outer,omitempty"`
	Overhead int `json:"overhead,omitempty"`
}

// Explain finds what a status says about an address or a peer's name. Kernel, MTU and Drops are not of a status. Not ok: there is no peer of
// that name.
func Explain(s *edge.Status, subject string) (w Why, ok bool) {
	w = Why{Node: s.Name, Subject: subject, Interface: s.Interface, Portal: s.Portal, Refused: []edge.RouteStatus{}, Problem: s.Problem, Notes: s.Notes}
	if a, err := netip.ParseAddr(subject); err == nil {
		w.Address = a.Unmap()
		w.lookUp(s)
	} else if w.Peer = subject; !w.ofPeer(s) {
		return w, false
	}
	for i := range s.Connections {
		if s.Connections[i].Peer == w.Peer {
			w.Connection = &s.Connections[i]
		}
	}
	w.Verdict = w.judge(s)
	return w, true
}

// lookUp finds the peer of the address: by the longest prefix that is used, else by one that is refused.
func (w *Why) lookUp(s *edge.Status) {
	for _, r := range s.Routes {
		switch {
		case !r.Prefix.Contains(w.Address):
		case r.State == edge.RouteRefused:
			w.Refused = append(w.Refused, r)
		case !w.Route.IsValid() || r.Prefix.Bits() > w.Route.Bits():
			w.Route, w.Peer = r.Prefix, r.Peer
		}
	}
	if w.Peer == "" && len(w.Refused) > 0 {
		w.Peer = w.Refused[0].Peer
	}
}

// ofPeer finds the tunnel address of the peer. Not ok: nobody is called so.
func (w *Why) ofPeer(s *edge.Status) (ok bool) {
	for _, r := range s.Routes {
		switch {
		case r.Peer != w.Peer:
		case r.State == edge.RouteRefused:
			w.Refused = append(w.Refused, r)
		case r.Prefix.IsSingleIP() && !w.Address.IsValid():
			w.Address, w.Route = r.Prefix.Addr(), r.Prefix
		}
	}
	known := slices.ContainsFunc(s.Connections, func(c edge.ConnectionStatus) bool { return c.Peer == w.Peer })
	return known || slices.Contains(s.Awaited, w.Peer)
}

func (w *Why) judge(s *edge.Status) Verdict {
	c := w.Connection
	switch {
	case slices.ContainsFunc(s.Addresses, func(p netip.Prefix) bool { return p.Addr() == w.Address }):
		return VerdictOwn
	case len(s.Addresses) == 0 || s.Portal.Refused != "" && len(s.Connections) == 0:
		return VerdictNotSignedIn
	case slices.Contains(s.Awaited, w.Peer):
		return VerdictAwaited
	case !w.Route.IsValid() && len(w.Refused) > 0:
		return VerdictRefused
	case c == nil || !w.Route.IsValid() && w.Subject != w.Peer:
		return VerdictNoRoute
	case c.Distrust != "":
		return VerdictDistrusted
	case c.State == "up" || c.State == "idle":
		return VerdictUp
	case c.State == "none" || c.State == "waiting":
		return VerdictNotConnected
	}
	return VerdictConnecting
}

// SetKernel adds where the kernel sends packets to the address.
func (w *Why) SetKernel(r KernelRoute) {
	w.Kernel = &r
	elsewhere := r.Unreachable || r.Interface != w.Interface
	if w.Route.IsValid() && elsewhere && w.Verdict != VerdictOwn && w.Verdict != VerdictNotSignedIn {
		w.Verdict = VerdictNotTunneled
	}
}

// dropWhy says in words why packets were dropped that a queue did not lose, or one packet was.
var dropWhy = map[string]string{
	"drop_not_ip":              "without an IP header",
	"drop_no_route":            "for an address that no peer has",
	"drop_no_endpoint":         "for a peer that no path leads to",
	"drop_housekeeping":        "of the system's own, without a session to go by",
	"drop_routing_loop":        "of the tunnel's own: the way to the peer leads into the tunnel",
	"drop_staged_expired":      "waited for a session that did not come",
	"drop_no_address_family":   "had no socket of the path's address family",
	"drop_stray":               "of another protocol than WireGuard",
	"drop_malformed":           "of an impossible length",
	"drop_channel_data":        "came damaged from a relay",
	"drop_mailbox_full":        "of handshakes that came too fast",
	"drop_unknown_index":       "of no session of ours",
	"drop_expired_keypair":     "of a session that is too old",
	"drop_unauthentic":         "forged or damaged",
	"drop_replayed":            "came twice or much too late",
	"drop_inner_malformed":     "held no IP packet",
	"drop_source_not_allowed":  "came from a peer that does not own the source address",
	"drop_destination_not_own": "came through the tunnel for an address that is not this client's",
	"drop_unasked":             "came through the tunnel without having been asked for (-accept-incoming lets such in)",
	"drop_ecn":                 "had a congestion mark that could not be kept",
	"drop_tun_down":            "found the interface down",
}

// WriteWhy describes it for a person: the answer first, then what it follows from.
func (v View) WriteWhy(out io.Writer, w *Why) error {
	if v.Width == 0 {
		v.Width = Columns
	}
	var b strings.Builder
	v.say(&b, "", "%s: %s", w.Subject, w.answer())
	if w.Peer != "" && w.Peer != w.Subject {
		v.say(&b, "", "peer: %s", w.Peer)
	}
	if w.Route.IsValid() {
		v.say(&b, "", "route: %s of %s, used", w.Route, w.Peer)
	}
	for _, r := range w.Refused {
		v.say(&b, "", "route: %s of %s, REFUSED: %s", r.Prefix, r.Peer, r.Why)
	}
	if k := w.Kernel; k != nil {
		v.say(&b, "", "kernel: %s", k.text(w.Interface))
	}
	w.writeConnection(&b, v)
	w.writeMTU(&b, v)
	w.writePeerDrops(&b, v)
	w.writeDrops(&b, v)
	if w.Problem != "" {
		v.say(&b, "", "PROBLEM: %s", w.Problem)
	}
	for _, note := range w.Notes {
		v.say(&b, "", "NOTE: %s", note)
	}
	_, err := io.WriteString(out, b.String())
	return err
}

// answer is the verdict in words.
func (w *Why) answer() string {
	switch w.Verdict {
	case VerdictOwn:
		return "it is this node's own address"
	case VerdictNotSignedIn:
		if w.Portal.Refused != "" {
			return "nothing goes through the tunnel: the portal refuses this node: " + w.Portal.Refused
		}
		return "nothing goes through the tunnel: this node has not signed in" + cmp.Or(": "+w.Portal.Why, "")
	case VerdictAwaited:
		return "the peer has never signed in to the portal"
	case VerdictRefused:
		return "this node refuses the route there, so that packets do not go through the tunnel"
	case VerdictNoRoute:
		return "no peer leads there, so that packets do not go through the tunnel"
	case VerdictNotTunneled:
		return fmt.Sprintf("the peer %s leads there, but the kernel sends packets elsewhere", w.Peer)
	case VerdictDistrusted:
		return fmt.Sprintf("%s has another identity than when it was met (%s): sluice trust %[1]s accepts it", w.Peer, w.Connection.Distrust)
	case VerdictConnecting:
		return fmt.Sprintf("packets go to %s as soon as the connection is up", w.Peer)
	case VerdictNotConnected:
		return fmt.Sprintf("%s leads there, and is not connected", w.Peer)
	}
	return fmt.Sprintf("packets go through the tunnel to %s, %s", w.Peer, PathOf(w.Connection))
}

func (k *KernelRoute) text(tunnel string) string {
	switch {
	case k.Unreachable:
		return "unreachable"
	case k.Interface == tunnel:
		text := "into the tunnel (" + k.Interface + ")"
		if k.Source.IsValid() {
			text += ", from " + k.Source.String()
		}
		return text
	case k.Router.IsValid():
		return fmt.Sprintf("past the tunnel, by %s on %s, table %d", k.Router, k.Interface, k.Table)
	}
	return fmt.Sprintf("past the tunnel, on %s, table %d", k.Interface, k.Table)
}

func (w *Why) writeConnection(b *strings.Builder, v View) {
	c := w.Connection
	if c == nil {
		return
	}
	text := "connection: " + c.State
	if !c.Since.IsZero() {
		text += " for " + Span(w.At.Sub(c.Since))
	}
	if c.Explanation != "" {
		text += ", " + c.Explanation
	}
	if c.RTTS > 0 {
		text += fmt.Sprintf("; %s round trip", rtt(c.RTTS))
	}
	v.say(b, "", "%s", text)
	v.say(b, "", "handshake: %s; received %s, sent %s", age(c.LastHandshake, w.At), size(c.RxBytes), size(c.TxBytes))
	if c.LastClose != nil {
		v.say(b, "", "%s", closeText(c.LastClose, w.At))
	}
}

func (w *Why) writeMTU(b *strings.Builder, v View) {
	m := w.MTU
	switch {
	case m.Tunnel == 0:
	case m.Outer == 0:
		v.say(b, "", "MTU: %d in the tunnel", m.Tunnel)
	case m.Tunnel+m.Overhead > m.Outer:
		v.say(b, "", "MTU: PROBLEM: %d in the tunnel and %d of headers do not fit the %d of the way to the peer: -mtu %d does",
			m.Tunnel, m.Overhead, m.Outer, m.Outer-m.Overhead)
	default:
		v.say(b, "", "MTU: %d in the tunnel, %d with the outer headers; the way to the peer takes %d", m.Tunnel, m.Tunnel+m.Overhead, m.Outer)
	}
}
