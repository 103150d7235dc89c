//go:build windows || darwin || freebsd || openbsd || (linux && sluice_portable)

package tun

import (
	"errors"
	"fmt"
	"os"
	"sync"
	"sync/atomic"

	"github.com/sluice-vpn/sluice/tun/ip"
	wgtun "golang.zx2c4.com/wireguard/tun"
)

// portableBacklog is how many packets wait between the pump and Read.
const portableBacklog = 256

// portableDevice puts the devices of golang.zx2c4.com/wireguard/tun (Wintun, utun, tun(4)) behind our contract. It has one
// queue and no superpackets; where the other side splits superpackets by itself, single packets come out.
//
// A pump goroutine reads, since those devices block. It hands packets over in buffers of a fixed set.
type portableDevice struct {
	// Frozen.
	device wgtun.Device
	name   string
	events chan Event
	ready  chan struct{}
	full   chan portablePacket // pump to Read
	free   chan []byte         // Read to pump
	ended  chan struct{}       // closed by Close
	views  []Queue
	pumps  sync.WaitGroup

	// Owned by the queue's goroutine.
	joined    [][]byte // one buffer, for Write
	scratch   []byte
	segmenter Segmenter

	// Atomic.
	mtu    atomic.Int32
	failed atomic.Bool // the pump has ended
	closed atomic.Bool
	stats  QueueStats
}

// portablePacket is a packet in a buffer from free.
type portablePacket struct {
	buf  []byte
	data []byte
}

func open(o Options) (Device, error) {
	if o.FD > 0 {
		return nil, errors.New("tun: this system's devices cannot be adopted by descriptor")
	}
	if o.Queues > 1 {
		return nil, errors.New("tun: this system's devices have one queue")
	}
	mtu := o.MTU
	if mtu == 0 {
		mtu = DefaultMTU
	}
	device, err := wgtun.CreateTUN(o.Name, mtu)
	if errors.Is(err, os.ErrPermission) {
		return nil, fmt.Errorf("tun: %w: cannot make interface %q; run as administrator or root: %w", ErrPermission, o.Name, err)
	}
	if err = explain(err); errors.Is(err, ErrNoDriver) {
		return nil, err
	}
	if err != nil {
		return nil, fmt.Errorf("tun: make interface %q: %w", o.Name, err)
	}
	return newPortable(device, o.Name, mtu), nil
}

func newPortable(device wgtun.Device, name string, mtu int) *portableDevice {
	d := &portableDevice{
		device: device,
		name:   name,
		events: make(chan Event, eventBacklog),
		ready:  make(chan struct{}, 1),
		full:   make(chan portablePacket, portableBacklog),
		free:   make(chan []byte, portableBacklog),
		ended:  make(chan struct{}),
		joined: [][]byte{make([]byte, ReadBufferSize)},
	}
	if actual, err := device.Name(); err == nil {
		d.name = actual
	}
	if actual, err := device.MTU(); err == nil {
		mtu = actual
	}
	d.mtu.Store(int32(mtu))
	d.views = []Queue{d}
	if upAtOnce {
		post(d.events, EventUp)
	}
	d.pumps.Add(2)
	go d.pump()
	go d.watch()
	return d
}

// pump moves packets from the device to full until it fails or is closed.
func (d *portableDevice) pump() {
	defer d.pumps.Done()
	bufs := make([][]byte, d.device.BatchSize())
	sizes := make([]int, len(bufs))
	for i := range bufs {
		bufs[i] = make([]byte, ReadBufferSize)
	}
	for {
		n, err := d.device.Read(bufs, sizes, ReadHeadroom)
		for i := range n {
			if !d.hand(bufs[i][ReadHeadroom : ReadHeadroom+sizes[i]]) {
				return
			}
		}
		if err != nil && !errors.Is(err, wgtun.ErrTooManySegments) {
			d.failed.Store(true)
			d.ring()
			return
		}
	}
}

// hand copies one packet over. It waits while the other side is behind; false once the device is closed.
func (d *portableDevice) hand(packet []byte) bool {
	length, ok := ip.Length(packet)
	if !ok {
		d.stats.ReadMalformed.Add(1)
		return true
	}
	var buf []byte
	select {
	case buf = <-d.free:
	default:
	}
	buf = append(buf[:0], packet[:length]...)
	select {
	case d.full <- portablePacket{buf: buf, data: buf}:
		d.ring()
		return true
	case <-d.ended:
		return false
	}
}

func (d *portableDevice) ring() {
	select {
	case d.ready <- struct{}{}:
	default:
	}
}

// watch translates events. The other side closes its channel when the device is closed or deleted.
func (d *portableDevice) watch() {
	defer d.pumps.Done()
	defer close(d.events)
	for e := range d.device.Events() {
		if e&wgtun.EventUp != 0 {
			post(d.events, EventUp)
		}
		if e&wgtun.EventDown != 0 {
			post(d.events, EventDown)
		}
		if mtu, err := d.device.MTU(); err == nil && int(d.mtu.Swap(int32(mtu))) != mtu {
			post(d.events, EventMTU)
		}
	}
	if !d.closed.Load() {
		post(d.events, EventGone)
	}
}

func (d *portableDevice) Name() string               { return d.name }
func (d *portableDevice) MTU() int                   { return int(d.mtu.Load()) }
func (d *portableDevice) Capabilities() Capabilities { return Capabilities{} }
func (d *portableDevice) Queues() []Queue            { return d.views }
func (d *portableDevice) Events() <-chan Event       { return d.events }
func (d *portableDevice) FD() int                    { return -1 }
func (d *portableDevice) Ready() <-chan struct{}     { return d.ready }
func (d *portableDevice) Stats() *QueueStats         { return &d.stats }

// Close closes the device and waits for the goroutines.
func (d *portableDevice) Close() error {
	if d.closed.Swap(true) {
		return nil
	}
	close(d.ended)
	err := d.device.Close()
	d.pumps.Wait()
	d.ring()
	return err
}

// Read obeys the contract of Queue.
func (d *portableDevice) Read(batch []Superpacket) (int, error) {
	n := 0
	var bytes uint64
	for n < len(batch) {
		select {
		case p := <-d.full:
			b := &batch[n]
			b.Data = b.Buf[ReadHeadroom : ReadHeadroom+copy(b.Buf[ReadHeadroom:], p.data)]
			b.Offload = Offload{}
			bytes += uint64(len(b.Data))
			n++
			select {
			case d.free <- p.buf:
			default:
			}
			continue
		default:
		}
		break
	}
	d.stats.ReadCalls.Add(1)
	d.stats.ReadPackets.Add(uint64(n))
	d.stats.ReadSegments.Add(uint64(n))
	d.stats.ReadBytes.Add(bytes)
	if n == 0 && (d.closed.Load() || d.failed.Load()) {
		return 0, ErrClosed
	}
	if len(d.full) > 0 {
		d.ring()
	}
	return n, nil
}

// Write obeys the contract of Queue. Runs of several segments, which a caller that asked for Capabilities does not make,
// are cut.
func (d *portableDevice) Write(runs []Run) (int, error) {
	for i := range runs {
		if d.closed.Load() {
			return i, ErrClosed
		}
		if err := d.writeRun(&runs[i]); err != nil {
			if errors.Is(err, os.ErrClosed) {
				return i, ErrClosed
			}
			d.stats.WriteRefused.Add(1)
		}
	}
	return len(runs), nil
}

func (d *portableDevice) writeRun(r *Run) error {
	if r.Type == GSONone && !r.NeedsChecksum {
		return d.writePieces(r.Pieces...)
	}
	d.stats.OffloadRefused.Add(1)
	whole := d.scratch[:0]
	for _, p := range r.Pieces {
		whole = append(whole, p...)
	}
	d.scratch = whole
	if err := d.segmenter.Init(&Superpacket{Data: whole, Offload: r.Offload}); err != nil {
		return err
	}
	packet := make([]byte, d.segmenter.Len(0))
	for k := range d.segmenter.Count() {
		if err := d.writePieces(packet[:d.segmenter.Cut(k, packet)]); err != nil {
			return err
		}
	}
	return nil
}

func (d *portableDevice) writePieces(pieces ...[]byte) error {
	buf := d.joined[0][:ReadBufferSize]
	n := ReadHeadroom
	for _, p := range pieces {
		n += copy(buf[n:], p)
	}
	d.joined[0] = buf[:n]
	d.stats.WriteCalls.Add(1)
	if _, err := d.device.Write(d.joined, ReadHeadroom); err != nil {
		return err
	}
	d.stats.WritePackets.Add(1)
	d.stats.WriteSegments.Add(1)
	d.stats.WriteBytes.Add(uint64(n - ReadHeadroom))
	return nil
}
