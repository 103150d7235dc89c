package pipeline

import (
	"bytes"
	"crypto/rand"
	"net/netip"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/pipeline/frame"
)

// voice is a peer as it is heard by the one whose handshake limit is tested.
type voice struct {
	t     *testing.T
	local *crypto.Local
	peer  *crypto.Peer
	now   time.Duration
}

// newVoice makes a peer of c.
func newVoice(t *testing.T, c *controller) *voice {
	v := &voice{t: t, now: time.Hour}
	wall := time.Now()
	var err error
	if v.local, err = crypto.NewLocal(crypto.Config{Wall: func() time.Time { wall = wall.Add(time.Second); return wall }}); err != nil {
		t.Fatal(err)
	}
	key, _ := crypto.GeneratePrivateKey(rand.Reader)
	public := key.Public()
	v.local.SetPrivateKey(v.now, &key)
	if v.peer, err = v.local.AddPeer(v.now, crypto.PeerConfig{PublicKey: c.local.PublicKey()}); err != nil {
		t.Fatal(err)
	}
	if _, err := c.add(v.now, public); err != nil {
		t.Fatal(err)
	}
	return v
}

// initiation is a new one.
func (v *voice) initiation() []byte {
	v.t.Helper()
	v.peer.Clear(v.now)
	v.now += 10 * time.Second
	v.peer.Want(v.now)
	for out, ok := v.peer.Poll(); ok; out, ok = v.peer.Poll() {
		if out.Kind == crypto.SendMessage {
			return bytes.Clone(out.Message)
		}
	}
	v.t.Fatal("no initiation")
	return nil
}

// replies keeps what the tested side sends.
type replies struct {
	*courier
	last []byte
}

func (r *replies) send(_ *Path, data []byte, _ uint8) bool {
	r.last = bytes.Clone(data)
	return true
}

// Peers behind one relay, at their own addresses, at its channels or at its ports, share neither cookie nor limit: who replays one's
// messages takes nothing from the others. Who needs no relay has one limit for all of its ports.
func TestHandshakeLimitBehindRelay(t *testing.T) {
	server := netip.MustParseAddrPort("198.51.100.1:3478")
	port := func(n uint16) netip.AddrPort { return netip.AddrPortFrom(server.Addr(), n) }
	for _, test := range []struct {
		name      string
		relay     netip.AddrPort
		one, two  Path
		twoIsHurt bool
	}{
		{"channels", server, Path{Dst: server, Channel: 0x4001}, Path{Dst: server, Channel: 0x4002}, false},
		{"ports", server, Path{Dst: port(50001)}, Path{Dst: port(50002)}, false},
		{"port and channel", server, Path{Dst: port(50001)}, Path{Dst: server, Channel: 0x4002}, false},
		{"no relay", netip.MustParseAddrPort("198.51.100.2:3478"), Path{Dst: port(50001)}, Path{Dst: port(50002)}, true},
	} {
		t.Run(test.name, func(t *testing.T) {
			p := newSieve(t)
			p.SetRelays([]netip.AddrPort{test.relay})
			c, out := p.control.controller, &replies{courier: &courier{}}
			c.effects, c.up = out, true
			key, _ := crypto.GeneratePrivateKey(rand.Reader)
			c.setPrivateKey(time.Hour, &key)
			one, two := newVoice(t, c), newVoice(t, c)
			say := func(from Path, message []byte) crypto.Reason {
				b := message
				if from.Channel != 0 {
					b = make([]byte, frame.ChannelHeaderSize, frame.ChannelHeaderSize+len(message))
					frame.PutChannelHeader(b, from.Channel, uint16(len(message)))
					b = append(b, message...)
				}
				p.pass(from.Dst, bytes.Clone(b))
				before := [crypto.ReasonCount]uint64{}
				for r := range before {
					before[r] = c.handshakes[r].Load()
				}
				mail, _, _ := p.counts()
				if len(mail) != 1 {
					t.Fatalf("%d letters, want 1", len(mail))
				}
				c.local.NoteQueue(time.Hour, 1024, 1024)
				c.handle(time.Hour, &mail[0])
				for r := range before {
					if c.handshakes[r].Load() != before[r] {
						return crypto.Reason(r)
					}
				}
				t.Fatal("nothing was counted")
				return 0
			}
			cookie := func(v *voice, from Path) {
				if got := say(from, v.initiation()); got != crypto.CookieSent {
					t.Fatalf("%v, want a cookie", got)
				}
				if got := v.local.Handle(v.now, crypto.Source{}, out.last, nil).Reason; got != crypto.Accepted {
					t.Fatalf("the cookie reply: %v", got)
				}
			}
			cookie(one, test.one)
			cookie(two, test.two)
			recorded := one.initiation()
			if got := say(test.two, recorded); got != crypto.CookieSent {
				t.Errorf("one's message from where two is: %v, want a cookie", got)
			}
			for range 20 {
				say(test.one, recorded)
			}
			if got := say(test.one, one.initiation()); got != crypto.RateLimited {
				t.Errorf("one: %v, want rate_limited", got)
			}
			want := crypto.Accepted
			if test.twoIsHurt {
				want = crypto.RateLimited
			}
			if got := say(test.two, two.initiation()); got != want {
				t.Errorf("two: %v, want %v", got, want)
			}
		})
	}
}
