package pipeline

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"

	"github.com/sluice-vpn/sluice/pipeline/udp/udptest"
	"github.com/sluice-vpn/sluice/tun/ip"
	"github.com/sluice-vpn/sluice/tun/tuntest"
)

// taken reads what is there for a capture, with data of its own.
func taken(t *testing.T, c *Capture) (list []Captured) {
	t.Helper()
	for c.Waiting() {
		records, err := c.Next(context.Background())
		if err != nil {
			t.Fatal(err)
		}
		for _, r := range records {
			r.Data = bytes.Clone(r.Data)
			list = append(list, r)
		}
	}
	return list
}

// story is what a capture says, a line for each kind of record with how many there are, the order of their firsts.
func story(list []Captured) string {
	var lines []string
	count := map[string]int{}
	for _, r := range list {
		line := "plain"
		if r.Outer {
			line = "outer"
		}
		line += map[bool]string{true: " in", false: " out"}[r.Inbound]
		if r.Peer != "" {
			line += " peer"
		}
		if r.Drop != "" {
			line += " " + r.Drop
		}
		if r.Segments > 0 {
			line += fmt.Sprintf(" %d of %d", r.Segments, r.SegmentSize)
		}
		if count[line]++; count[line] == 1 {
			lines = append(lines, line)
		}
	}
	for i, line := range lines {
		lines[i] = fmt.Sprintf("%d %s", count[line], line)
	}
	return strings.Join(lines, "\n")
}

func begin(t *testing.T, n *node, cfg CaptureConfig) *Capture {
	t.Helper()
	c, err := n.Capture(cfg)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// What passes is told in its order, with whose it is and what became of it: packets, superpackets, handshakes, and all that is dropped.
func TestCapture(t *testing.T) {
	eachVariant(t, func(w *world) {
		ca, cb := begin(t, w.a, CaptureConfig{Outer: true}), begin(t, w.b, CaptureConfig{Outer: true})
		if _, err := w.a.Capture(CaptureConfig{}); !errors.Is(err, ErrCapturing) {
			t.Errorf("a second capture: %v, want ErrCapturing", err)
		}
		plain, nowhere := datagram(w.a.inner4, w.b.inner4, 1, 20), datagram(w.a.inner4, netip.MustParseAddr("10.9.9.9"), 1, 20)
		w.a.device.InjectData(plain, nowhere)
		w.settle()
		a, b := taken(t, ca), taken(t, cb)
		// The initiation leaves before the packet, which waits for the session, and so does the answer's.
		for name, side := range map[string]struct {
			got  string
			want []string
		}{
			"A": {story(a), []string{"1 plain out no_route", "1 plain out peer", "outer in", "1 outer out peer"}},
			"B": {story(b), []string{"1 plain in peer", "1 outer in peer", "1 outer out"}},
		} {
			for _, want := range side.want {
				if !strings.Contains(side.got, want) {
					t.Errorf("%s's story is\n%s\nwithout %q", name, side.got, want)
				}
			}
		}
		for _, side := range [][]Captured{a, b} {
			i := slices.IndexFunc(side, func(r Captured) bool { return !r.Outer && r.Drop == "" })
			if i < 0 || !bytes.Equal(side[i].Data, plain) || side[i].Length != len(plain) || side[i].At.IsZero() {
				t.Errorf("the packet is not there as it is: %+v", side)
			}
		}
		for _, r := range b {
			if from, to := w.a.outer, w.b.outer; r.Outer && r.Inbound && (r.Src != from || r.Dst.Port() != to.Port()) ||
				r.Outer && !r.Inbound && r.Dst != from {
				t.Errorf("a datagram from %v to %v", r.Src, r.Dst)
			}
		}

		// Forged and replayed datagrams, and sources that are not the peer's.
		w.b.device.Take()
		w.network.Impair(func(from, _ netip.AddrPort) udptest.Impairment { return udptest.Impairment{Duplicate: 1} })
		w.a.device.InjectData(datagrams(w.a.inner4, w.b.inner4, 10, 300)...)
		w.settle()
		w.network.Impair(nil)
		w.network.Hook(func(d *udptest.Datagram) bool { d.Data[len(d.Data)/2] ^= 1; return true })
		w.a.device.InjectData(datagrams(w.a.inner4, w.b.inner4, 7, 300)...)
		w.settle()
		w.network.Hook(nil)
		w.a.device.InjectData(datagram(netip.MustParseAddr("10.0.0.77"), w.b.inner4, 1, 20))
		w.settle()
		got := story(taken(t, cb))
		for _, want := range []string{"10 plain in peer\n", "10 outer in peer replayed", "7 outer in peer unauthentic", "1 plain in peer source_not_allowed"} {
			if !strings.Contains(got+"\n", want) {
				t.Errorf("B's story is\n%s\nwithout %q", got, want)
			}
		}
		ca.Close()
		cb.Close()
		w.a.device.InjectData(plain)
		w.settle()
		if n := len(taken(t, cb)); n > 0 {
			t.Errorf("%d packets after the end", n)
		}
	})
}

// Superpackets are one record, cut at the snap length with the true length told; Match and Peer choose; what the TUN does not take is
// said to be lost.
func TestCaptureChooses(t *testing.T) {
	runWorld(t, offload, func(w *world) {
		w.exchange(t)
		ca := begin(t, w.a, CaptureConfig{SnapLength: 60, Match: func(p []byte) bool { return p[9] == ip.ProtocolTCP }})
		cb := begin(t, w.b, CaptureConfig{Peer: shortKey(w.a.key.Public()), Outer: true})
		big, segments := superpacket(w.a.inner4, w.b.inner4, 1, 20*1000, 1000)
		w.b.device.Queue(0).SetLimit(0)
		w.a.device.Inject(big, tuntest.Packet{Data: datagram(w.a.inner4, w.b.inner4, 1, 20)})
		w.network.Inject(udptest.Datagram{Src: w.a.outer, Dst: w.b.outer, Data: []byte("no WireGuard")})
		w.settle()
		a := taken(t, ca)
		if got, want := story(a), fmt.Sprintf("1 plain out peer %d of 1000", len(segments)); got != want {
			t.Errorf("A's story is %s, want %s", got, want)
		} else if r := a[0]; r.Length != len(big.Data) || !bytes.Equal(r.Data, big.Data[:60]) {
			t.Errorf("%d bytes of %d, want 60 of %d", len(r.Data), r.Length, len(big.Data))
		}
		if got, want := story(taken(t, cb)), "21 outer in peer\n21 plain in peer tun_full"; got != want {
			t.Errorf("B's story is\n%s\nwant\n%s", got, want)
		}
	})
}

// Nobody reads: what is kept is bounded, the rest is counted, and the traffic is as ever.
func TestCaptureSlow(t *testing.T) {
	runWorld(t, offload, func(w *world) {
		w.exchange(t)
		c := begin(t, w.a, CaptureConfig{})
		big, segments := superpacket(w.a.inner4, w.b.inner4, 1, 60_000, 1000)
		const n = 2000
		for range n {
			w.a.device.Inject(big)
			w.settle()
			if got := len(w.b.device.TakeSegments()); got != len(segments) {
				t.Fatalf("%d packets were delivered, want %d", got, len(segments))
			}
		}
		if kept := c.queued.Load(); kept > captureQueueBytes || kept < captureQueueBytes/2 {
			t.Errorf("%d bytes are kept, want as many as may be: %d", kept, captureQueueBytes)
		}
		got := len(taken(t, c))
		if got+int(c.Dropped()) != n || c.Dropped() == 0 {
			t.Errorf("%d packets were taken and %d dropped, want together %d", got, c.Dropped(), n)
		}
		if c.queued.Load() != 0 {
			t.Errorf("%d bytes are kept of nothing", c.queued.Load())
		}
	})
}
