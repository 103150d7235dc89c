package pipeline

import (
	"bytes"
	"encoding/binary"
	"errors"
	"net/netip"
	"slices"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/pipeline/udp/udptest"
	"github.com/sluice-vpn/sluice/tun/ip"
)

// Packets that came before there was a session are delivered first and in order (paper, section 6.4), those behind them
// unchanged, in both directions and families.
func TestDelivery(t *testing.T) {
	eachVariant(t, func(w *world) {
		first := datagrams(w.a.inner4, w.b.inner4, 20, 100)
		w.a.device.InjectData(first...)
		w.settle()
		w.wantPackets(w.b, first...)
		for _, size := range []int{0, 1, 15, 16, 17, 700, 1391, 1392} {
			there := datagrams(w.a.inner4, w.b.inner4, 100, size)
			back := datagrams(w.b.inner6, w.a.inner6, 100, min(size, 1372))
			w.a.device.InjectData(there...)
			w.b.device.InjectData(back...)
			w.settle()
			w.wantPackets(w.b, there...)
			w.wantPackets(w.a, back...)
		}
		w.wantCounter(w.b, "handshake_accepted", 1)
		w.wantCounter(w.b, "drop_unauthentic", 0)
	})
}

// A superpacket arrives as the segments that it stands for; with offload they go up as one write again.
func TestSuperpacket(t *testing.T) {
	eachVariant(t, func(w *world) {
		if !w.a.device.Capabilities().TSO4 {
			return
		}
		for i, c := range []struct{ payload, size int }{{1, 1380}, {1380, 1380}, {64000, 1380}, {65000, 536}, {3000, 100}} {
			p, segments := superpacket(w.a.inner4, w.b.inner4, uint32(i)<<20, c.payload, c.size)
			p6, segments6 := superpacket(w.a.inner6, w.b.inner6, uint32(i)<<20, c.payload, min(c.size, 1360))
			w.a.device.Inject(p)
			w.settle()
			runs := w.b.counter("inbound_runs")
			w.wantPackets(w.b, segments...)
			w.a.device.Inject(p6)
			w.settle()
			w.wantPackets(w.b, segments6...)
			if got := w.b.counter("inbound_runs") - runs; w.b.device.Capabilities().TSO6 && got > 3 {
				t.Errorf("%d segments went up in %d runs", len(segments6), got)
			}
		}
	})
}

// No counter is used twice under one index, whatever cuts, splits and batches happen (paper, section 5.4.6).
func TestNoNonceTwice(t *testing.T) {
	eachVariant(t, func(w *world) {
		type nonce struct {
			index   uint32
			counter uint64
		}
		seen := make(map[nonce]bool)
		w.network.Hook(func(d *udptest.Datagram) bool {
			if index, counter, ok := crypto.ParseTransport(d.Data); ok && classify(d.Data) == classTransport {
				if seen[nonce{index, counter}] {
					t.Errorf("counter %d of index %x twice", counter, index)
				}
				seen[nonce{index, counter}] = true
			}
			return true
		})
		for i := range 50 {
			w.a.device.InjectData(datagrams(w.a.inner4, w.b.inner4, 40, i*20)...)
			w.b.device.InjectData(datagrams(w.b.inner4, w.a.inner4, 30, i*20)...)
			w.settle()
			w.sleep(10 * time.Second) // through several rekeys
		}
		if len(seen) < 50*70 {
			t.Errorf("only %d messages were seen", len(seen))
		}
	})
}

// A datagram that the network repeats is delivered once (paper, section 5.4.6; RFC 6479), one that it changes not at all.
func TestReplayedAndForged(t *testing.T) {
	eachVariant(t, func(w *world) {
		w.exchange(t)
		w.network.Impair(func(_, _ netip.AddrPort) udptest.Impairment { return udptest.Impairment{Duplicate: 1} })
		packets := datagrams(w.a.inner4, w.b.inner4, 100, 300)
		w.a.device.InjectData(packets...)
		w.settle()
		w.wantPackets(w.b, packets...)
		w.wantCounter(w.b, "drop_replayed", 100)

		w.network.Impair(nil)
		n := 0
		w.network.Hook(func(d *udptest.Datagram) bool {
			if n++; n%2 == 0 {
				d.Data[len(d.Data)/2] ^= 1
			}
			return true
		})
		w.a.device.InjectData(packets...)
		w.settle()
		if got := len(w.b.device.TakeSegments()); got != 50 {
			t.Errorf("%d of 100 packets were delivered, want the 50 unchanged ones", got)
		}
		w.wantCounter(w.b, "drop_unauthentic", 50)
	})
}

// exchange makes a session and delivers a packet each way.
func (w *world) exchange(t *testing.T) {
	t.Helper()
	there, back := datagram(w.a.inner4, w.b.inner4, 1, 20), datagram(w.b.inner4, w.a.inner4, 1, 20)
	w.a.device.InjectData(there)
	w.settle()
	w.b.device.InjectData(back)
	w.settle()
	w.wantPackets(w.b, there)
	w.wantPackets(w.a, back)
}

// Cryptokey routing holds inbound: a source that is not the peer's is dropped (paper, section 2).
func TestSourceNotAllowed(t *testing.T) {
	runWorld(t, offload, func(w *world) {
		w.exchange(t)
		w.a.device.InjectData(datagram(netip.MustParseAddr("10.0.0.77"), w.b.inner4, 1, 20),
			datagram(w.b.inner4, w.b.inner4, 1, 20), datagram(w.a.inner4, w.b.inner4, 2, 20))
		w.settle()
		w.wantPackets(w.b, datagram(w.a.inner4, w.b.inner4, 2, 20))
		w.wantCounter(w.b, "drop_source_not_allowed", 2)
	})
}

// A destination that nobody has, and a peer without endpoint, are answered with ICMP (kernel device.c, wg_xmit), at a
// bounded rate.
func TestUnreachable(t *testing.T) {
	runWorld(t, plain, func(w *world) {
		nowhere := netip.MustParseAddr("10.9.9.9")
		w.a.device.InjectData(datagram(w.a.inner4, nowhere, 1, 20))
		w.settle()
		got := w.a.device.TakeSegments()
		if len(got) != 1 || got[0][9] != ip.ProtocolICMP || got[0][20] != 3 || got[0][21] != 1 {
			t.Fatalf("the answer is %x, want host unreachable", got)
		}
		if ip.Destination(got[0]) != w.a.inner4 {
			t.Errorf("the answer goes to %v", ip.Destination(got[0]))
		}
		w.a.device.InjectData(datagrams(w.a.inner4, nowhere, 500, 20)...)
		w.settle()
		if n := len(w.a.device.TakeSegments()); n > icmpRate {
			t.Errorf("%d answers in a burst, want at most %d", n, icmpRate)
		}
		w.wantCounter(w.a, "drop_no_route", 501)

		_ = w.a.Edit(func(e *Edit) error {
			p := e.AddPeer(crypto.PublicKey{9})
			p.AddAllowedIP(netip.MustParsePrefix("fd99::/64"))
			return nil
		})
		w.sleep(time.Minute)
		w.a.device.InjectData(datagram(w.a.inner6, netip.MustParseAddr("fd99::1"), 1, 20))
		w.settle()
		got = w.a.device.TakeSegments()
		if len(got) != 1 || got[0][6] != ip.ProtocolICMPv6 || got[0][40] != 1 || got[0][41] != 3 {
			t.Fatalf("the answer is %x, want address unreachable", got)
		}
		w.wantCounter(w.a, "drop_no_endpoint", 1)
	})
}

// The peer's endpoint follows its authenticated datagrams (paper, section 2.1), not forged or replayed ones.
func TestRoaming(t *testing.T) {
	eachVariant(t, func(w *world) {
		w.exchange(t)
		old := w.a.outer.Addr()
		next := old.Next().Next().Next()
		w.a.host.AddAddress(next)
		w.a.host.RemoveAddress(old)
		forged := make([]byte, 64)
		forged[0] = 4
		w.network.Inject(udptest.Datagram{Src: netip.AddrPortFrom(old.Next().Next(), 7), Dst: w.b.outer, Data: forged})
		w.settle()
		if got := w.b.endpoint(t); got != w.a.outer {
			t.Fatalf("a forged datagram moved the endpoint to %v", got)
		}
		w.a.device.InjectData(datagram(w.a.inner4, w.b.inner4, 1, 20))
		w.settle()
		if want := netip.AddrPortFrom(next, 51820); w.b.endpoint(t) != want {
			t.Fatalf("endpoint %v, want %v", w.b.endpoint(t), want)
		}
		w.wantPackets(w.b, datagram(w.a.inner4, w.b.inner4, 1, 20))
		w.b.device.InjectData(datagram(w.b.inner4, w.a.inner4, 2, 20))
		w.settle()
		w.wantPackets(w.a, datagram(w.b.inner4, w.a.inner4, 2, 20))
	})
}

func (n *node) endpoint(t *testing.T) netip.AddrPort {
	s, err := n.Status()
	if err != nil || len(s.Peers) == 0 {
		t.Fatalf("status: %v, %d peers", err, len(s.Peers))
	}
	return s.Peers[0].Endpoint
}

// Without an answer initiations leave every 5 s and some jitter, until 90 s have passed; then nothing is left (paper,
// section 6.4).
func TestNoAnswer(t *testing.T) {
	runWorld(t, plain, func(w *world) {
		var at []time.Duration
		start := time.Now()
		w.network.Hook(func(d *udptest.Datagram) bool {
			at = append(at, time.Since(start))
			return false
		})
		w.a.device.InjectData(datagrams(w.a.inner4, w.b.inner4, 3, 20)...)
		w.sleep(5 * time.Minute)
		if len(at) < 16 || len(at) > 19 || at[len(at)-1] > 90*time.Second {
			t.Errorf("%d initiations, the last after %v", len(at), at[len(at)-1])
		}
		for i := 1; i < len(at); i++ {
			if d := at[i] - at[i-1]; d < 5*time.Second || d > 5*time.Second+334*time.Millisecond {
				t.Errorf("initiation %d came %v after the one before", i, d)
			}
		}
		w.wantCounter(w.a, "drop_staged_expired", 3)
	})
}

// While data flows the initiator makes a new session after 120 s (paper, section 6.2), and nothing is lost.
func TestRekey(t *testing.T) {
	eachVariant(t, func(w *world) {
		initiations := 0
		w.network.Hook(func(d *udptest.Datagram) bool {
			if d.Data[0] == 1 {
				initiations++
				if d.TOS != handshakeTOS {
					t.Errorf("an initiation has TOS %#x", d.TOS)
				}
			}
			return true
		})
		for i := range 300 {
			there, back := datagram(w.a.inner4, w.b.inner4, i, 64), datagram(w.b.inner4, w.a.inner4, i, 64)
			w.a.device.InjectData(there)
			w.settle()
			w.b.device.InjectData(back)
			w.settle()
			w.wantPackets(w.b, there)
			w.wantPackets(w.a, back)
			w.sleep(2 * time.Second)
		}
		if initiations < 4 || initiations > 6 {
			t.Errorf("%d initiations in 600 s, want one each 120 s", initiations)
		}
	})
}

// A side that only receives says so after 10 s with an empty packet, once (paper, section 6.5); it is not answered.
func TestPassiveKeepalive(t *testing.T) {
	runWorld(t, offload, func(w *world) {
		w.exchange(t)
		w.sleep(15 * time.Second)
		base := [2]uint64{w.a.counter("keepalives"), w.b.counter("keepalives")}
		w.a.device.InjectData(datagram(w.a.inner4, w.b.inner4, 1, 20))
		w.sleep(9 * time.Second)
		w.wantCounter(w.a, "keepalives", base[0])
		w.sleep(2 * time.Second)
		w.wantCounter(w.a, "keepalives", base[0]+1)
		w.sleep(30 * time.Second)
		w.wantCounter(w.a, "keepalives", base[0]+1)
		w.wantCounter(w.b, "keepalives", base[1])
	})
}

// Persistent keepalive speaks first when it is switched on and then every interval (kernel timers.c).
func TestPersistentKeepalive(t *testing.T) {
	runWorld(t, plain, func(w *world) {
		_ = w.a.Edit(func(e *Edit) error {
			e.Peer(w.b.key.Public()).SetPersistentKeepalive(25)
			return nil
		})
		w.settle()
		w.wantCounter(w.b, "handshake_accepted", 1)
		w.wantCounter(w.b, "keepalives", 1)
		w.sleep(101 * time.Second)
		w.wantCounter(w.b, "keepalives", 5)
	})
}

// A full socket holds packets back in the TUN; none is lost or overtaken.
func TestBlockedSocket(t *testing.T) {
	eachVariant(t, func(w *world) {
		w.exchange(t)
		w.network.Stall(w.a.outer, true)
		packets := datagrams(w.a.inner4, w.b.inner4, 600, 200)
		w.a.device.InjectData(packets...)
		w.settle()
		w.wantPackets(w.b)
		w.b.device.InjectData(datagram(w.b.inner4, w.a.inner4, 5, 20))
		w.settle()
		w.wantPackets(w.a, datagram(w.b.inner4, w.a.inner4, 5, 20)) // the other direction goes on
		w.network.Stall(w.a.outer, false)
		w.settle()
		w.wantPackets(w.b, packets...)
	})
}

// RFC 6040: the outer header carries the inner mark, a CE on the way arrives inside, and packets of different marks never
// share a run.
func TestECN(t *testing.T) {
	runWorld(t, offload, func(w *world) {
		w.exchange(t)
		var marks []uint8
		w.network.Hook(func(d *udptest.Datagram) bool {
			marks = append(marks, d.TOS)
			if d.TOS != 0 {
				d.TOS = 3
			}
			return true
		})
		var packets [][]byte
		for i, mark := range []ip.ECN{ip.ECT0, 0, ip.ECT0, ip.ECT0} {
			p := datagram(w.a.inner4, w.b.inner4, i, 20)
			ip.SetMark(p, mark)
			packets = append(packets, p)
		}
		w.a.device.InjectData(packets...)
		w.settle()
		if !slices.Equal(marks, []uint8{2, 0, 2, 2}) {
			t.Errorf("outer marks %v", marks)
		}
		for _, p := range packets {
			if ip.Mark(p) != 0 {
				ip.SetMark(p, ip.CE)
			}
		}
		got := w.b.device.TakeSegments()
		slices.SortFunc(got, func(a, b []byte) int { return bytes.Compare(a[28:], b[28:]) })
		for i := range packets {
			if !bytes.Equal(got[i], packets[i]) {
				t.Errorf("packet %d is %x, want %x", i, got[i], packets[i])
			}
		}
		w.network.Hook(func(d *udptest.Datagram) bool { d.TOS = 3; return true })
		w.a.device.InjectData(datagram(w.a.inner4, w.b.inner4, 9, 20))
		w.settle()
		w.wantPackets(w.b)
		w.wantCounter(w.b, "drop_ecn", 1)
	})
}

// The interface going down ends sessions and closes sockets, coming up opens them again (kernel device.c, wg_stop and
// wg_open).
func TestDownAndUp(t *testing.T) {
	runWorld(t, offload, func(w *world) {
		w.exchange(t)
		w.b.device.SetUp(false)
		w.settle()
		w.a.device.InjectData(datagram(w.a.inner4, w.b.inner4, 1, 20))
		w.settle()
		w.b.device.SetUp(true)
		w.settle()
		w.sleep(20 * time.Second) // no answer for 15 s: a new handshake
		there := datagram(w.a.inner4, w.b.inner4, 2, 20)
		w.a.device.InjectData(there)
		w.settle()
		if got := w.b.device.TakeSegments(); len(got) == 0 || !bytes.Equal(got[len(got)-1], there) {
			t.Errorf("got %x", got)
		}
	})
}

// Deleting the interface ends Run in order.
func TestDeviceGone(t *testing.T) {
	runWorld(t, offload, func(w *world) {
		w.exchange(t)
		w.a.device.Delete()
		w.settle()
		if _, err := w.a.Status(); !errors.Is(err, ErrClosed) {
			t.Errorf("Status after the device has gone: %v", err)
		}
	})
}

// Garbage of every kind, from strangers and over the peer's path, is counted by name; the session lives on.
func TestHostileDatagrams(t *testing.T) {
	eachVariant(t, func(w *world) {
		w.exchange(t)
		message := func(kind byte, n int) []byte {
			b := make([]byte, n)
			b[0] = kind
			for i := 4; i < n; i++ {
				b[i] = byte(i * 11)
			}
			return b
		}
		stranger := netip.AddrPortFrom(w.b.outer.Addr().Next().Next(), 9)
		count := 0
		for kind := range byte(8) {
			for _, n := range []int{1, 4, 31, 32, 33, 64, 91, 92, 148, 149, 1500} {
				w.network.Inject(udptest.Datagram{Src: stranger, Dst: w.b.outer, Data: message(kind, n)})
				count++
			}
		}
		w.settle()
		drops := uint64(0)
		for _, c := range w.b.Counters() {
			switch c.Name {
			case "drop_stray", "drop_malformed", "drop_unknown_index", "handshake_mac1_mismatch", "handshake_unknown_index":
				drops += c.Value
			}
		}
		if drops != uint64(count) {
			t.Errorf("%d of %d datagrams were counted", drops, count)
		}
		w.exchange(t)
	})
}

// What decrypts but is no IP packet is dropped by name (kernel receive.c, wg_packet_consume_data_done).
func TestInnerMalformed(t *testing.T) {
	runWorld(t, offload, func(w *world) {
		w.exchange(t)
		var inner [][]byte
		for _, edit := range []func(b []byte){
			func(b []byte) { b[0] = 0x50 },
			func(b []byte) { b[0] = 0x44 },
			func(b []byte) { binary.BigEndian.PutUint16(b[2:], 19) },
			func(b []byte) { binary.BigEndian.PutUint16(b[2:], 0xffff) },
		} {
			p := datagram(w.a.inner4, w.b.inner4, 1, 20)
			edit(p)
			inner = append(inner, p)
		}
		v6 := datagram(w.a.inner6, w.b.inner6, 1, 20)
		binary.BigEndian.PutUint16(v6[4:], 0xffff)
		inner = append(inner, v6, []byte{0x45})
		w.sealRaw(t, inner)
		w.settle()
		w.wantPackets(w.b)
		w.wantCounter(w.b, "drop_inner_malformed", uint64(len(inner)))
	})
}

// sealRaw sends plaintexts from a to b that a's own checks would not let through.
func (w *world) sealRaw(t *testing.T, plaintexts [][]byte) {
	t.Helper()
	err := w.a.Edit(func(e *Edit) error {
		kp := e.c.controller.peers[0].core.Sending()
		for _, plain := range plaintexts {
			counter, _ := kp.Reserve(1)
			msg := make([]byte, crypto.SizeTransportHeader+(len(plain)+15)/16*16+16)
			crypto.PutTransportHeader(msg, kp.RemoteIndex, counter)
			copy(msg[crypto.SizeTransportHeader:], plain)
			kp.SealRun(runOf(msg, len(plain), counter))
			w.network.Inject(udptest.Datagram{Src: w.a.outer, Dst: w.b.outer, Data: msg})
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// What a host sends to its link of its own accord begins no handshake, whoever has the route to everywhere; with a session it is
// carried like anything else.
func TestHousekeepingBeginsNothing(t *testing.T) {
	eachVariant(t, func(w *world) {
		all := netip.MustParsePrefix("::/0")
		for n, other := range map[*node]*node{w.a: w.b, w.b: w.a} {
			_ = n.Edit(func(e *Edit) error { e.Peer(other.key.Public()).AddAllowedIP(all); return nil })
		}
		solicitation := make([]byte, ip.IPv6HeaderLen+8)
		writeIPHeader(solicitation, netip.MustParseAddr("fe80::1"), netip.MustParseAddr("ff02::2"), ip.ProtocolICMPv6)
		solicitation[ip.IPv6HeaderLen] = 133
		sent := 0
		w.network.Hook(func(*udptest.Datagram) bool { sent++; return true })
		w.a.device.InjectData(solicitation)
		w.sleep(20 * time.Second)
		if sent != 0 {
			w.t.Errorf("%d datagrams left, want none", sent)
		}
		w.wantCounter(w.a, "drop_housekeeping", 1)
		w.exchange(w.t)
		w.b.device.TakeSegments()
		w.a.device.InjectData(solicitation)
		w.settle()
		w.wantPackets(w.b, solicitation)
	})
}
