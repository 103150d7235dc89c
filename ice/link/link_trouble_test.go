package link

import (
	"fmt"
	"math/rand/v2"
	"os"
	"strconv"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/pipeline"
	"github.com/sluice-vpn/sluice/pipeline/udp/udptest"
)

// Whatever happens to a connection, in whatever order: when all is well again the next packet makes one that works, and when that
// is closed neither control nor the lanes keep anything. LINK_SEEDS=FROM-TO runs other seeds than the first few.
func TestLinkTrouble(t *testing.T) {
	from, to := uint64(0), uint64(60)
	if a, b, ok := strings.Cut(os.Getenv("LINK_SEEDS"), "-"); ok {
		from, _ = strconv.ParseUint(a, 10, 64)
		to, _ = strconv.ParseUint(b, 10, 64)
	}
	for seed := from; seed < to; seed++ {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			v := []variant{plain, queues}[seed%2]
			runLinks(t, v, func(w *linkWorld) {
				r := &linkTrouble{linkWorld: w, random: rand.New(rand.NewPCG(seed, 2))}
				r.run()
			})
		})
	}
}

// linkTrouble is what happens to two nodes and their connection.
type linkTrouble struct {
	*linkWorld
	random *rand.Rand
	events []string
}

func (r *linkTrouble) run() {
	for range 60 {
		r.happen()
		sleep(time.Duration(r.random.Int64N(int64([]time.Duration{100 * time.Millisecond, time.Second, 30 * time.Second}[r.random.IntN(3)]))))
	}
	r.heal()
	deadline := time.Now().Add(3 * time.Minute)
	for up := false; !up; {
		if time.Now().After(deadline) {
			r.t.Fatalf("not up: %+v, %+v\n%s\nlog of a:\n%s\nlog of b:\n%s", r.a.status().Connection, r.b.status().Connection,
				strings.Join(r.events, "\n"), &r.a.log.b, &r.b.log.b)
		}
		r.a.send(1)
		r.b.send(1)
		sleep(time.Second)
		a, b := r.a.status().Connection, r.b.status().Connection
		up = a.Phase == PhaseUp && b.Phase == PhaseUp && a.Generation == b.Generation
	}
	sleep(time.Second)
	r.wantUp()
	r.edges(func() { r.a.attempt.Close(CloseShutdown) })
	sleep(time.Minute)
	for _, s := range []*side{r.a, r.b} {
		s.wantNothingLeft()
	}
	if r.t.Failed() {
		r.t.Log(strings.Join(r.events, "\n"))
	}
}

// happen lets one thing happen.
func (r *linkTrouble) happen() {
	s, on := []*side{r.a, r.b}[r.random.IntN(2)], r.random.IntN(2) == 0
	choices := map[string]func(){
		"signaling": func() { r.edges(func() { r.signaling = on }) },
		"stun":      func() { r.edges(func() { r.stun = on }) },
		"deaf":      func() { r.edges(func() { s.deaf = on }) },
		"latency": func() {
			r.edges(func() {
				r.latency, r.delay = time.Duration(r.random.IntN(300))*time.Millisecond, time.Duration(r.random.IntN(3000))*time.Millisecond
			})
		},
		"cable": func() {
			hook := func(*udptest.Datagram) bool { return false }
			if on {
				hook = nil
			}
			r.network.Hook(hook)
		},
		"one way": func() {
			to := s.outer
			r.network.Hook(func(d *udptest.Datagram) bool { return d.Dst != to })
		},
		"key":       func() { s.newKey() },
		"preshared": func() { r.edges(func() { s.psk = crypto.PresharedKey{byte(1 + r.random.IntN(2))} }) },
		"agree":     r.agree,
		"interface": func() { s.device.SetUp(on) },
		"agent":     func() { r.tell(s, func(a *Attempt) { a.WantAgent() }) },
		"failed":    func() { r.tell(s, func(a *Attempt) { a.AgentFailed(s.using) }) },
		"close": func() {
			r.tell(s, func(a *Attempt) {
				a.Close([]CloseReason{CloseReplaced, CloseShutdown, CloseICEDisconnected}[r.random.IntN(3)])
			})
		},
		"bye": func() {
			r.tell(s, func(a *Attempt) { a.Bye(Bye{Generation: s.number, Reason: CloseReason(r.random.IntN(12))}) })
		},
		"sleep":    func() { s.slept.Add(r.random.Int64N(int64(time.Hour))) },
		"want":     func() { s.Want(s.other.name) },
		"nameless": func() { r.rename(s) },
		"packet":   func() { s.send(r.random.IntN(100)) },
		"packets": func() {
			for i := range 200 {
				s.send(i)
			}
		},
	}
	name := troubles[r.random.IntN(len(troubles))]
	r.events = append(r.events, fmt.Sprintf("%v %s: %s %v", time.Now().Format("15:04:05.000"), s.name, name, on))
	choices[name]()
}

// troubles are the keys of happen's choices; packets come often, since most of what happens needs some.
var troubles = []string{
	"signaling", "stun", "deaf", "latency", "cable", "one way", "key", "preshared", "agree", "interface", "agent", "failed", "close",
	"bye", "sleep", "want", "nameless", "packet", "packets", "packet", "packets", "packet", "agree",
}

func (r *linkTrouble) tell(s *side, f func(a *Attempt)) {
	r.edges(func() {
		if s.attempt != nil {
			f(s.attempt)
		}
	})
}

// rename makes the other a plain peer for a moment.
func (r *linkTrouble) rename(s *side) {
	s.edit(func(e *pipeline.Edit) { s.peer(e).SetName("") })
	sleep(time.Duration(r.random.IntN(2000)) * time.Millisecond)
	s.edit(func(e *pipeline.Edit) { s.peer(e).SetName(s.other.name) })
}

func (r *linkTrouble) heal() {
	r.network.Hook(nil)
	r.edges(func() {
		r.signaling, r.stun, r.a.deaf, r.b.deaf, r.latency, r.delay = true, true, false, false, signalLatency, 0
	})
	for _, s := range []*side{r.a, r.b} {
		s.device.SetUp(true)
	}
	settle()
	r.agree()
}

// sleeper is a clock that can jump as in suspend.
type sleeper struct{ slept atomic.Int64 }

func (s *sleeper) clock(awake func() time.Duration) func() time.Duration {
	return func() time.Duration { return awake() + time.Duration(s.slept.Load()) }
}
