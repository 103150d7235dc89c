package link

import (
	"encoding/json"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
)

func TestControls(t *testing.T) {
	for _, c := range []struct {
		client, peerClient bool
		name, peer         string
		want               bool
	}{
		{true, false, "z", "a", true}, {false, true, "a", "z", false},
		{true, true, "a", "b", true}, {true, true, "b", "a", false}, {false, false, "a", "b", true},
	} {
		if controls(c.client, c.peerClient, c.name, c.peer) != c.want || controls(c.peerClient, c.client, c.peer, c.name) == c.want {
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
	bye := Bye{Attempt: 3, Reason: CloseHandshakeTimeout, Counters: HandshakeCounters{Initiations: 5, ResponsesRejected: 2}}
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
	for _, names := range [][]string{phaseNames[:], closeReasonNames[:], closeCauseNames[1:], deadlineNames[:]} {
		clear(seen)
		for _, name := range names {
			if name == "" || seen[name] {
				t.Errorf("%q", name)
			}
			seen[name] = true
		}
	}
	if PhaseClosed.String() != "closed" || CloseUnknown.String() != "unknown_connection" || deadlineAgent.String() != "agent" ||
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
	now := time.Hour
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
