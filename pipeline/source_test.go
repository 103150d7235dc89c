package pipeline

import (
	"bytes"
	"errors"
	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/pipeline/udp"
	"log/slog"
	"net/netip"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/tun/tuntest"
)

// A source that does not hold is left out, by control and lanes, however the peer is heard there again; it is taken once it holds.
func TestSourceIsForgotten(t *testing.T) {
	for _, workers := range []int{0, 2} {
		l := newLanes(t, workers, tuntest.Packet{Data: datagram(laneInner[0], laneInner[1], 1, 100)}, laneInner)
		c, p := l.b.control.controller, l.b.control.controller.peers[0]
		holds, asked := map[netip.Addr]bool{}, 0
		c.effects = &judge{courier: c.effects.(*courier), holds: func(path *Path) bool { asked++; return holds[path.Src] }}
		answer := func(when string, src, want netip.Addr, questions int) {
			t.Helper()
			l.wire.from.Dst, l.wire.from.IfIndex = src, 7
			l.carry(t, 1)
			l.b.notified.drain(func(p *peer, signals uint32) { c.notice(l.now, p, signals) })
			l.b.config.Device.(*tuntest.Device).InjectData(datagram(laneInner[1], laneInner[0], 1, 100))
			if _, err := l.b.shards[0].outbound.run(l.now); err != nil {
				t.Fatal(err)
			}
			if len(l.wire.runs) != 1 || l.wire.runs[0].Src != want || (l.wire.runs[0].IfIndex != 0) != want.IsValid() {
				t.Errorf("%s: left in %+v, want one run from %v", when, l.wire.runs, want)
			}
			l.wire.runs = l.wire.runs[:0]
			if asked != questions {
				t.Errorf("%s: %d questions, want %d", when, asked, questions)
			}
		}
		holds[laneAddrB] = true
		answer("asked at an address whose route leads back", laneAddrB, laneAddrB, 1)
		answer("again", laneAddrB, laneAddrB, 1)
		answer("at one whose does not", laneAddrA, netip.Addr{}, 2)
		answer("again", laneAddrA, netip.Addr{}, 2)
		answer("at the first one", laneAddrB, laneAddrB, 2)
		answer("at the other one", laneAddrA, netip.Addr{}, 2)
		holds = map[netip.Addr]bool{laneAddrA: true}
		c.checkSources(p, true)
		answer("after routes have changed", laneAddrA, laneAddrA, 4)
		answer("at the first one", laneAddrB, netip.Addr{}, 4)
	}
}

// judge is a courier's effects with routes.
type judge struct {
	*courier
	holds func(*Path) bool
}

func (j *judge) sourceHolds(path *Path) bool { return j.holds(path) }

// What control finds of a source is not lost to lanes that move at the same time, nor are moves; under the race detector, too.
func TestCheckedSourceStays(t *testing.T) {
	p := new(peer)
	at := func(i int) Path {
		return Path{Dst: netip.AddrPortFrom(laneAddrA, uint16(1+i%6)), Src: laneAddrB, IfIndex: 1}
	}
	p.hear(at(0))
	done := make(chan struct{})
	go func() {
		defer close(done)
		for i := range 20000 {
			p.roam(at(i))
		}
	}()
	for checking := true; checking; {
		select {
		case <-done:
			checking = false
		default:
		}
		p.checkSources(false, func(*Path) bool { return false })
	}
	if got := p.path.Load(); got.Dst != at(19999).Dst || got.source != sourceForgotten {
		t.Errorf("the path is %+v, want port %d and its source forgotten", got, at(19999).Dst.Port())
	}
}

// A walk goes through every peer, in slices, and the next one is not due before 20 times what it took, or leastRest.
func TestSourceWalk(t *testing.T) {
	var w sourceWalk
	peers := make([]*peer, 2*walkSlice+1)
	now := time.Hour
	if !w.ready(now) || w.deadline(now) != 0 || len(w.slice()) != 0 {
		t.Fatal("a walk is under way at first")
	}
	w.start(peers)
	for i, want := range []int{walkSlice, walkSlice, 1} {
		if w.ready(now) || w.deadline(now) != now {
			t.Errorf("slice %d: ready %v, deadline in %v, want another slice at once", i, w.ready(now), w.deadline(now)-now)
		}
		if got := len(w.slice()); got != want {
			t.Errorf("slice %d: %d peers, want %d", i, got, want)
		}
		w.took(now, now+time.Millisecond)
		now += time.Second // other things to do
	}
	now -= time.Second - time.Millisecond
	rest := now + 3*walkRest*time.Millisecond
	if w.ready(rest-1) || w.deadline(rest-1) != rest {
		t.Errorf("the next walk is due in %v, want %v", w.deadline(rest-1)-now, rest-now)
	}
	if !w.ready(rest) || w.deadline(rest) != 0 {
		t.Error("after the rest no walk may begin")
	}
	w.start(nil)
	if !w.ready(rest) {
		t.Error("a walk without peers does not end")
	}
	w.start(peers[:1])
	w.slice()
	w.took(rest, rest+1)
	if got := w.deadline(rest + 1); got != rest+1+leastRest {
		t.Errorf("after a short walk the next is due in %v, want %v", got-rest-1, leastRest)
	}
}

// fakeRoutes is routes whose word is holds.
type fakeRoutes struct {
	holds   atomic.Bool
	changed chan struct{}
	closed  atomic.Bool
}

func (r *fakeRoutes) SourceHolds(udp.Run, uint32) bool { return r.holds.Load() }
func (r *fakeRoutes) Changed() <-chan struct{}         { return r.changed }
func (r *fakeRoutes) Close() error                     { r.closed.Store(true); return nil }

// Control follows the routes that come with the sockets, for as long as those are open; where there are none it says why and goes on.
func TestRoutesOfTheSockets(t *testing.T) {
	runWorld(t, plain, func(w *world) {
		var log bytes.Buffer
		routes := &fakeRoutes{changed: make(chan struct{})}
		routes.holds.Store(true)
		var refusal error
		c := newNode(t, w.network, plain, 3, func(cfg *Config) {
			cfg.Logger = slog.New(slog.NewTextHandler(&log, nil))
			listen := cfg.Listen
			cfg.Listen = func(cfg udp.Config) ([]udp.Pair, error) {
				pairs, err := listen(cfg)
				if !cfg.Routes || err != nil {
					return pairs, errors.Join(err, errors.New("routes were not asked for"))
				}
				if pairs[0].NoRoutes = refusal; refusal == nil {
					pairs[0].Routes = routes
				}
				return pairs, nil
			}
		})
		source := func() (state sourceState) {
			_ = c.Edit(func(e *Edit) error { state = e.c.controller.peers[0].path.Load().source; return nil })
			return state
		}
		c.know(w.a, crypto.PresharedKey{})
		_ = w.a.Edit(func(e *Edit) error {
			p := e.AddPeer(c.key.Public())
			p.SetEndpoint(c.outer)
			p.AddAllowedIP(netip.PrefixFrom(c.inner4, 32))
			return nil
		})
		w.settle()
		talk := func() {
			w.a.device.InjectData(datagram(w.a.inner4, c.inner4, 1, 20))
			w.settle()
		}
		talk()
		if got := source(); got != sourceHeld {
			t.Errorf("after a handshake the source is in state %d, want %d", got, sourceHeld)
		}
		for range 2 {
			for holds, want := range map[bool]sourceState{false: sourceForgotten, true: sourceHeld} {
				routes.holds.Store(holds)
				routes.changed <- struct{}{}
				w.settle()
				talk()
				if got := source(); got != want {
					t.Errorf("after a change of routes the source is in state %d, want %d", got, want)
				}
			}
		}
		if strings.Contains(log.String(), "WARN") {
			t.Errorf("the log says %s", &log)
		}
		refusal = errors.New("refused by a filter of system calls")
		c.device.SetUp(false)
		w.settle()
		if !routes.closed.Load() {
			t.Error("the routes stay open without the sockets")
		}
		routes.holds.Store(false)
		c.device.SetUp(true)
		w.settle()
		talk()
		w.sleep(20 * time.Second)
		talk()
		if got := source(); got != sourceHeld {
			t.Errorf("without routes the source is in state %d, want %d", got, sourceHeld)
		}
		if got := strings.Count(log.String(), refusal.Error()); got != 1 {
			t.Errorf("the reason is logged %d times, want once: %s", got, &log)
		}
		_ = c.Close()
		if err := <-c.ran; err != nil {
			t.Error(err)
		}
	})
}
