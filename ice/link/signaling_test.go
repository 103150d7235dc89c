package link

import (
	"fmt"
	"testing"

	"github.com/sluice-vpn/sluice/ice/signal"
)

// A bye keeps its reason and counters on the way, and what comes from a later version does no harm.
func TestByeMessage(t *testing.T) {
	bye := Bye{
		Attempt: 7, Reason: CloseHandshakeTimeout,
		Counters: HandshakeCounters{Initiations: 5, Mac1Mismatch: 3, UnknownStatic: 1<<32 - 1},
	}
	msg := byeMessage(bye)
	msg.Run = 1
	text, err := msg.Encode()
	if err != nil {
		t.Fatal(err)
	}
	back, err := signal.Decode(text)
	if err != nil {
		t.Fatal(err)
	}
	if got := byeOf(back); got != bye {
		t.Errorf("%+v became %+v", bye, got)
	}
	back.Reason, back.Counters = "of_the_future", map[string]uint64{"initiations": 1 << 40, "of_the_future": 1}
	got := byeOf(back)
	if got.Reason != CloseUnspecified || got.Counters.Initiations != 1<<32-1 {
		t.Errorf("%+v", got)
	}
	if got := byeOf(signal.Message{Generation: 1}); got.Attempt != 1 || got.Counters != (HandshakeCounters{}) {
		t.Errorf("%+v", got)
	}
}

// Candidates of an agent that ours does not match yet are not forgotten because an older message comes late.
func TestNewer(t *testing.T) {
	one := signal.Message{Ufrag: "a", Candidates: []string{"x"}}
	two := signal.Message{Ufrag: "a", Candidates: []string{"x", "y"}}
	other := signal.Message{Ufrag: "b"}
	for i, tt := range []struct{ old, msg, want signal.Message }{
		{signal.Message{}, one, one}, {one, two, two}, {two, one, two}, {two, other, other},
	} {
		if got := newer(tt.old, tt.msg); fmt.Sprint(got) != fmt.Sprint(tt.want) {
			t.Errorf("%d: %+v", i, got)
		}
	}
	var p asking
	for i := range uint32(100) {
		p.keep(signal.Msg{Message: signal.Message{Kind: signal.Offer, Generation: uint64(i/10) + 1, Agent: 1}})
	}
	if len(p.waiting) != maxPending {
		t.Errorf("%d messages wait", len(p.waiting))
	}
}

// FuzzBye: what a peer says in a bye is taken or left out, and what is taken can be told again.
func FuzzBye(f *testing.F) {
	f.Add("handshake_timeout", "initiations", uint64(5))
	f.Add("of_the_future", "of_the_future", uint64(1<<63))
	f.Add("", "", uint64(0))
	f.Fuzz(func(t *testing.T, reason, name string, n uint64) {
		bye := byeOf(signal.Message{Kind: signal.Bye, Generation: 1, Reason: reason, Counters: map[string]uint64{name: n}})
		msg := byeMessage(bye)
		msg.Run = 1
		if _, err := msg.Encode(); err != nil {
			t.Errorf("%+v: %v", bye, err)
		}
		if again := byeOf(msg); again != bye {
			t.Errorf("%+v became %+v", bye, again)
		}
	})
}
