package edge

import (
	"bytes"
	"context"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/ice/link"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/signal"
)

// met is a world of a gateway and a client that have met.
func met(t *testing.T, test func(w *world, c, g *node)) {
	run(t, signal.Faults{}, func(w *world) {
		g := w.node("gate", protocol.Gateway)
		c := w.node("laptop", protocol.Client)
		w.await(5*time.Second, "connected", func() bool { return up(c, g) })
		w.carries(c, g)
		test(w, c, g)
	})
}

// fingerprint is that of a node's token.
func fingerprint(of string) string { return protocol.IdentityOf(identityOf(of)).Fingerprint() }

// A portal that gives out another key for a peer that was met is found out, whatever it says of the identity: the connection ends by
// name, both sides say why, nothing is sealed for the other key, and all is well again when the portal is.
func TestPortalSwapsKey(t *testing.T) {
	theirs := protocol.Key(crypto.PrivateKey{99}.Public())
	evil := identityOf("evil")
	for name, tt := range map[string]struct {
		tamper func(p *protocol.Peer)
		want   string
		now    string // the identity that the portal gives
	}{
		"key alone": {func(p *protocol.Peer) { p.PublicKey = theirs }, "key_unsigned", fingerprint("gate")},
		"signed by another": {func(p *protocol.Peer) {
			p.PublicKey, p.Signature = theirs, protocol.SignKey(evil, p.Name, theirs)
		}, "key_unsigned", fingerprint("gate")},
		"identity too": {func(p *protocol.Peer) {
			p.PublicKey, p.Identity, p.Signature = theirs, protocol.IdentityOf(evil), protocol.SignKey(evil, p.Name, theirs)
		}, "identity_changed", fingerprint("evil")},
		"no identity": {func(p *protocol.Peer) {
			p.PublicKey, p.Identity, p.Signature = theirs, protocol.Identity{}, protocol.Signature{}
		}, "identity_changed", "none"},
		"no identity, the same key": {func(p *protocol.Peer) {
			p.Identity, p.Signature = protocol.Identity{}, protocol.Signature{}
		}, "identity_changed", "none"},
	} {
		t.Run(name, func(t *testing.T) {
			met(t, func(w *world, c, g *node) {
				w.portal.change(func() { w.portal.nodes["gate"].tamper = tt.tamper })
				w.await(2*time.Second, "closed", func() bool { return c.connection("gate").LastClose != nil && g.connection("laptop").LastClose != nil })
				s := c.connection("gate")
				if s.LastClose.Reason != tt.want || s.Distrust != tt.want || s.Identity != tt.now || s.Pinned != fingerprint("gate") {
					t.Errorf("status %+v, close %+v, want %s, %s", s, s.LastClose, tt.want, tt.now)
				}
				if !strings.Contains(s.Explanation, "no session") || !strings.Contains(s.Explanation, "somebody") {
					t.Errorf("explanation %q", s.Explanation)
				}
				if s := g.connection("laptop").LastClose; s.Reason != "peer_closed" || s.PeerReports == nil || s.PeerReports.Reason != tt.want {
					t.Errorf("the gateway's last close %+v, want %s there", s, tt.want)
				}
				if n := c.log.count("reason=" + tt.want); n < 2 || !strings.Contains(c.log.String(), "pinned="+fingerprint("gate")) {
					t.Errorf("%d lines of the log have the reason", n)
				}
				g.device.Take()
				packet := ipPacket(inner(c.number), inner(g.number), "for the gateway only")
				for range 120 {
					c.device.InjectData(packet)
					g.device.InjectData(ipPacket(inner(g.number), inner(c.number), "anybody there?"))
					time.Sleep(time.Second)
				}
				if s := c.connection("gate"); !s.LastHandshake.IsZero() || s.State == "up" || s.Distrust != tt.want {
					t.Errorf("there is a session: %+v", s)
				}
				if of, err := c.pipeline.Status(); err != nil || len(of.Peers) != 1 || protocol.Key(of.Peers[0].PublicKey) == theirs {
					t.Errorf("the pipeline has the other key: %v", err)
				}
				if n := c.log.count("no session with the peer"); n != 1 {
					t.Errorf("it is told %d times, want once", n)
				}
				w.portal.change(func() { w.portal.nodes["gate"].tamper = nil })
				w.await(90*time.Second, "connected again", func() bool { return up(c, g) })
				w.carries(c, g)
			})
		})
	}
}

// A portal that swaps two nodes with all that they have is found out, too.
func TestPortalSwapsNodes(t *testing.T) {
	met(t, func(w *world, c, g *node) {
		g2 := w.node("gate2", protocol.Gateway)
		w.await(5*time.Second, "connected", func() bool { return up(c, g2) })
		w.portal.change(func() {
			one, two := w.portal.nodes["gate"], w.portal.nodes["gate2"]
			swap := func(name string, e *entry) func(p *protocol.Peer) {
				return func(p *protocol.Peer) {
					id := identityOf(name)
					p.PublicKey, p.Identity, p.Signature = e.key, protocol.IdentityOf(id), protocol.SignKey(id, name, e.key)
				}
			}
			one.tamper, two.tamper = swap("gate2", two), swap("gate", one)
		})
		for _, name := range []string{"gate", "gate2"} {
			w.await(2*time.Second, "closed", func() bool { return c.connection(name).LastClose != nil })
			if s := c.connection(name); s.LastClose.Reason != "identity_changed" || s.Pinned != fingerprint(name) {
				t.Errorf("%s: %+v", name, s)
			}
		}
	})
}

// What was for a peer that is not trusted goes to nobody, not to the one with the next larger network.
func TestNetworksOfDistrusted(t *testing.T) {
	met(t, func(w *world, c, g *node) {
		g2 := w.node("gate2", protocol.Gateway)
		w.await(5*time.Second, "connected", func() bool { return up(c, g2) })
		small, large := netip.MustParsePrefix("10.1.0.0/16"), netip.MustParsePrefix("10.0.0.0/8")
		tamper := func(prefix netip.Prefix, signed bool) func(p *protocol.Peer) {
			return func(p *protocol.Peer) {
				p.AllowedIPs = append(p.AllowedIPs, prefix)
				if !signed {
					p.Identity = protocol.Identity{1}
				}
			}
		}
		w.portal.change(func() {
			w.portal.nodes["gate"].tamper, w.portal.nodes["gate2"].tamper = tamper(small, true), tamper(large, true)
		})
		packet := ipPacket(inner(c.number), netip.MustParseAddr("10.1.0.5"), "for gate")
		arrives := func(n *node, packet []byte) bool {
			return slices.ContainsFunc(n.device.TakeSegments(), func(got []byte) bool { return bytes.Equal(got, packet) })
		}
		w.await(20*time.Second, "gate has it", func() bool { c.device.InjectData(packet); return arrives(g, packet) })
		w.portal.change(func() { w.portal.nodes["gate"].tamper = tamper(small, false) })
		w.await(5*time.Second, "noticed", func() bool { return c.connection("gate").Distrust == "identity_changed" })
		time.Sleep(time.Second) // what was under way has arrived
		g.device.Take()
		other := ipPacket(inner(c.number), netip.MustParseAddr("10.2.0.5"), "for gate2")
		w.await(20*time.Second, "gate2 has its own", func() bool {
			c.device.InjectData(packet)
			c.device.InjectData(other)
			got := g2.device.TakeSegments()
			if slices.ContainsFunc(got, func(b []byte) bool { return bytes.Equal(b, packet) }) {
				w.t.Fatal("gate2 has what was for gate")
			}
			return slices.ContainsFunc(got, func(b []byte) bool { return bytes.Equal(b, other) })
		})
		if arrives(g, packet) {
			t.Error("gate has it without a session")
		}
	})
}

// A node that starts again has another WireGuard key and is the same; its peers need no word of anybody.
func TestRestartIsTheSameNode(t *testing.T) {
	met(t, func(w *world, c, g *node) {
		was := g.edge.PublicKey()
		for range 3 {
			g.close()
			g.start()
			w.await(30*time.Second, "connected again", func() bool { return up(c, g) })
		}
		if g.edge.PublicKey() == was {
			t.Error("the key is the same")
		}
		if strings.Contains(c.log.String(), "identity_changed") || c.connection("gate").Distrust != "" {
			t.Errorf("%+v", c.connection("gate"))
		}
		if c.saves != 1 {
			t.Errorf("pins were saved %d times, want once", c.saves)
		}
	})
}

// A node with a renewed token is another one until somebody says that it is not.
func TestRenewedTokenNeedsTrust(t *testing.T) {
	met(t, func(w *world, c, g *node) {
		g.close()
		g.token = "renewed"
		w.portal.change(func() { w.portal.nodes["gate"].token, w.portal.nodes["gate"].key = "renewed", protocol.Key{} })
		g.start()
		w.await(5*time.Second, "noticed", func() bool { return c.connection("gate").Distrust == "identity_changed" })
		g.device.InjectData(ipPacket(inner(g.number), inner(c.number), "it is me"))
		w.await(30*time.Second, "the gateway is told", func() bool {
			s := g.connection("laptop").LastClose
			return s != nil && s.PeerReports != nil && s.PeerReports.Reason == "identity_changed"
		})
		if text := g.connection("laptop").Explanation; !strings.Contains(text, "sluice trust on that machine") {
			t.Errorf("the gateway's explanation is %q", text)
		}
		ctx := context.Background()
		for _, tt := range []struct {
			name string
			id   protocol.Identity
			want string
		}{
			{"nobody", protocol.IdentityOf(identityOf("gate")), "names no peer nobody"},
			{"gate", protocol.IdentityOf(identityOf("gate")), "is " + fingerprint("gaterenewed") + " now"},
			{"gate", protocol.Identity{}, "look again"},
		} {
			if err := c.edge.Trust(ctx, tt.name, tt.id); err == nil || !strings.Contains(err.Error(), tt.want) {
				t.Errorf("trust in %s: %v, want %q", tt.name, err, tt.want)
			}
		}
		pins, err := c.edge.Pins(ctx)
		if err != nil || len(pins) != 1 || pins[0].Distrust != "identity_changed" || pins[0].Pinned.Fingerprint() != fingerprint("gate") {
			w.t.Fatalf("pins %+v, %v", pins, err)
		}
		if err := c.edge.Trust(ctx, "gate", pins[0].Offered); err != nil {
			w.t.Fatal(err)
		}
		w.await(5*time.Second, "connected again", func() bool { return up(c, g) })
		w.carries(c, g)
		if got := c.saved()["gate"].Fingerprint(); got != fingerprint("gaterenewed") {
			t.Errorf("saved %s, want the new one", got)
		}
		if s := c.connection("gate"); s.Distrust != "" || s.Pinned != s.Identity {
			t.Errorf("%+v", s)
		}
	})
}

// Pins outlive the node that has them: what has changed meanwhile is noticed at its start. One without pins takes what it is told.
func TestPinsOutliveNode(t *testing.T) {
	met(t, func(w *world, c, g *node) {
		evil := identityOf("evil")
		c.close()
		w.portal.change(func() {
			w.portal.nodes["gate"].tamper = func(p *protocol.Peer) {
				p.Identity, p.Signature = protocol.IdentityOf(evil), protocol.SignKey(evil, p.Name, p.PublicKey)
			}
		})
		c.start()
		w.await(5*time.Second, "noticed", func() bool { return c.connection("gate").Distrust == "identity_changed" })
		c.device.InjectData(ipPacket(inner(c.number), inner(g.number), "hello"))
		w.await(5*time.Second, "an attempt ends", func() bool { return c.connection("gate").LastClose != nil })
		if s := c.connection("gate"); s.LastClose.Reason != "identity_changed" || s.State == "up" {
			t.Errorf("%+v, close %+v", s, s.LastClose)
		}
		c.close()
		c.save(nil)
		c.start()
		w.await(30*time.Second, "connected", func() bool { return up(c, g) })
		if got := c.saved()["gate"]; got != protocol.IdentityOf(evil) {
			t.Errorf("pinned %v", got)
		}
	})
}

// A peer that never had an identity that signs is not taken either, and is not pinned.
func TestStrangerWithoutSignature(t *testing.T) {
	run(t, signal.Faults{}, func(w *world) {
		g := w.node("gate", protocol.Gateway)
		w.portal.change(func() { w.portal.nodes["gate"].tamper = func(p *protocol.Peer) { p.Signature[0] ^= 1 } })
		c := w.node("laptop", protocol.Client)
		w.await(5*time.Second, "noticed", func() bool { return c.connection("gate").Distrust == "key_unsigned" })
		if len(c.saved()) != 0 {
			t.Errorf("pinned %v", c.saved())
		}
		pins, err := c.edge.Pins(context.Background())
		if err != nil || len(pins) != 1 {
			w.t.Fatalf("pins %v, %v", pins, err)
		}
		if err := c.edge.Trust(context.Background(), "gate", pins[0].Offered); err == nil || !strings.Contains(err.Error(), "not signed") {
			t.Errorf("trust: %v", err)
		}
		w.portal.change(func() { w.portal.nodes["gate"].tamper = nil })
		w.await(30*time.Second, "connected", func() bool { return up(c, g) })
	})
}

// The pins are bounded; what comes then is taken and said.
func TestPinsAreBounded(t *testing.T) {
	met(t, func(w *world, c, g *node) {
		c.owner(func(e *Edge) {
			for i := len(e.pins); i < maxPins; i++ {
				e.pins[string([]byte{'x', byte(i), byte(i >> 8)})] = protocol.Identity{1}
			}
		})
		g2 := w.node("gate2", protocol.Gateway)
		w.await(30*time.Second, "connected", func() bool { return up(c, g2) })
		if n := c.log.count("too many pins"); n != 1 {
			t.Errorf("told %d times, want once", n)
		}
		c.owner(func(e *Edge) {
			if len(e.pins) != maxPins || e.distrust("gate2") != link.CloseUnspecified {
				t.Errorf("%d pins, want %d", len(e.pins), maxPins)
			}
		})
	})
}
