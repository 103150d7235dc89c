package logs

import (
	"log/slog"
	"strconv"
	"strings"
	"time"
)

// This file is the words of the log: packages below log an event with its facts, and a person reads the sentence made of both.

// sentences has the form of an event's sentence: {key} is an attribute, and what stands in brackets is left out where one of its
// attributes is missing or empty. An event that is not here is followed by all its attributes, see general.
var sentences = map[string]string{
	// Connections.
	"connection attempt":               "connection to {peer}: an attempt begins",
	"connection up":                    "connection to {peer} is up after {after}[: {via}, {endpoint}]",
	"path selected":                    "connection to {peer}: a path is selected: {via}, {endpoint}",
	"path changed":                     "connection to {peer} goes another way now: {via}, {endpoint}",
	"connection closed":                "connection to {peer} closed after {lasted}: {reason}, {cause}[; {peer} reports {peer_reports.reason}]",
	"the peer reports after the close": "connection to {peer} that closed after {lasted} ({reason}): {cause}[; {peer} reports {peer_reports.reason}]",
	"no connection attempt: the portal or the peer is not reachable": "no connection attempt to {peer}: the portal or {peer} is not reachable",
	"session established":                                  "session with {peer} is established",
	"handshake did not complete":                           "handshake with {peer} did not complete after {after}: {initiations} initiations, {responses_rejected} rejected responses",
	"no session with the peer":                             "no session with {peer}: {cause}",
	"the peer is trusted again":                            "{peer} is trusted again, identity {identity}",
	"the peer's identity is trusted from now on":           "{peer} is trusted with its identity {identity} from now on[, before {before}]",
	"identity pinned":                                      "{peer} is met for the first time; its identity is {identity}",
	"the peer has another key":                             "{peer} has another key",
	"peer added":                                           "{peer} is a peer now",
	"peer removed":                                         "{peer} is no peer any more",
	"the peer has the key of another node and is left out": "{peer} has the key of {node} and is left out",
	"a route is refused":                                   "the route {prefix} of {peer} is refused: {why}",

	// The network and relays.
	"listening":         "listening on UDP port {port}",
	"MTU changed":       "the MTU is {mtu} now",
	"the relay is up":   "relay {relay} at {server} is up, we are {relayed} there",
	"the relay is lost": "relay {relay} at {server} is lost: {reason}",
	"the network has changed: looking for other paths": "the network has changed ({why}): looking for other paths for {connections} connections",
	"the relay is of no use":                           "relay {relay} at {server} {trouble}",

	// A node's life.
	"signing in":                "signing in at {portals} as {role} {name}, interface {interface}",
	"started log":               "started log {file}",
	"version":                   "{program} version {version}[, commit {commit}]",
	"the log level has changed": "the log level is {level} now, before {before}",
	"the log folder takes no lines; they wait for it, and are counted when there are too many": "the log folder {folder} takes no lines: {error}; they wait for it, and are counted when there are too many",
	"the log folder takes lines again": "the log folder takes lines again: {file}",
	"node is up":                       "{role} {name} is up on {interface}: addresses {addresses}[, routes {routes}][, offers {offers}], {peers} peers",
	"has ended":                        "{name} on {interface} has ended",
	"No token on disk, starting in signed-out state":           "No token on disk, starting in signed-out state",
	"starting in signed-out state":                             "starting in signed-out state: {why}",
	"signed out":                                               "[{name} is ]signed out: {why}",
	"another token was given":                                  "another token was given: {name} signs out, and {next} in",
	"the token is not taken":                                   "the token is not taken, {state}: {why}",
	"the portal is not reachable; tunnels that are up stay so": "the portal[ at {portal}] is not reachable: {error}; tunnels that are up stay so",
	"the portal refuses the token: it was renewed or the node was removed; make another one with sluice portal node token, or node add": "the portal[ at {portal}] refuses the token: it was renewed or the node was removed; make another one with sluice portal node token, or node add",
	"connected to the portal":      "connected to the portal[ at {portal}]",
	"the portal refuses this node": "the portal refuses this node: {reason}",
	"interface is ready":           "interface {name} is ready, version {version}",
	"interface has ended":          "interface {name} has ended: {why}",
	"interface failed":             "interface {name} failed: {error}",

	// The portal.
	"portal is ready":        "portal is ready at {address}, public address {public}, {nodes} nodes, version {version}",
	"node online":            "{node} is online",
	"node offline":           "{node} is offline",
	"node added":             "{role} {node} is added",
	"node has signed out":    "{node} has signed out: its token was removed there",
	"node removed":           "{node} is removed",
	"node has another token": "{node} has another token; the old one is refused from now on",
	"node reports":           "{node} reports[: it offers {routes}]",
	"node refused":           "[{node} was][a node at {from} was] refused: {reason}",
	"connection refused":     "a connection from {from} was refused: {reason}",
	"connection failed":      "a connection from {from} failed: {reason}",
}

// reasons says in words why a connection ended, where no cause is known.
var reasons = map[string]string{
	"unspecified":        "for a reason that this version does not know",
	"no_candidates":      "the peer has named no address",
	"ice_timeout":        "no pair of addresses works",
	"ice_disconnected":   "nothing is heard of the peer any more",
	"handshake_timeout":  "ICE works, the WireGuard handshake does not complete",
	"peer_closed":        "the peer has ended it",
	"replaced":           "the peer has begun a newer one",
	"keys_changed":       "a key has changed, and the next attempt takes the new one",
	"removed":            "the portal does not allow it any more",
	"shutdown":           "we end",
	"unknown_connection": "the peer does not know it, as after a restart",
	"identity_changed":   "the peer is not the one that was met under its name",
	"key_unsigned":       "the peer's identity has not signed its key",
}

// facts are the attributes of an event.
type facts []field

// text is an attribute for a person; "" if there is none.
func (f facts) text(key string) string {
	for _, a := range f {
		if a.key == key {
			if key == "cause" {
				return f.named(spoken(a.value))
			}
			if key == "via" && a.value.String() == "relay" {
				return "relayed"
			}
			return spoken(a.value)
		}
	}
	if key == "cause" {
		return f.named(reasons[f.text("reason")])
	}
	return ""
}

// named puts the peer's name where a text speaks of the peer.
func (f facts) named(s string) string {
	if peer := f.text("peer"); peer != "" {
		s = strings.ReplaceAll(s, "the peer", peer)
	}
	return s
}

// sentence is what a person reads of an event, on one line.
func sentence(event string, fields []field) string {
	event = visible(event) // attributes are already
	if form, ok := sentences[event]; ok {
		event, _ = fill(form, fields)
		return event
	}
	return general(event, fields)
}

// fill puts attributes into a form. Not whole: one of them is missing.
func fill(form string, f facts) (s string, whole bool) {
	var b strings.Builder
	whole = true
	for form != "" {
		i := strings.IndexAny(form, "{[")
		if i < 0 {
			b.WriteString(form)
			break
		}
		b.WriteString(form[:i])
		end := strings.IndexByte(form[i:], map[byte]byte{'{': '}', '[': ']'}[form[i]]) + i
		inner := form[i+1 : end]
		if form[i] == '[' {
			if part, ok := fill(inner, f); ok {
				b.WriteString(part)
			}
		} else {
			value := f.text(inner)
			whole = whole && value != ""
			b.WriteString(value)
		}
		form = form[end+1:]
	}
	return b.String(), whole
}

// longest is how much of a value, in bytes, a sentence without a form has; the attribute has all of it.
const longest = 400

// general is the sentence of an event that has no form of its own: event (key value, key value): error.
func general(event string, f facts) string {
	var list []string
	trouble := ""
	for _, a := range f {
		value := spoken(a.value)
		if len(value) > longest {
			value = strings.ToValidUTF8(value[:longest], "") + "..."
		}
		switch {
		case value == "":
		case a.key == "error":
			trouble = ": " + value
		default:
			list = append(list, strings.ReplaceAll(a.key, "_", " ")+" "+value)
		}
	}
	if len(list) > 0 {
		event += " (" + strings.Join(list, ", ") + ")"
	}
	return event + trouble
}

// spoken is a value for a person.
func spoken(v slog.Value) string {
	if v.Kind() == slog.KindDuration {
		return spokenDuration(v.Duration())
	}
	s := text(v)
	if v.Kind() == slog.KindAny && strings.HasPrefix(s, "[") && strings.HasSuffix(s, "]") { // a list
		s = s[1 : len(s)-1]
	}
	return s
}

// spokenDuration has a unit or two: 350 ms, 1.2 s, 15 s, 2 min 5 s, 3 h 20 min, 2 d 4 h.
func spokenDuration(d time.Duration) string {
	switch a := d.Abs(); {
	case a < time.Millisecond:
		return number(d, time.Microsecond) + " µs"
	case a < time.Second:
		return number(d, time.Millisecond) + " ms"
	case a < 9950*time.Millisecond:
		return strings.TrimSuffix(strconv.FormatFloat(d.Seconds(), 'f', 1, 64), ".0") + " s"
	case a < 59500*time.Millisecond:
		return number(d, time.Second) + " s"
	case a < time.Hour:
		return pairOf(d, time.Minute, " min", time.Second, " s")
	case a < 24*time.Hour:
		return pairOf(d, time.Hour, " h", time.Minute, " min")
	}
	return pairOf(d, 24*time.Hour, " d", time.Hour, " h")
}

func number(d, unit time.Duration) string { return strconv.FormatInt(int64(d.Round(unit)/unit), 10) }

func pairOf(d, large time.Duration, largeName string, small time.Duration, smallName string) string {
	d = d.Round(small)
	s := strconv.FormatInt(int64(d/large), 10) + largeName
	if rest := d % large / small; rest != 0 {
		s += " " + strconv.FormatInt(int64(rest.Abs()), 10) + smallName
	}
	return s
}
