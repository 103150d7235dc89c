package tuntest

import (
	"bytes"
	"encoding/binary"
	"errors"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-vpn/sluice/tun"
	"github.com/sluice-vpn/sluice/tun/ip"
)

// packet is a UDP packet of IPv4 with a payload; checksum complete.
func packet(payload string) []byte {
	p := make([]byte, 28, 28+len(payload))
	p = append(p, payload...)
	h := ip.IPv4(p)
	copy(p, []byte{0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, ip.ProtocolUDP, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 0, 9, 0, 9})
	h.SetTotalLen(len(p))
	h.SetChecksum()
	u := ip.UDP(p[20:])
	u.SetLen(len(u))
	u.SetChecksum(^ip.Sum(u, ip.PseudoSum(p, ip.ProtocolUDP, len(u))))
	return p
}

func batch(n int) []tun.Superpacket {
	b := make([]tun.Superpacket, n)
	for i := range b {
		b[i].Buf = make([]byte, tun.ReadBufferSize)
	}
	return b
}

func TestRead(t *testing.T) {
	d := New(Config{})
	defer d.Close()
	q := d.Queues()[0]
	b := batch(2)
	if n, err := q.Read(b); n != 0 || err != nil {
		t.Fatalf("dry: %d, %v", n, err)
	}
	one := packet("one")
	d.InjectData(one, []byte("not IP"), packet("two"), packet("three"))
	one[0] = 0 // the device has a copy
	<-q.Ready()
	var got []string
	for {
		n, err := q.Read(b)
		if err != nil {
			t.Fatal(err)
		}
		if n == 0 {
			break
		}
		for _, p := range b[:n] {
			got = append(got, string(p.Data[28:]))
		}
	}
	if len(got) != 3 || got[0] != "one" || got[1] != "two" || got[2] != "three" {
		t.Errorf("read %q", got)
	}
	if s := q.Stats(); s.ReadPackets.Load() != 3 || s.ReadMalformed.Load() != 1 {
		t.Errorf("%d packets, %d malformed", s.ReadPackets.Load(), s.ReadMalformed.Load())
	}
}

func TestWrite(t *testing.T) {
	d := New(Config{Capabilities: AllCapabilities})
	defer d.Close()
	q := d.Queue(0)
	c := tun.NewCoalescer(d.Capabilities())
	packets := [][]byte{packet("aaa"), packet("bbb"), packet("c")}
	for i, p := range packets {
		binary.BigEndian.PutUint16(p[4:], uint16(i)) // as cutting numbers them
		ip.IPv4(p).SetChecksum()
		c.Add(bytes.Clone(p))
	}
	if n, err := q.Write(c.Runs()); n != 1 || err != nil {
		t.Fatalf("Write = %d, %v", n, err)
	}
	<-q.Wrote()
	if got := d.Take(); len(got) != 1 || got[0].Type != tun.GSOUDPv4 || len(got[0].Data) != 28+7 {
		t.Fatalf("%+v", got)
	}
	if q.Stats().WriteSegments.Load() != 3 {
		t.Errorf("%d segments", q.Stats().WriteSegments.Load())
	}
	q.SetLimit(1)
	if n, err := q.Write(append(c.Runs(), c.Runs()...)); n != 1 || err != nil {
		t.Errorf("full: %d, %v", n, err)
	}
	segments := d.TakeSegments()
	if len(segments) != 3 {
		t.Fatalf("%d segments", len(segments))
	}
	for i := range segments {
		if !bytes.Equal(segments[i], packets[i]) {
			t.Errorf("segment %d: %x, want %x", i, segments[i], packets[i])
		}
	}
}

func TestState(t *testing.T) {
	d := New(Config{Name: "x", MTU: 1280, Queues: 2})
	if d.Name() != "x" || d.MTU() != 1280 || len(d.Queues()) != 2 || d.Queues()[1].FD() != -1 {
		t.Error("not as configured")
	}
	q, runs := d.Queue(1), []tun.Run{{Pieces: [][]byte{packet("a")}}}
	d.SetUp(false)
	if n, err := q.Write(runs); n != 1 || err != tun.ErrDown {
		t.Errorf("down: %d, %v", n, err)
	}
	d.SetUp(true)
	d.SetMTU(1300)
	d.SetCapabilities(AllCapabilities)
	if !d.Capabilities().USO || d.MTU() != 1300 {
		t.Error("not as set")
	}
	d.Delete()
	for _, want := range []tun.Event{tun.EventUp, tun.EventDown, tun.EventUp, tun.EventMTU, tun.EventGone} {
		if got, ok := <-d.Events(); !ok || got != want {
			t.Errorf("event %d, %v, want %d", got, ok, want)
		}
	}
	if _, ok := <-d.Events(); ok {
		t.Error("Events is open")
	}
	if _, err := q.Read(batch(1)); err != tun.ErrClosed {
		t.Errorf("Read: %v", err)
	}
	if _, err := q.Write(runs); err != tun.ErrClosed {
		t.Errorf("Write: %v", err)
	}
	d.Close()
	d.Close()
}

func TestEventsNeverBlock(t *testing.T) {
	d := New(Config{})
	defer d.Close()
	for i := range 200 {
		d.SetMTU(2000 + i)
	}
	d.SetUp(false)
	var latest tun.Event
	for len(d.Events()) > 0 {
		latest = <-d.Events()
	}
	if latest != tun.EventDown {
		t.Errorf("the newest event is %d", latest)
	}
}

func TestSourceAndSink(t *testing.T) {
	d := New(Config{})
	defer d.Close()
	q, p := d.Queue(0), packet("generated")
	q.SetSource(func(s *tun.Superpacket) bool {
		s.Data = s.Buf[tun.ReadHeadroom : tun.ReadHeadroom+copy(s.Buf[tun.ReadHeadroom:], p)]
		return true
	})
	full := errors.New("enough")
	written := 0
	q.SetSink(func(*tun.Run) error {
		if written++; written > 1000 {
			return full
		}
		return nil
	})
	b, runs := batch(4), []tun.Run{{Pieces: [][]byte{p}}}
	if n := testing.AllocsPerRun(100, func() {
		if n, err := q.Read(b); n != 4 || err != nil {
			panic(err)
		}
		if _, err := q.Write(runs); err != nil {
			panic(err)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
	for range 1000 {
		if _, err := q.Write(runs); err == full {
			return
		}
	}
	t.Error("the sink's error was lost")
}

// A reader that waits for Ready is durably blocked, so time passes in a bubble.
func TestSynctest(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := New(Config{})
		var got []string
		done := make(chan struct{})
		go func() {
			defer close(done)
			b := batch(1)
			for {
				n, err := d.Queue(0).Read(b)
				if err != nil {
					return
				}
				if n == 0 {
					<-d.Queue(0).Ready()
					continue
				}
				got = append(got, string(b[0].Data[28:]))
			}
		}()
		for _, s := range []string{"a", "b"} {
			time.Sleep(time.Hour)
			d.InjectData(packet(s))
		}
		synctest.Wait()
		d.Close()
		<-done
		if len(got) != 2 || got[0] != "a" || got[1] != "b" {
			t.Errorf("read %q", got)
		}
	})
}
