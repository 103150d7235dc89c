package edge

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/ice"
	"github.com/sluice-vpn/sluice/ice/link"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/turn"
	"github.com/sluice-vpn/sluice/pipeline"
)

// Status is what a node is and how it reaches its peers, at one moment. It holds no secret.
type Status struct {
	Name        string             `json:"name"`
	Role        protocol.Role      `json:"role"`
	PublicKey   string             `json:"public_key"`
	Identity    string             `json:"identity"` // its fingerprint, by which peers know the node
	Interface   string             `json:"interface"`
	ListenPort  uint16             `json:"listen_port"`
	Addresses   []netip.Prefix     `json:"addresses"`
	Offers      protocol.Offers    `json:"offers,omitempty"` // of a gateway
	Routes      []RouteStatus      `json:"routes"`           // each that the portal gives
	Since       time.Time          `json:"since"`
	Portal      PortalStatus       `json:"portal"`
	Mappings    []MappingStatus    `json:"mappings"`
	Relays      []turn.RelayStatus `json:"relays"`
	Connections []ConnectionStatus `json:"connections"` // one for each peer, by name
	// Awaited are the nodes that may be peers and have never signed in, by name.
	Awaited []string `json:"awaited,omitempty"`
	// Lost counts packets that were lost in queues and the like, by the name of the counter (package count).
	Lost map[string]uint64 `json:"lost,omitempty"`
	// SignIn is the program's that runs the edge, and all that there is to tell while it is signed out, beside what that leads to.
	SignIn SignInStatus `json:"sign_in"`
	// Problem is why the host could not be configured, Notes are what may be in the way there: the program's that applies.
	Problem string   `json:"problem,omitempty"`
	Notes   []string `json:"notes,omitempty"`
	// RefusesIncoming: the host lets nothing in by the tunnel that nobody on it has asked for. Likewise the program's.
	RefusesIncoming bool `json:"refuses_incoming,omitempty"`
}

// SignInStatus tells whether there is a node: with which token it signs in, or why there is none.
type SignInStatus struct {
	SignedIn bool      `json:"signed_in"`
	Since    time.Time `json:"since,omitzero"`
	Token    string    `json:"token_source,omitempty"` // a path, or what else it was given by
	Reason   string    `json:"reason,omitempty"`       // signed out: one of those below
	Why      string    `json:"why,omitempty"`          // the same in words
	Problem  string    `json:"problem,omitempty"`      // why a token that has come since is not taken
}

// Why a node is signed out.
const (
	SignedOutNoToken   = "no_token"
	SignedOutBadToken  = "bad_token"  // damaged, empty, or not for its owner alone
	SignedOutRefused   = "refused"    // by the portal
	SignedOutOtherRole = "other_role" // a gateway's for a client, or the other way round
)

// PortalStatus tells whether the portal is there. Existing connections do not need it.
type PortalStatus struct {
	Up      bool      `json:"up"`
	Since   time.Time `json:"since,omitzero"`
	Why     string    `json:"why,omitempty"`     // it is not up
	Refused string    `json:"refused,omitempty"` // it does not want this node as it is
	AheadS  float64   `json:"clock_ahead_s"`     // its clock before ours
}

// MappingStatus is what a relay saw of our socket: a server-reflexive address.
type MappingStatus struct {
	Server netip.AddrPort `json:"server"`
	Mapped netip.AddrPort `json:"mapped"`
}

// ConnectionStatus is what has become of one peer.
type ConnectionStatus struct {
	Peer       string         `json:"peer"`
	Role       protocol.Role  `json:"role"`
	PublicKey  string         `json:"public_key"`
	AllowedIPs []netip.Prefix `json:"allowed_ips"`
	Online     bool           `json:"online"` // signed in to the portal
	// Identity is the fingerprint of what the portal gives; Pinned of the one that was met. Distrust is why there is no session, if so.
	Identity string `json:"identity,omitempty"`
	Pinned   string `json:"pinned,omitempty"`
	Distrust string `json:"distrust,omitempty"`
	// State is a phase of the connection (candidates, checking, handshake, up, idle), waiting for the next attempt, or none.
	State      string `json:"state"`
	Generation uint32 `json:"generation,omitempty"`
	// Via is direct or relay; Relay names ours if it is that which is used.
	Via      string         `json:"via,omitempty"`
	Relay    string         `json:"relay,omitempty"`
	Endpoint netip.AddrPort `json:"endpoint,omitzero"`
	Local    string         `json:"local_candidate,omitempty"`
	Remote   string         `json:"remote_candidate,omitempty"`
	RTTS     float64        `json:"rtt_s,omitempty"` // of the last STUN check
	// History are the latest of them on this path, the oldest first: at most 32, of the last five minutes.
	History []RoundTrip `json:"rtt_history,omitempty"`
	// Since is when the connection was first up; LastHandshake the newest WireGuard session.
	Since         time.Time `json:"since,omitzero"`
	LastHandshake time.Time `json:"last_handshake,omitzero"`
	RxBytes       uint64    `json:"rx_bytes"`
	TxBytes       uint64    `json:"tx_bytes"`
	NextAttemptS  float64   `json:"next_attempt_s,omitempty"`
	// Drops are packets of the peer that went no further, where it is known whose they are, by the counter's name; those of 0 left out. LastDrop
	// is the latest.
	Drops    map[string]uint64 `json:"drops,omitempty"`
	LastDrop *DropStatus       `json:"last_drop,omitempty"`
	// Obstacle is why ICE may find nothing, as far as it is known.
	Obstacle    string       `json:"obstacle,omitempty"`
	LastClose   *CloseStatus `json:"last_close,omitempty"`
	Explanation string       `json:"explanation"` // one sentence
}

// DropStatus is the latest packet of a peer that was dropped: when, by which counter, and whose it was in the tunnel, where that is known.
type DropStatus struct {
	At       time.Time      `json:"at"`
	Name     string         `json:"name"`               // of the counter
	Protocol uint8          `json:"protocol,omitempty"` // IANA's number
	Src      netip.AddrPort `json:"src,omitzero"`       // ports are 0 where there are none
	Dst      netip.AddrPort `json:"dst,omitzero"`
}

// RoundTrip is one round trip of a STUN check.
type RoundTrip struct {
	At   time.Time `json:"at"`
	RTTS float64   `json:"rtt_s"`
}

// CloseStatus is how the latest connection that is over ended.
type CloseStatus struct {
	At          time.Time   `json:"at"`
	Reason      string      `json:"reason"`
	Cause       string      `json:"cause,omitempty"`
	PeerReports *PeerReport `json:"peer_reports,omitempty"`
	LastedS     float64     `json:"lasted_s"`
}

// PeerReport is what the peer says about the same end.
type PeerReport struct {
	Reason string `json:"reason"`
	// Counters are what became of handshake messages there, by name; those that are 0 are left out.
	Counters map[string]uint64 `json:"counters,omitempty"`
}

// Status describes the node. Errors are ctx's, and that of an edge that does not run (any more).
func (e *Edge) Status(ctx context.Context) (Status, error) {
	var s Status
	err := e.call(ctx, func() { s = e.status() })
	return s, err
}

func (e *Edge) status() Status {
	s := Status{
		Name: e.config.Name, Role: e.config.Role, PublicKey: e.key.Public().Encode(),
		Identity: protocol.IdentityOf(e.config.Identity).Fingerprint(), Interface: e.config.Interface,
		Addresses: e.view.Addresses, Offers: e.view.Offers, Routes: e.routes, Since: e.started, Portal: e.portalStatus(),
		Relays: e.relays.Status(), Mappings: []MappingStatus{}, Connections: []ConnectionStatus{},
	}
	for _, m := range e.prober.Mappings() {
		s.Mappings = append(s.Mappings, MappingStatus{m.Server, m.Mapped})
	}
	if e.passage.told != link.CauseNone {
		s.Notes = append(s.Notes, e.passage.told.String())
	}
	for i := range s.Relays {
		r := &s.Relays[i]
		if trouble := e.relayTrouble(r); trouble != "" {
			s.Notes = append(s.Notes, fmt.Sprintf("the relay %s at %s %s", r.Name, r.Server, trouble))
		}
	}
	if e.applyError != nil {
		s.Problem = strings.ReplaceAll(e.applyError.Error(), "\n", "; ")
	}
	now := e.now
	byName := make(map[string]pipeline.PeerStatus)
	if of, err := e.pipeline.Load().Status(); err == nil {
		s.ListenPort, s.Lost = of.ListenPort, make(map[string]uint64, len(of.Lost))
		for _, c := range of.Lost {
			s.Lost[c.Name] = c.Value
		}
		of.Wipe()
		for _, p := range of.Peers {
			byName[p.Name] = p
		}
	}
	links := make(map[string]link.Status)
	_ = e.pipeline.Load().TellAll(func(now time.Duration, name string, l pipeline.Link) { links[name] = l.(*link.Link).Status(now) })
	for name, p := range e.peers {
		k, ok := links[name]
		if !ok { // it is gone from the pipeline
			k.Phase = link.PhaseClosed
		}
		c := e.connectionStatus(now, p, byName[name], &k)
		c.Explanation = c.explain(k.Absent, s.Portal.Up)
		if c.Distrust != "" {
			c.Explanation = "no session: " + e.judged[name].explain()
		}
		s.Connections = append(s.Connections, c)
	}
	slices.SortFunc(s.Connections, func(a, b ConnectionStatus) int { return strings.Compare(a.Peer, b.Peer) })
	for i := range e.view.Peers {
		if p := &e.view.Peers[i]; p.PublicKey == (protocol.Key{}) {
			s.Awaited = append(s.Awaited, p.Name)
		}
	}
	slices.Sort(s.Awaited)
	return s
}

// Portal says why the portal is not there, and why this node is not signed in there; nil if all is well. err is as Status's.
func (e *Edge) Portal(ctx context.Context) (portal, signedIn, err error) {
	err = e.call(ctx, func() {
		s := e.portalStatus()
		if !s.Up {
			portal = errors.New(cmp.Or(s.Why, "not connected yet"))
		}
		switch {
		case s.Refused != "":
			signedIn = errors.New(s.Refused)
		case e.synced.IsZero():
			signedIn = errors.New(cmp.Or(s.Why, "the portal has not answered yet"))
		}
	})
	return portal, signedIn, err
}

func (e *Edge) portalStatus() PortalStatus {
	s := PortalStatus{
		Up: e.syncError == nil && !e.synced.IsZero(), Since: e.portalSince, Refused: e.lastRefused,
		AheadS: e.skew.Round(time.Second).Seconds(),
	}
	if e.config.PortalState != nil {
		state := e.config.PortalState()
		s.Up, s.Since = state.Up, state.Since
		if state.Why != nil {
			s.Why = state.Why.Error()
		}
	}
	if s.Why == "" && e.syncError != nil {
		s.Why = e.syncError.Error()
	}
	return s
}

// connectionStatus describes one peer; of and k are what the pipeline and its link say about it.
func (e *Edge) connectionStatus(now time.Time, p *peer, of pipeline.PeerStatus, k *link.Status) ConnectionStatus {
	s := ConnectionStatus{
		Peer: p.Name, Role: p.Role, PublicKey: crypto.PublicKey(p.PublicKey).Encode(), AllowedIPs: p.AllowedIPs, Online: p.Online,
		State: "none", LastHandshake: of.LastHandshake, RxBytes: of.RxBytes, TxBytes: of.TxBytes,
		Drops: of.Drops.Counts,
	}
	if d := &of.Drops; d.Last != "" {
		s.LastDrop = &DropStatus{At: now.Add(-d.Ago), Name: d.Last, Protocol: d.Flow.Protocol, Src: d.Flow.Src, Dst: d.Flow.Dst}
	}
	s.Generation, s.NextAttemptS = uint32(k.Attempt), k.NextAttempt.Seconds()
	switch {
	case k.Phase < link.PhaseClosing:
		s.State = k.Phase.String()
	case k.Wanted:
		s.State = "waiting"
	}
	if k.Up > 0 {
		s.Since = now.Add(-k.Up)
	}
	if of.Path != nil && k.Phase < link.PhaseClosing {
		e.pathStatus(&s, k, of.Path)
	}
	if k.Closed != nil {
		s.LastClose = closeStatus(k)
	}
	s.Obstacle = k.Obstacle.String()
	if j := e.judged[p.Name]; j != nil {
		s.Identity, s.Pinned = j.offered.Identity.Fingerprint(), j.pinned.Fingerprint()
		if j.distrust != link.CloseUnspecified {
			s.PublicKey, s.Distrust = crypto.PublicKey(j.offered.PublicKey).Encode(), j.distrust.String()
		}
	}
	return s
}

func (e *Edge) pathStatus(s *ConnectionStatus, k *link.Status, path *pipeline.Path) {
	s.Via, s.Endpoint, s.Local, s.Remote = "direct", path.Dst, k.Local, k.Remote
	if k.Relayed {
		s.Via = "relay"
	}
	if path.Channel != 0 {
		s.Via = "relay"
		for _, r := range e.relays.Status() {
			if r.Server == path.Dst {
				s.Relay = r.Name
			}
		}
	}
	if a := e.agents[agentID{k.Serial, k.Agent}]; a != nil {
		_, rtt := a.LastSeen()
		s.RTTS = rtt.Seconds()
		for _, trip := range a.Trips() {
			s.History = append(s.History, RoundTrip{trip.At, trip.Took.Seconds()})
		}
	}
}

func closeStatus(k *link.Status) *CloseStatus {
	c := &CloseStatus{
		At: k.ClosedAt, Reason: k.Closed.Reason.String(), Cause: k.Closed.Cause.String(), LastedS: k.Closed.Lasted.Seconds(),
	}
	if r := k.Closed.PeerReports; r != nil {
		c.PeerReports = &PeerReport{r.Reason.String(), r.Counters.ByName()}
	}
	return c
}

// explain says in one sentence what is the matter.
func (s *ConnectionStatus) explain(absent, portal bool) string {
	last := ""
	if s.LastClose != nil {
		last = s.LastClose.Reason
		if r := s.LastClose.PeerReports; r != nil && s.LastClose.Reason == link.ClosePeerClosed.String() {
			last += ", there " + r.Reason
			if r.Reason == link.CloseIdentityChanged.String() {
				last += ", since this node has another token than when it was met: sluice trust on that machine accepts it"
			}
		}
		if s.LastClose.Cause != "" {
			last += ": " + s.LastClose.Cause
		}
	}
	switch s.State {
	case link.PhaseCandidates.String():
		return "waits for the peer's answer through the portal" + s.but()
	case link.PhaseChecking.String():
		return "ICE looks for a path" + s.but()
	case link.PhaseHandshake.String():
		return "ICE has found a path, the WireGuard handshake is under way"
	case link.PhaseUp.String(), link.PhaseIdle.String():
		return s.explainPath()
	case "waiting":
		text := "an attempt begins"
		if s.NextAttemptS > 0 {
			text = fmt.Sprintf("tries again in %.0f s", s.NextAttemptS)
		}
		if !portal {
			return text + "; the portal cannot be reached"
		}
		if absent {
			return text + "; the peer is not connected to the portal"
		}
		if last != "" {
			return text + ", after " + last
		}
		return text
	}
	switch {
	case !portal:
		return "not connected; the portal cannot be reached"
	case !s.Online:
		return "the peer is not connected to the portal"
	case last != "":
		return "not connected, after " + last
	}
	return "not connected, since nothing wants it"
}

// but is what stands in the way of ICE, after what it does.
func (s *ConnectionStatus) but() string {
	if s.Obstacle == "" {
		return ""
	}
	return "; " + s.Obstacle
}

func (s *ConnectionStatus) explainPath() string {
	idle := s.State == link.PhaseIdle.String()
	candidates := fmt.Sprintf("%s (%s - %s)", s.Endpoint, s.Local, s.Remote)
	var text string
	switch {
	case s.Via == "direct":
		text = "direct to " + candidates
	case s.Relay != "":
		text = "relayed by " + s.Relay + " at " + candidates
	case s.Via == "relay":
		text = "relayed by the peer's relay at " + candidates
	default:
		text = "a session is up"
	}
	if s.Via == "relay" {
		text += fmt.Sprintf(", since no direct pair of addresses has worked; tries again every %.0f min", link.UpgradeEvery.Minutes())
	}
	if idle {
		text += "; idle: keepalives hold the path"
	}
	return text
}

var _ ice.Relay = (*turn.Relays)(nil)
