//go:build windows || darwin || freebsd || openbsd || (linux && sluice_portable)

package tun

import (
	"bytes"
	"os"
	"sync"
	"testing"
	"time"

	wgtun "golang.zx2c4.com/wireguard/tun"
)

// pipe stands for the system's device.
type pipe struct {
	in     chan []byte
	out    chan []byte
	events chan wgtun.Event
	closed chan struct{}
	once   sync.Once
}

func newPipe() *pipe {
	return &pipe{
		in: make(chan []byte, 500), out: make(chan []byte, 500), events: make(chan wgtun.Event, 5), closed: make(chan struct{}),
	}
}

func (p *pipe) File() *os.File             { return nil }
func (p *pipe) MTU() (int, error)          { return 1400, nil }
func (p *pipe) Name() (string, error)      { return "pipe0", nil }
func (p *pipe) Events() <-chan wgtun.Event { return p.events }
func (p *pipe) BatchSize() int             { return 4 }

func (p *pipe) Close() error {
	p.once.Do(func() {
		close(p.closed)
		close(p.events)
	})
	return nil
}

func (p *pipe) Read(bufs [][]byte, sizes []int, offset int) (int, error) {
	select {
	case b := <-p.in:
		sizes[0] = copy(bufs[0][offset:], b)
		return 1, nil
	case <-p.closed:
		return 0, os.ErrClosed
	}
}

func (p *pipe) Write(bufs [][]byte, offset int) (int, error) {
	for _, b := range bufs {
		p.out <- bytes.Clone(b[offset:])
	}
	return len(bufs), nil
}

func readAll(t *testing.T, d *portableDevice, want int) [][]byte {
	t.Helper()
	packets := make([]Superpacket, 8)
	for i := range packets {
		packets[i].Buf = make([]byte, ReadBufferSize)
	}
	var all [][]byte
	for len(all) < want {
		n, err := d.Read(packets)
		if err != nil {
			t.Fatal(err)
		}
		for _, p := range packets[:n] {
			all = append(all, bytes.Clone(p.Data))
		}
		if n > 0 {
			continue
		}
		select {
		case <-d.Ready():
		case <-time.After(10 * time.Second):
			t.Fatalf("%d packets of %d; %d malformed", len(all), want, d.stats.ReadMalformed.Load())
		}
	}
	return all
}

func TestPortableRead(t *testing.T) {
	system := newPipe()
	d := newPortable(system, "given", 1300)
	defer d.Close()
	if d.Name() != "pipe0" || d.MTU() != 1400 || d.FD() != -1 || d.Capabilities() != (Capabilities{}) {
		t.Errorf("%q, MTU %d", d.Name(), d.MTU())
	}
	var want [][]byte
	system.in <- []byte("not IP")
	for i := range 400 { // more than may wait in the device
		want = append(want, spec{seq: uint32(i), payload: []byte("abc")}.bytes())
		system.in <- want[i]
	}
	for i, got := range readAll(t, d, len(want)) {
		if !bytes.Equal(got, want[i]) {
			t.Fatalf("packet %d: %x", i, got)
		}
	}
	if n := d.Stats().ReadMalformed.Load(); n != 1 {
		t.Errorf("%d malformed", n)
	}
}

func TestPortableWrite(t *testing.T) {
	system := newPipe()
	d := newPortable(system, "given", 1300)
	defer d.Close()
	packets := pack(series(spec{}, 500, 500, 20))
	runs := append(coalesce(NewCoalescer(allOffloads), packets), Run{Pieces: [][]byte{packets[0][:30], packets[0][30:]}})
	if n, err := d.Write(runs); n != 2 || err != nil {
		t.Fatalf("Write = %d, %v", n, err)
	}
	for i, want := range append(packets, packets[0]) {
		if got := <-system.out; !same(got, want) {
			t.Errorf("packet %d: %x, want %x", i, got, want)
		}
	}
}

// newStated is a device without the event that it begins with where its system tells of no state.
func newStated(system *pipe) *portableDevice {
	d := newPortable(system, "given", 1300)
	if upAtOnce {
		<-d.Events()
	}
	return d
}

func TestPortableState(t *testing.T) {
	system := newPipe()
	d := newStated(system)
	system.events <- wgtun.EventUp
	system.events <- wgtun.EventDown
	for _, want := range []Event{EventUp, EventDown} {
		if got := <-d.Events(); got != want {
			t.Errorf("event %d, want %d", got, want)
		}
	}
	if err := d.Close(); err != nil {
		t.Error(err)
	}
	<-d.Ready()
	if _, err := d.Read(make([]Superpacket, 1)); err != ErrClosed {
		t.Errorf("Read: %v", err)
	}
	if _, err := d.Write([]Run{{}}); err != ErrClosed {
		t.Errorf("Write: %v", err)
	}
	if _, ok := <-d.Events(); ok {
		t.Error("an event after Close")
	}
	d.Close()
}

func TestPortableGone(t *testing.T) {
	system := newPipe()
	d := newStated(system)
	system.Close()
	if got := <-d.Events(); got != EventGone {
		t.Errorf("event %d, want EventGone", got)
	}
	<-d.Ready()
	if _, err := d.Read(make([]Superpacket, 1)); err != ErrClosed {
		t.Errorf("Read: %v", err)
	}
	d.Close()
}

func TestPortableOpen(t *testing.T) {
	for _, o := range []Options{{Name: "a", FD: 5}, {Name: "a", Queues: 2}, {Name: "far-too-long-a-name"}} {
		if d, err := Open(o); err == nil {
			t.Errorf("%+v accepted", o)
			d.Close()
		}
	}
}
