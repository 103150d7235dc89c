package link

import (
	"encoding/json"
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/pipeline"
)

// begun is when connections begin in these tests; a forgotten zero shows.
const begun = time.Hour

var somePath = pipeline.Path{Dst: netip.MustParseAddrPort("192.0.2.9:9")}

// drained returns the outputs there are.
func drained(c *connection) (list []connectionOutput) {
	for out, ok := c.poll(); ok; out, ok = c.poll() {
		list = append(list, out)
	}
	return list
}

func find(list []connectionOutput, kind connectionOutputKind) *connectionOutput {
	i := slices.IndexFunc(list, func(out connectionOutput) bool { return out.kind == kind })
	if i < 0 {
		return nil
	}
	return &list[i]
}

// selected returns a connection that has selected its first pair at begun and was advanced there.
func selected(controlling bool, v sessionView) *connection {
	c := newConnection(begun, 7, controlling)
	c.handlePath(begun, 1, somePath)
	c.advance(begun, v)
	return c
}

// wantEnd follows the connection's timeouts until it ends, and checks when and why.
func wantEnd(t *testing.T, c *connection, v sessionView, at time.Duration, reason CloseReason) {
	t.Helper()
	for range 100 {
		next, why := c.nextTimeout()
		if next == 0 {
			t.Fatalf("waits for nothing in %v", c.phase)
		}
		c.advance(next-1, v)
		if c.over() {
			t.Fatalf("%v 1 ns too early", c.closed.Reason)
		}
		c.advance(next, v)
		if c.over() {
			if next != at || c.closed.Reason != reason {
				t.Fatalf("%v (%v) after %v, want %v after %v", c.closed.Reason, why, next-begun, reason, at-begun)
			}
			return
		}
	}
	t.Fatal("does not end")
}

// ICE must give up while a handshake runs, or another path could not save it.
func TestICEIsShorterThanTheHandshake(t *testing.T) {
	for _, d := range []time.Duration{candidateTimeout, iceTimeout, iceLostAfter} {
		if d >= handshakeLifetime {
			t.Errorf("%v is not shorter than %v", d, handshakeLifetime)
		}
	}
	if quietAfter+suspectAfter >= 6*time.Second { // the last but one initiation of a series with fast retries
		t.Errorf("a second agent after %v comes too late for two initiations", quietAfter+suspectAfter)
	}
}

// The four deadlines, to the nanosecond, on both roles.
func TestDeadlines(t *testing.T) {
	for _, controlling := range []bool{true, false} {
		wantEnd(t, newConnection(begun, 1, controlling), sessionView{}, begun+10*time.Second, CloseNoCandidates)

		c := newConnection(begun, 1, controlling)
		c.handleCandidate(begun+9*time.Second, 1)
		c.handleCandidate(begun+10*time.Second, 1) // only the first counts
		c.handleAgentFailed(1)
		wantEnd(t, c, sessionView{}, begun+21*time.Second, CloseICETimeout)

		stun := sessionView{lastSTUN: begun + time.Minute}
		wantEnd(t, selected(controlling, stun), stun, begun+15*time.Second, CloseHandshakeTimeout)
		wantEnd(t, selected(controlling, sessionView{}), sessionView{}, begun+12*time.Second, CloseICEDisconnected)

		up := sessionView{View: pipeline.View{Usable: true, Created: begun, LastData: begun + time.Hour}}
		up.lastSTUN = begun + 30*time.Second
		wantEnd(t, selected(controlling, up), up, begun+42*time.Second, CloseICEDisconnected)
	}
}

// The initiator's deadline counts from its first initiation, which the core may delay by a second, and from nothing else.
func TestHandshakeDeadlineIsNotMoved(t *testing.T) {
	v := sessionView{lastSTUN: begun + time.Minute}
	c := selected(true, v)
	if out := find(drained(c), connectionStartHandshake); out == nil || !out.initiate || out.lifetime != 15*time.Second {
		t.Fatalf("%+v", out)
	}
	v.SeriesRunning, v.SeriesSince = true, begun+400*time.Millisecond
	c.advance(v.SeriesSince, v)
	v.SeriesSince += 5 * time.Second // another series, another path, another agent: nothing helps
	c.handlePath(begun+5*time.Second, 1, somePath)
	c.wantAgent(begun + 6*time.Second)
	c.advance(begun+6*time.Second, v)
	c.handlePath(begun+7*time.Second, 2, somePath)
	c.advance(begun+7*time.Second, v)
	if list := drained(c); find(list, connectionStartHandshake) != nil || find(list, connectionPublishPath).path.Generation != 2 {
		t.Fatalf("%+v", list)
	}
	wantEnd(t, c, v, begun+15*time.Second+400*time.Millisecond, CloseHandshakeTimeout)
	if c.closed.Waited != handshakeLifetime {
		t.Error(c.closed.Waited)
	}

	late := selected(true, v)
	v.SeriesSince = begun + 9*time.Second
	late.advance(v.SeriesSince, v)
	wantEnd(t, late, v, begun+16*time.Second, CloseHandshakeTimeout)

	responder := selected(false, v)
	if out := find(drained(responder), connectionStartHandshake); out == nil || out.initiate {
		t.Fatalf("%+v", out)
	}
	v.SeriesSince = begun + time.Second
	wantEnd(t, responder, v, begun+15*time.Second, CloseHandshakeTimeout)
}

// The core's report and our deadline say the same, whichever comes first.
func TestExpiredSeries(t *testing.T) {
	var tally crypto.Tally
	tally.Since, tally.Initiations, tally.ResponsesRejected[crypto.BadAEAD] = begun, 5, 4
	v := sessionView{View: pipeline.View{Tally: tally, SeriesRunning: true, SeriesSince: begun}, lastSTUN: begun + time.Minute}
	ours, cores := selected(true, v), selected(true, v)
	ours.advance(begun+handshakeLifetime, v)
	cores.handleExpired(crypto.HandshakeExpired{Tally: tally})
	cores.advance(begun+handshakeLifetime, sessionView{})
	if ours.closed != cores.closed || ours.closed.Cause != CausePresharedKeys || ours.closed.Counters.Initiations != 5 {
		t.Errorf("%+v and %+v", ours.closed, cores.closed)
	}

	// A series from before there was a path was heard by nobody: it begins again.
	early := selected(true, v)
	drained(early)
	early.handleExpired(crypto.HandshakeExpired{Tally: crypto.Tally{Since: begun - 1}})
	early.advance(begun+1, sessionView{lastSTUN: begun + time.Minute})
	if early.over() || find(drained(early), connectionStartHandshake) == nil {
		t.Error("the series does not begin again")
	}

	// A rekey that fails while the session carries traffic closes nothing; else it does.
	up := sessionView{View: pipeline.View{Usable: true, Created: begun}, lastSTUN: begun + time.Minute}
	c := selected(true, up)
	c.handleExpired(crypto.HandshakeExpired{Tally: tally, Quiet: true})
	c.advance(begun+time.Second, up)
	if c.over() {
		t.Fatal("closed by a quiet report")
	}
	c.handleExpired(crypto.HandshakeExpired{Tally: tally})
	c.advance(begun+time.Second, up)
	if c.closed.Reason != CloseHandshakeTimeout || c.closed.Phase != PhaseUp || c.closed.Up != time.Second {
		t.Errorf("%+v", c.closed)
	}
}

// What counts as a sign of life: data and keepalives, not handshake messages.
func TestLiveness(t *testing.T) {
	v := sessionView{View: pipeline.View{Usable: true, Created: begun, LastData: begun + time.Hour}}
	v.Activity.LastReceived = begun + 5*time.Second
	c := selected(false, v)
	drained(c)
	c.advance(begun+12*time.Second, v)
	if out := find(drained(c), connectionStartAgent); c.over() || out == nil || out.agent != 2 {
		t.Fatal("STUN is quiet, the session lives, and there is no second agent")
	}
	wantEnd(t, c, v, begun+20*time.Second, CloseICEDisconnected)

	c = selected(false, v)
	v.Activity.LastReceived = begun + 9*time.Second
	c.handleVerdict(begun+9*time.Second, crypto.Verdict{Roam: true})
	wantEnd(t, c, v, begun+20*time.Second, CloseICEDisconnected) // 5 s and 15 s

	c = selected(false, v)
	v.Usable = false // the keypair is not: whatever came, ICE decides
	v.Activity.LastDataReceived = begun + 11*time.Second
	wantEnd(t, c, v, begun+12*time.Second, CloseICEDisconnected)
}

// Second agents: their own deadlines, pauses between them, numbers that the peer may be ahead with, and nothing from old ones.
func TestSecondAgent(t *testing.T) {
	v := sessionView{View: pipeline.View{Usable: true, Created: begun, LastData: begun + time.Hour}, lastSTUN: begun + time.Hour}
	c := newConnection(begun, 1, true)
	c.wantAgent(begun)
	c.advance(begun, v)
	c.handlePath(begun, 1, somePath)
	c.advance(begun+agentGap-1, v)
	if find(drained(c)[1:], connectionStartAgent) != nil {
		t.Fatal("a second agent at once")
	}
	c.advance(begun+agentGap, v)
	if out := find(drained(c), connectionStartAgent); out == nil || out.agent != 2 {
		t.Fatalf("%+v", out)
	}
	now := begun + agentGap
	c.handleRemoteAgent(now, 2) // the peer had the same thought
	c.handleRemoteAgent(now+time.Millisecond, 5)
	c.handleRemoteAgent(now+time.Millisecond, 5+agentLead) // out of any order
	c.advance(now+2*time.Millisecond, v)
	if len(drained(c)) != 0 {
		t.Fatal("replaced at once")
	}
	c.advance(now+agentGap+time.Millisecond, v)
	list := drained(c)
	if gone, out := find(list, connectionCloseAgent), find(list, connectionStartAgent); gone == nil || gone.agent != 2 || out == nil || out.agent != 5 {
		t.Fatalf("%+v", list)
	}
	c.handlePath(now+2*time.Second, 2, pipeline.Path{}) // too late
	if len(drained(c)) != 0 {
		t.Fatal("an old agent has a path")
	}
	c.handleCandidate(now+3*time.Second, 5)
	c.advance(now+15*time.Second-1, v)
	if len(drained(c)) != 0 {
		t.Fatal("given up early")
	}
	c.advance(now+15*time.Second, v)
	if gone := find(drained(c), connectionCloseAgent); gone == nil || gone.agent != 5 || c.over() {
		t.Fatalf("%+v", gone)
	}
	c.handleAgentFailed(1)
	c.advance(now+15500*time.Millisecond, v)
	if len(drained(c)) != 0 {
		t.Fatal("no pause")
	}
	c.advance(now+16*time.Second, v)
	if out := find(drained(c), connectionStartAgent); out == nil || out.agent != 6 {
		t.Fatalf("%+v", out)
	}
	c.handlePath(now+17*time.Second, 6, somePath)
	if out := find(drained(c), connectionPublishPath); out == nil || !out.path.Fixed || out.path.Generation != 2 {
		t.Fatalf("%+v", out)
	}
}

// Nothing is left after a close, and phase closed waits for the last agent.
func TestClose(t *testing.T) {
	v := sessionView{View: pipeline.View{Usable: true, Created: begun}, lastSTUN: begun + time.Hour}
	c := selected(true, v)
	c.wantAgent(begun)
	c.advance(begun, v)
	drained(c)
	c.close(CloseRemoved)
	c.close(CloseShutdown) // the first stays
	c.advance(begun+time.Second, v)
	var kinds []connectionOutputKind
	for _, out := range drained(c) {
		kinds = append(kinds, out.kind)
	}
	want := []connectionOutputKind{
		connectionClearPath, connectionCloseAgent, connectionCloseAgent, connectionClearSession, connectionSendBye,
		connectionClosed,
	}
	if !slices.Equal(kinds, want) || c.closed.Reason != CloseRemoved || c.phase != PhaseClosing {
		t.Fatalf("%v, %v, %v", kinds, c.closed.Reason, c.phase)
	}
	c.handleAgentGone(1)
	if c.phase != PhaseClosing {
		t.Error("closed too early")
	}
	c.handleAgentGone(2)
	c.handleVerdict(begun+2*time.Second, crypto.Verdict{Peer: new(crypto.Peer), Roam: true}) // a late initiation made a session
	if list := drained(c); len(list) != 1 || list[0].kind != connectionClearSession {
		t.Fatalf("%+v", list)
	}
	c.advance(begun+2*time.Second, v)
	if at, _ := c.nextTimeout(); c.phase != PhaseClosed || at != 0 || len(drained(c)) != 0 || c.mayInitiate() {
		t.Errorf("%v, %v", c.phase, at)
	}
}

func TestBye(t *testing.T) {
	v := sessionView{View: pipeline.View{Usable: true, Created: begun}, lastSTUN: begun + time.Hour}
	c := selected(true, v)
	c.handleBye(Bye{Generation: 6, Reason: CloseShutdown}) // of an old connection
	c.advance(begun, v)
	if c.over() {
		t.Fatal("an old bye closes")
	}
	drained(c)
	c.handleBye(Bye{Generation: 7, Reason: CloseShutdown})
	c.advance(begun, v)
	if list := drained(c); find(list, connectionSendBye) != nil || c.closed.Reason != ClosePeerClosed || c.closed.Cause != CauseNone {
		t.Fatalf("%+v", c.closed)
	}

	// A session that comes up when the peer has given up already is none.
	c = selected(true, sessionView{})
	c.handleBye(Bye{Generation: 7, Reason: CloseHandshakeTimeout})
	c.advance(begun, sessionView{})
	if c.over() {
		t.Fatal("the deadline is ours")
	}
	c.advance(begun+time.Second, v)
	if c.closed.Reason != ClosePeerClosed {
		t.Fatal(c.phase)
	}
	c.handleBye(Bye{Generation: 7}) // a second one
	if find(drained(c), connectionPeerReports) != nil {
		t.Error("two byes")
	}
	c.close(ClosePeerClosed)
}

// The peer whose handshake failed has no agent any more, so STUN is quiet; our own end is still that of the handshake.
func TestByeOfAFailedHandshake(t *testing.T) {
	c := selected(false, sessionView{})
	c.handleBye(Bye{Generation: 7, Reason: CloseHandshakeTimeout, Counters: HandshakeCounters{ResponsesRejected: 3}})
	wantEnd(t, c, sessionView{}, begun+handshakeLifetime, CloseHandshakeTimeout)
	if c.closed.Cause != CausePresharedKeys || c.closed.PeerReports == nil {
		t.Errorf("%+v", c.closed)
	}
}

// A session that is lost leaves as much time for the next as there was for the first, from the rekey on if one is tried; what
// was booked before it came up is forgotten, and a bye is not waited for.
func TestLostSession(t *testing.T) {
	up := sessionView{View: pipeline.View{Usable: true, Created: begun}}
	lost := func() *connection {
		c := newConnection(begun, 7, true)
		c.handlePath(begun, 1, somePath)
		c.handleVerdict(begun, crypto.Verdict{Reason: crypto.Mac1Mismatch})
		c.advance(begun, sessionView{})
		c.advance(begun, up)
		drained(c)
		return c
	}
	v := sessionView{View: pipeline.View{SeriesRunning: true, SeriesSince: begun + 3*time.Second}, lastSTUN: begun + time.Hour}
	c := lost()
	c.advance(begun+8*time.Second, v)
	if out := find(drained(c), connectionStartHandshake); out == nil || !out.initiate {
		t.Errorf("%+v", out)
	}
	wantEnd(t, c, v, begun+18*time.Second, CloseHandshakeTimeout)
	if c.closed.Cause != CauseSilence {
		t.Errorf("%q", c.closed.Cause)
	}
	c = lost()
	c.advance(begun+8*time.Second, v)
	c.handleBye(Bye{Generation: 7, Reason: CloseHandshakeTimeout})
	c.advance(begun+9*time.Second, v)
	if c.closed.Reason != ClosePeerClosed {
		t.Errorf("%v in %v", c.closed.Reason, c.phase)
	}
}

// The initiator repeats its confirming keepalive until it hears from the responder.
func TestConfirm(t *testing.T) {
	v := sessionView{View: pipeline.View{Usable: true, Created: begun, LastData: begun + time.Hour}, lastSTUN: begun + time.Hour}
	v.Activity.LastSent = begun
	for _, tt := range []struct {
		controlling, heard bool
		want               int
	}{{true, false, 4}, {true, true, 1}, {false, false, 0}} { // at 3, 6, 9 and 12 s; the first one is the core's
		v.Activity.LastReceived = 0
		c, keepalives := selected(tt.controlling, v), 0
		for now := begun; now < begun+time.Minute; now += time.Second / 4 {
			if tt.heard && now == begun+4*time.Second {
				v.Activity.LastReceived = now
			}
			c.advance(now, v)
			if find(drained(c), connectionKeepalive) != nil {
				keepalives++
				if since := now - begun; since != time.Duration(keepalives)*confirmKeepalive {
					t.Errorf("keepalive %d after %v", keepalives, since)
				}
			}
		}
		if keepalives != tt.want {
			t.Errorf("%+v: %d", tt, keepalives)
		}
	}
}

// A session that was made before we had a pair, and works, does not end because ICE finds none here.
func TestLiveSessionBeforeAPair(t *testing.T) {
	v := sessionView{View: pipeline.View{Usable: true, Created: begun + time.Second}}
	c := newConnection(begun, 1, false)
	c.handleCandidate(begun, 1)
	for now := begun + time.Second; now < begun+time.Minute; now += time.Second {
		v.LastData, v.Activity.LastReceived, v.Activity.LastDataReceived = now, now, now
		c.advance(now, v)
	}
	if c.phase != PhaseUp && c.phase != PhaseIdle || c.upSince != begun+iceTimeout {
		t.Fatalf("%v since %v, %+v", c.phase, c.upSince-begun, c.closed)
	}
	agents := 0
	for _, out := range drained(c) {
		if out.kind == connectionStartAgent {
			agents++
		}
	}
	if agents < 4 || agents > 6 { // of 10 s each, 1, 2, 4 .. s between
		t.Errorf("%d agents in a minute", agents)
	}
	for now := begun + time.Minute; c.second.number == 0; now += time.Second {
		v.LastData, v.Activity.LastReceived, v.Activity.LastDataReceived = now, now, now
		c.advance(now, v)
	}
	c.handlePath(begun+2*time.Minute, c.second.number, somePath)
	if find(drained(c), connectionPublishPath) == nil || c.current.number == 0 {
		t.Error("no path at last")
	}
}

// An attempt whose first agent has found nothing takes another one when the network has changed. That moves no deadline.
func TestAnotherFirstAgent(t *testing.T) {
	c := newConnection(begun, 1, true)
	drained(c)
	c.wantAgent(begun + 100*time.Millisecond)
	c.advance(begun+100*time.Millisecond, sessionView{})
	if len(drained(c)) != 0 {
		t.Error("at once")
	}
	c.advance(begun+agentGap, sessionView{})
	list := drained(c)
	if gone, next := find(list, connectionCloseAgent), find(list, connectionStartAgent); gone == nil || gone.agent != 1 || next == nil || next.agent != 2 {
		t.Fatalf("%+v", list)
	}
	c.handleCandidate(begun+4*time.Second, 1) // too late
	c.handleCandidate(begun+5*time.Second, 2)
	c.handleRemoteAgent(begun+10*time.Second, 7)
	c.advance(begun+10*time.Second, sessionView{})
	if out := find(drained(c), connectionStartAgent); out == nil || out.agent != 7 {
		t.Fatalf("%+v", out)
	}
	wantEnd(t, c, sessionView{}, begun+5*time.Second+iceTimeout, CloseICETimeout)

	c = newConnection(begun, 1, true)
	c.wantAgent(begun + 9*time.Second)
	c.advance(begun+9*time.Second, sessionView{})
	wantEnd(t, c, sessionView{}, begun+candidateTimeout, CloseNoCandidates)
}

// When the agent of an idle connection finds nothing, the connection is idle again, and the next data tries anew after a pause.
func TestIdleRetries(t *testing.T) {
	v := sessionView{View: pipeline.View{Usable: true, Created: begun}, lastSTUN: begun + time.Hour}
	c := selected(false, v)
	c.advance(begun+idleAfter, v)
	if find(drained(c), connectionKeepalive) == nil || c.phase != PhaseIdle {
		t.Fatal(c.phase)
	}
	if at, why := c.nextTimeout(); at != begun+idleAfter+idleKeepalive || why != whyKeepalive {
		t.Fatalf("%v after %v", why, at-begun)
	}
	now := begun + 30*time.Second
	v.LastData = now
	c.advance(now, v)
	if out := find(drained(c), connectionStartAgent); out == nil || out.agent != 2 {
		t.Fatalf("%+v", out)
	}
	now += candidateTimeout
	v.LastData = now
	c.advance(now, v)
	if out := find(drained(c), connectionCloseAgent); c.phase != PhaseIdle || out == nil || c.over() {
		t.Fatalf("%v, %+v", c.phase, out)
	}
	v.LastData = now + 1
	c.advance(now+1, v)
	if at, why := c.nextTimeout(); at != now+time.Second || why != whyAgent || len(drained(c)) != 0 {
		t.Fatalf("%v in %v", why, at-now)
	}
	c.advance(now+time.Second, v)
	if out := find(drained(c), connectionStartAgent); out == nil || out.agent != 3 {
		t.Fatalf("%+v", out)
	}
}

func TestMayInitiate(t *testing.T) {
	up := sessionView{View: pipeline.View{Usable: true, Created: begun}}
	for _, controlling := range []bool{true, false} {
		c := newConnection(begun, 1, controlling)
		if c.mayInitiate() {
			t.Error("without a path")
		}
		c.handlePath(begun, 1, somePath)
		c.advance(begun, sessionView{})
		if c.mayInitiate() != controlling {
			t.Errorf("controlling %v", controlling)
		}
		c.advance(begun, up)
		if !c.mayInitiate() {
			t.Error("not while up")
		}
		c.advance(begun, sessionView{})
		if !c.mayInitiate() || c.phase != PhaseHandshake {
			t.Error("not after the session was lost")
		}
		wantEnd(t, c, sessionView{lastSTUN: begun + time.Minute}, begun+handshakeLifetime, CloseHandshakeTimeout)
	}
}

func TestControls(t *testing.T) {
	for _, c := range []struct {
		client, peerClient bool
		name, peer         string
		want               bool
	}{
		{true, false, "z", "a", true}, {false, true, "a", "z", false},
		{true, true, "a", "b", true}, {true, true, "b", "a", false}, {false, false, "a", "b", true},
	} {
		if Controls(c.client, c.peerClient, c.name, c.peer) != c.want || Controls(c.peerClient, c.client, c.peer, c.name) == c.want {
			t.Errorf("%+v", c)
		}
	}
}

func TestCauses(t *testing.T) {
	for _, c := range []struct {
		name string
		own  HandshakeCounters
		peer *HandshakeCounters
		want CloseCause
	}{
		{"gateway's key changed, responder", HandshakeCounters{Mac1Mismatch: 5}, nil, CausePeerHasOldKey},
		{"gateway's key changed, initiator", HandshakeCounters{Initiations: 5}, &HandshakeCounters{Mac1Mismatch: 5}, CauseWeHaveOldKey},
		{"client's key changed, responder", HandshakeCounters{UnknownStatic: 5}, nil, CausePeerKeyUnknown},
		{"client's key changed, initiator", HandshakeCounters{Initiations: 5}, &HandshakeCounters{UnknownStatic: 5}, CauseOurKeyUnknown},
		{"PSK, initiator", HandshakeCounters{Initiations: 5, ResponsesRejected: 5}, nil, CausePresharedKeys},
		{"PSK, responder", HandshakeCounters{Responses: 5}, nil, CausePresharedKeys},
		{"PSK, responder with report", HandshakeCounters{Responses: 5}, &HandshakeCounters{ResponsesRejected: 1}, CausePresharedKeys},
		{"silence, initiator", HandshakeCounters{Initiations: 5}, nil, CauseSilence},
		{"silence, responder with report", HandshakeCounters{}, &HandshakeCounters{Initiations: 5}, CauseSilence},
		{"inbound lost", HandshakeCounters{Initiations: 5}, &HandshakeCounters{Responses: 5}, CauseInboundLost},
		{"outbound lost", HandshakeCounters{Responses: 5}, &HandshakeCounters{Initiations: 5}, CauseOutboundLost},
		{"clock", HandshakeCounters{OldTimestamps: 5}, nil, CausePeerClock},
		{"our clock", HandshakeCounters{Initiations: 5}, &HandshakeCounters{OldTimestamps: 5}, CauseOurClock},
		{"a repeated initiation", HandshakeCounters{OldTimestamps: 1, Responses: 3}, nil, CausePresharedKeys},
		{"no key", HandshakeCounters{NotSent: crypto.NoPrivateKey}, nil, CauseNoPrivateKey},
		{"low order", HandshakeCounters{NotSent: crypto.LowOrder}, nil, CauseBadPeerKey},
		{"late", HandshakeCounters{Initiations: 5, LateResponses: 4}, nil, CauseLateResponses},
		{"load", HandshakeCounters{Initiations: 5, CookieReplies: 4}, nil, CausePeerLoaded},
		{"our load", HandshakeCounters{Refused: 4}, nil, CauseWeAreLoaded},
		{"damage", HandshakeCounters{Damaged: 4}, nil, CauseDamaged},
		{"key before PSK", HandshakeCounters{Mac1Mismatch: 1, ResponsesRejected: 3}, nil, CausePeerHasOldKey},
	} {
		var bye *Bye
		if c.peer != nil {
			bye = &Bye{Reason: CloseHandshakeTimeout, Counters: *c.peer}
		}
		if got := causeOf(c.own, bye); got != c.want {
			t.Errorf("%s: %q, want %q", c.name, got, c.want)
		}
	}
}

// Every way in which a message can be dropped counts as something, so that silence means silence.
func TestCountersMissNothing(t *testing.T) {
	for r := crypto.Accepted + 1; r < crypto.ReasonCount; r++ {
		var tally crypto.Tally
		var booked [crypto.ReasonCount]uint32
		booked[r] = 1
		c := countersOf(&tally, &booked)
		if c.silent() && c.NotSent == crypto.Accepted {
			t.Errorf("%v: booked and not seen", r)
		}
		tally.ResponsesRejected[r] = 1
		if c = countersOf(&tally, new([crypto.ReasonCount]uint32)); c.silent() && r != crypto.UnknownStatic && r != crypto.ReplayedTimestamp && r != crypto.NoPrivateKey {
			t.Errorf("%v: a response and not seen", r)
		}
	}
}

func TestByeTravels(t *testing.T) {
	bye := Bye{Generation: 3, Reason: CloseHandshakeTimeout, Counters: HandshakeCounters{Initiations: 5, ResponsesRejected: 2}}
	b, err := json.Marshal(bye)
	if err != nil || string(b) != `{"gen":3,"reason":"handshake_timeout","counters":{"initiations":5,"responses_rejected":2}}` {
		t.Fatalf("%s, %v", b, err)
	}
	var back Bye
	if err := json.Unmarshal(b, &back); err != nil || back != bye {
		t.Errorf("%+v, %v", back, err)
	}
	if err := json.Unmarshal([]byte(`{"gen":1,"reason":"of a later version"}`), &back); err != nil || back.Reason != CloseUnspecified {
		t.Errorf("%+v, %v", back, err)
	}
}

func TestNames(t *testing.T) {
	seen := make(map[string]bool)
	for _, names := range [][]string{phaseNames[:], closeReasonNames[:], closeCauseNames[1:], connectionWhyNames[:]} {
		clear(seen)
		for _, name := range names {
			if name == "" || seen[name] {
				t.Errorf("%q", name)
			}
			seen[name] = true
		}
	}
	if PhaseClosed.String() != "closed" || CloseUnknown.String() != "unknown_connection" || whyAgent.String() != "agent" ||
		!strings.HasPrefix(CauseSilence.String(), "no WireGuard message arrived") || CloseReason(200).String() != "unknown" {
		t.Error("names and constants do not fit")
	}
}

// The line of the log names reason, cause, counters and what the peer reports.
func TestClosedInLog(t *testing.T) {
	var text strings.Builder
	c := Closed{
		Reason: CloseHandshakeTimeout, Cause: CausePresharedKeys, Phase: PhaseHandshake, Lasted: 16 * time.Second, Waited: 15 * time.Second,
		Counters:    HandshakeCounters{Responses: 5},
		PeerReports: &Bye{Reason: CloseHandshakeTimeout, Counters: HandshakeCounters{ResponsesRejected: 5}},
	}
	slog.New(slog.NewTextHandler(&text, nil)).LogAttrs(t.Context(), slog.LevelInfo, "connection closed", c.LogAttrs()...)
	const want = `msg="connection closed" reason=handshake_timeout cause="preshared keys differ" phase=handshake lasted=16s handshake=15s ` +
		"responses=5 peer_reports.reason=handshake_timeout peer_reports.responses_rejected=5\n"
	if !strings.HasSuffix(text.String(), want) {
		t.Error(text.String())
	}
}

func TestBackoff(t *testing.T) {
	var b backoff
	now := begun
	for i, want := range []time.Duration{1, 2, 4, 8, 16, 32, 60, 60, 60} {
		if !b.want(now) {
			t.Fatalf("attempt %d may not begin", i)
		}
		b.ended(now, 0, 0)
		want *= time.Second
		if b.want(now+want-1) || !b.due(now+want) || b.due(now+want) {
			t.Fatalf("attempt %d: next after %v", i, b.earliest-now)
		}
		now += want
	}
	b.ended(now, 0, 1<<32-1)
	if d := b.earliest - now; d < 74*time.Second || d > 75*time.Second {
		t.Errorf("the most jitter makes it %v", d)
	}
	b.want(now)
	b.reset(now)
	if !b.due(now) {
		t.Error("a reset does not end the waiting")
	}
	b.ended(now, 0, 0)
	b.ended(now, 0, 0)
	b.ended(now, backoffProven, 0)
	if b.earliest != now+time.Second {
		t.Errorf("a connection that was up counts as another failure: %v", b.earliest-now)
	}
	if b.due(now + time.Hour) {
		t.Error("nothing is wanted")
	}
}

// storm drives a connection with random inputs and watches what must always hold.
type storm struct {
	t      *testing.T
	dice   *rand.Rand
	c      *connection
	now    time.Duration
	v      sessionView
	never  bool // no session ever comes up
	agents map[uint32]bool
	closed int
	path   time.Duration // the first one
}

func (s *storm) input() {
	number := s.c.newest - uint32(s.dice.IntN(3)) + uint32(s.dice.IntN(2))
	switch s.dice.IntN(14) {
	case 0:
		s.c.handleCandidate(s.now, number)
	case 1, 2:
		s.c.handlePath(s.now, number, somePath)
	case 3:
		s.c.handleAgentFailed(number)
	case 4:
		s.c.handleAgentGone(number)
	case 5:
		s.c.handleRemoteAgent(s.now, number+s.dice.Uint32N(70))
	case 6:
		s.c.wantAgent(s.now)
	case 7:
		s.c.handleVerdict(s.now, crypto.Verdict{Reason: crypto.Reason(s.dice.IntN(int(crypto.ReasonCount)))})
		s.c.handleVerdict(s.now, crypto.Verdict{Peer: new(crypto.Peer), Roam: true})
	case 8:
		s.v.SeriesRunning, s.v.SeriesSince = !s.v.SeriesRunning, s.now
	case 9:
		s.v.lastSTUN = s.now
	case 10:
		s.v.LastData, s.v.Activity.LastReceived = s.now, s.now
	case 11:
		if s.v.Usable = !s.never && s.dice.IntN(2) == 0; s.v.Usable {
			s.v.Created = s.now
		}
	case 12:
		s.c.handleExpired(crypto.HandshakeExpired{Quiet: s.dice.IntN(8) != 0, Tally: crypto.Tally{Since: s.now - handshakeLifetime}})
	case 13:
		if s.dice.IntN(8) == 0 {
			s.c.handleBye(Bye{Generation: s.dice.Uint32N(2), Reason: CloseReason(s.dice.IntN(12))})
		}
	}
}

func (s *storm) step() {
	if s.v.Usable && s.now >= s.v.Created+crypto.RejectAfterTime {
		s.v.Usable = false
	}
	s.c.advance(s.now, s.v)
	for out, ok := s.c.poll(); ok; out, ok = s.c.poll() {
		s.watch(out)
	}
	at, why := s.c.nextTimeout()
	switch {
	case at != 0 && at <= s.now:
		s.t.Fatalf("%v is due %v ago", why, s.now-at)
	case at == 0 && !s.c.over():
		s.t.Fatalf("waits for nothing in %v", s.c.phase)
	case s.c.over() != (s.closed == 1):
		s.t.Fatalf("%v, but closed %d times", s.c.phase, s.closed)
	case s.never && s.path != 0 && !s.c.over() && s.now > s.path+handshakeLifetime+seriesDelay:
		s.t.Fatalf("a handshake for %v", s.now-s.path)
	}
	if at != 0 && s.dice.IntN(3) == 0 {
		s.now = at
	} else {
		s.now += time.Duration(s.dice.Int64N(int64(4 * time.Second)))
		if at != 0 {
			s.now = min(s.now, at)
		}
	}
}

func (s *storm) watch(out connectionOutput) {
	if s.closed != 0 && out.kind != connectionPeerReports && out.kind != connectionClearSession {
		s.t.Fatalf("output %d after the close", out.kind)
	}
	switch out.kind {
	case connectionStartAgent:
		if s.agents[out.agent] {
			s.t.Fatalf("agent %d twice", out.agent)
		}
		s.agents[out.agent] = true
	case connectionCloseAgent:
		if !s.agents[out.agent] {
			s.t.Fatalf("agent %d is not there", out.agent)
		}
		delete(s.agents, out.agent)
	case connectionPublishPath:
		if s.path == 0 {
			s.path = s.now
		}
	case connectionStartHandshake:
		if s.never && s.now >= s.path+handshakeLifetime+seriesDelay {
			s.t.Fatal("a handshake after its deadline")
		}
	case connectionClosed:
		s.closed++
		if len(s.agents) != 0 {
			s.t.Fatalf("agents %v are left", s.agents)
		}
	}
	if len(s.agents) > 2 {
		s.t.Fatalf("%d agents", len(s.agents))
	}
}

// Whatever happens in whatever order: never more than two agents, one close, timeouts that lie ahead, and without a session an
// end within the lifetimes.
func TestConnectionStorm(t *testing.T) {
	for seed := range uint64(1500) {
		s := &storm{
			t: t, dice: rand.New(rand.NewPCG(seed, 0)), now: begun, never: seed%2 == 0, agents: make(map[uint32]bool),
		}
		s.c = newConnection(begun, 1, seed%4 < 2)
		for range 200 {
			for range s.dice.IntN(3) {
				s.input()
			}
			s.step()
		}
		if most := begun + candidateTimeout + iceTimeout + handshakeLifetime + seriesDelay; s.never && s.now > most && !s.c.over() {
			t.Fatalf("seed %d: %v after %v", seed, s.c.phase, s.now-begun)
		}
		if t.Failed() {
			t.Fatalf("seed %d", seed)
		}
	}
}
