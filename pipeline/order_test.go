package pipeline

import (
	"net/netip"
	"sync"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/pipeline/udp/udptest"
)

// What B sends from another of its addresses moves A's path before anything that it gives rise to leaves: the response, the first
// data of a new session, the answer. A cookie reply moves nothing, since it proves nothing of who asked for it (kernel receive.c,
// wg_receive_handshake_packet and wg_packet_consume_data_done).
func TestOrderOfMoves(t *testing.T) {
	const initiation, response, cookieReply, transport = 1, 2, 3, 4
	ask := func(w *world) { w.a.device.InjectData(datagram(w.a.inner4, w.b.inner4, 1, 20)) }
	for _, c := range []struct {
		event   string
		session bool // there is one already
		kind    byte // of B's message that comes from elsewhere
		cause   func(*world)
		then    func(*world) // what A has to send after it
		moves   bool
	}{
		{"an initiation, and the response to it", false, initiation,
			func(w *world) { w.b.device.InjectData(datagram(w.b.inner4, w.a.inner4, 1, 20)) }, nil, true},
		{"a response, and packets of the moment in which the session begins", false, response, ask, nil, true},
		{"a cookie reply, and the next initiation", false, cookieReply, func(w *world) {
			_ = w.b.Edit(func(e *Edit) error { e.c.controller.local.NoteQueue(e.c.now, mailboxSlots, mailboxSlots); return nil })
			ask(w)
		}, func(w *world) { w.sleep(6 * time.Second) }, false},
		{"a keepalive, and the next packet", true, transport, func(w *world) {
			_ = w.b.Edit(func(e *Edit) error { e.Peer(w.a.key.Public()).SetPersistentKeepalive(60); return nil })
		}, ask, true},
		{"data, and the answer", true, transport,
			func(w *world) { w.b.device.InjectData(datagram(w.b.inner4, w.a.inner4, 1, 20)) }, ask, true},
	} {
		t.Run(c.event, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				w := &world{t: t, network: udptest.New(1)}
				armed := false
				w.a = newNode(t, w.network, plain, 1, func(cfg *Config) {
					cfg.Wall = func() time.Time { // control asks for the time when it has begun a session
						if armed && c.kind == response {
							armed = false
							ask(w)
							time.Sleep(time.Millisecond) // the lane sends, if it has a session to send with
						}
						return time.Now()
					}
				})
				w.b = newNode(t, w.network, plain, 2)
				w.a.know(w.b, crypto.PresharedKey{})
				w.b.know(w.a, crypto.PresharedKey{})
				w.settle()
				if c.session {
					w.exchange(t)
				}
				elsewhere := netip.AddrPortFrom(w.b.outer.Addr().Next(), w.b.outer.Port())
				w.b.host.AddAddress(elsewhere.Addr())
				var mu sync.Mutex
				var went []netip.AddrPort
				came := false
				w.network.Hook(func(d *udptest.Datagram) bool {
					mu.Lock()
					defer mu.Unlock()
					switch {
					case d.Src == w.b.outer && d.Data[0] == c.kind && !came:
						d.Src, came, armed = elsewhere, true, true
					case d.Src == w.a.outer && came:
						went = append(went, d.Dst)
					}
					return true
				})
				c.cause(w)
				w.settle()
				w.sleep(10 * time.Millisecond)
				if c.then != nil {
					c.then(w)
					w.settle()
				}
				want := w.b.outer
				if c.moves {
					want = elsewhere
				}
				switch {
				case !came:
					t.Error("B sent no such message")
				case len(went) == 0:
					t.Error("A sent nothing after it")
				case went[0] != want:
					t.Errorf("A sent to %v after it, want %v first", went, want)
				}
				w.network.Hook(nil)
				w.end()
			})
		})
	}
}

// Who sees a new keypair sees where the message that made it came from, whatever lanes and control are at.
func TestKeypairComesWithItsPath(t *testing.T) {
	const moves = 200_000
	p := new(peer)
	local, err := crypto.NewLocal(crypto.Config{Wall: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	if p.core, err = local.AddPeer(0, crypto.PeerConfig{}); err != nil {
		t.Fatal(err)
	}
	var moving sync.WaitGroup
	moving.Go(func() {
		for i := range uint32(moves) {
			p.path.Store(&Path{Number: PathNumber(i)})
			p.confirmed.Store(&crypto.Keypair{LocalIndex: i})
		}
	})
	for last := uint32(0); last < moves-1; {
		path, kp := p.way(0)
		if kp == nil {
			continue
		}
		if last = kp.LocalIndex; path == nil || uint32(path.Number) < last {
			t.Errorf("session %d with path %+v", last, path)
			break
		}
	}
	moving.Wait()
}
