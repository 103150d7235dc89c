//go:build linux && !sluice_portable

package tun

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"runtime"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/bench/lab"
	"github.com/sluice-vpn/sluice/tun/host"
	"github.com/sluice-vpn/sluice/tun/ip"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// inNewNamespace runs f on a thread in a new network namespace and returns a descriptor of it. It skips the test where that
// is not possible, or no TUN device.
func inNewNamespace(t *testing.T, f func()) int {
	t.Helper()
	lab.NeedTUN(t)
	home := namespaceOf(t)
	runtime.LockOSThread()
	must(t, unix.Unshare(unix.CLONE_NEWNET)) // if it fails the thread stays locked and ends with the test
	created := namespaceOf(t)
	defer func() {
		if err := unix.Setns(home, unix.CLONE_NEWNET); err != nil {
			t.Errorf("go back to the first namespace: %v", err) // the thread stays locked and ends with the test
			return
		}
		runtime.UnlockOSThread()
	}()
	f()
	return created
}

// inNamespace runs f on a thread in a namespace.
func inNamespace(t *testing.T, namespace int, f func()) {
	t.Helper()
	home := namespaceOf(t)
	runtime.LockOSThread()
	defer func() {
		if err := unix.Setns(home, unix.CLONE_NEWNET); err != nil {
			t.Errorf("go back to the first namespace: %v", err)
			return
		}
		runtime.UnlockOSThread()
	}()
	if err := unix.Setns(namespace, unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	f()
}

func namespaceOf(t *testing.T) int {
	t.Helper()
	fd, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { unix.Close(fd) })
	return fd
}

func mustOpen(t *testing.T, o Options) *linuxDevice {
	t.Helper()
	d, err := Open(o)
	must(t, err)
	t.Cleanup(func() { d.Close() })
	return d.(*linuxDevice)
}

func must(t *testing.T, err error) {
	t.Helper()
	if err != nil {
		t.Fatal(err)
	}
}

// expect waits for an event.
func expect(t *testing.T, d Device, want Event) {
	t.Helper()
	select {
	case got, ok := <-d.Events():
		if !ok || got != want {
			t.Fatalf("event %d (open %v), want %d", got, ok, want)
		}
	case <-time.After(10 * time.Second):
		t.Fatalf("no event %d", want)
	}
}

func batch(n int) []Superpacket {
	b := make([]Superpacket, n)
	for i := range b {
		b[i].Buf = make([]byte, ReadBufferSize)
	}
	return b
}

// joint is two devices in two namespaces and a goroutine for each direction, which cuts what it reads from one and writes
// it joined to the other: a tunnel without a network between.
type joint struct {
	devices    [2]*linuxDevice
	namespaces [2]int
}

const jointMTU = 1420

func newJoint(t *testing.T) *joint {
	t.Helper()
	j := &joint{}
	for i := range j.devices {
		j.namespaces[i] = inNewNamespace(t, func() {
			j.devices[i] = mustOpen(t, Options{Name: fmt.Sprintf("joint%d", i), MTU: jointMTU})
			name := j.devices[i].Name()
			must(t, host.AddAddress(name, netip.MustParsePrefix(fmt.Sprintf("10.9.0.%d/24", i+1))))
			must(t, host.SetUp(name))
			must(t, host.AddAddress(name, netip.MustParsePrefix(fmt.Sprintf("fd09::%d/64", i+1))))
		})
	}
	stop := make(chan struct{})
	done := make(chan error, 2)
	for i := range j.devices {
		go func() { done <- j.forward(stop, j.devices[i].Queues()[0], j.devices[1-i]) }()
	}
	t.Cleanup(func() {
		close(stop)
		for range j.devices {
			if err := <-done; err != nil {
				t.Error(err)
			}
		}
	})
	return j
}

func (j *joint) forward(stop chan struct{}, from Queue, to Device) error {
	packets, coalescer := batch(8), NewCoalescer(to.Capabilities())
	arena := make([]byte, 2*len(packets)*MaxSuperpacket)
	var s Segmenter
	for {
		select {
		case <-stop:
			return nil
		default:
		}
		fds := []unix.PollFd{{Fd: int32(from.FD()), Events: unix.POLLIN}}
		unix.Poll(fds, 20)
		n, err := from.Read(packets)
		if err != nil {
			return err
		}
		coalescer.Reset()
		free := arena
		for i := range packets[:n] {
			if err := s.Init(&packets[i]); err != nil {
				return err
			}
			for k := range s.Count() {
				if len(free) < s.Len(k) {
					free = make([]byte, 1<<20)
				}
				size := s.Cut(k, free)
				if size > jointMTU {
					return fmt.Errorf("segment of %d bytes", size)
				}
				coalescer.Add(free[:size])
				free = free[size:]
			}
		}
		for runs := coalescer.Runs(); len(runs) > 0; {
			n, err := to.Queues()[0].Write(runs)
			if err != nil && !errors.Is(err, ErrDown) {
				return err
			}
			runs = runs[n:]
		}
	}
}

// checkSuper fails if no superpackets were read and written.
func (j *joint) checkSuper(t *testing.T) {
	t.Helper()
	out, in := j.devices[0].Queues()[0].Stats(), j.devices[1].Queues()[0].Stats()
	// A write is counted only after the receiver has it.
	for range 500 {
		if in.WriteSegments.Load() >= 2*in.WritePackets.Load() {
			break
		}
		time.Sleep(10 * time.Millisecond)
	}
	t.Logf("read %d packets of %d segments, wrote %d packets of %d segments",
		out.ReadPackets.Load(), out.ReadSegments.Load(), in.WritePackets.Load(), in.WriteSegments.Load())
	if in.WriteSegments.Load() < 2*in.WritePackets.Load() {
		t.Error("no superpackets were written")
	}
	j.checkRead(t)
}

// checkRead fails if no superpackets were read, or some were dropped.
func (j *joint) checkRead(t *testing.T) {
	t.Helper()
	out := j.devices[0].Queues()[0].Stats()
	if out.ReadSegments.Load() < 2*out.ReadPackets.Load() {
		t.Error("the kernel gave no superpackets")
	}
	j.checkDrops(t)
}

func (j *joint) checkDrops(t *testing.T) {
	t.Helper()
	out, in := j.devices[0].Queues()[0].Stats(), j.devices[1].Queues()[0].Stats()
	if n := in.OffloadRefused.Load() + in.WriteRefused.Load() + out.ReadMalformed.Load() + out.ReadUnserved.Load(); n != 0 {
		t.Errorf("%d packets refused", n)
	}
}

func TestLinuxTCP(t *testing.T) {
	for _, address := range []string{"10.9.0.2", "fd09::2"} {
		t.Run(address, func(t *testing.T) {
			j := newJoint(t)
			j.transfer(t, address, net.Dialer{})
			j.checkSuper(t)
		})
	}
}

// transfer sends 3 MB over TCP from device 0 to device 1.
func (j *joint) transfer(t *testing.T, address string, dialer net.Dialer) {
	t.Helper()
	data := randomBytes(rand.New(rand.NewPCG(15, 16)), 3_000_001)
	var listener net.Listener
	inNamespace(t, j.namespaces[1], func() {
		var err error
		listener, err = net.Listen("tcp", net.JoinHostPort(address, "0"))
		must(t, err)
	})
	defer listener.Close()
	received := make(chan []byte, 1)
	go func() {
		var all []byte
		if c, err := listener.Accept(); err == nil {
			c.SetDeadline(time.Now().Add(20 * time.Second))
			all, _ = io.ReadAll(c)
			c.Close()
		}
		received <- all
	}()
	inNamespace(t, j.namespaces[0], func() {
		dialer.Timeout = 10 * time.Second
		c, err := dialer.Dial("tcp", listener.Addr().String())
		must(t, err)
		c.SetDeadline(time.Now().Add(20 * time.Second))
		_, err = c.Write(data)
		must(t, err)
		c.Close()
	})
	if got := <-received; !bytes.Equal(got, data) {
		t.Fatalf("received %d bytes that differ from the %d sent", len(got), len(data))
	}
}

// untilUsable sends until something arrives: the kernel makes the route of a new IPv6 address a little later (addrconf_dad_work).
func untilUsable(t *testing.T, sender, receiver *net.UDPConn) {
	t.Helper()
	var buf [8]byte
	for range 200 {
		sender.Write(buf[:1]) // may fail as long as there is no route
		receiver.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
		if _, err := receiver.Read(buf[:]); err == nil {
			return
		}
	}
	t.Fatal("nothing arrives")
}

// A UDP_SEGMENT send comes out of the device as one superpacket, and goes up as one, with the shorter tail intact.
func TestLinuxUDP(t *testing.T) {
	for _, address := range []string{"10.9.0.2", "fd09::2"} {
		t.Run(address, func(t *testing.T) {
			j := newJoint(t)
			if !j.devices[0].Capabilities().USO {
				t.Skip("SKIPPED: this kernel has no USO on TUN devices (Linux 6.2)")
			}
			j.datagrams(t, address, net.Dialer{})
			j.checkSuper(t)
		})
	}
}

// datagrams sends some over UDP from device 0 to device 1, as one UDP_SEGMENT send.
func (j *joint) datagrams(t *testing.T, address string, dialer net.Dialer) {
	t.Helper()
	var receiver, sender *net.UDPConn
	inNamespace(t, j.namespaces[1], func() {
		var err error
		receiver, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(address)})
		must(t, err)
	})
	defer receiver.Close()
	inNamespace(t, j.namespaces[0], func() {
		c, err := dialer.Dial("udp", receiver.LocalAddr().String())
		must(t, err)
		sender = c.(*net.UDPConn)
	})
	defer sender.Close()
	untilUsable(t, sender, receiver)
	const size = 1000
	raw, err := sender.SyscallConn()
	must(t, err)
	raw.Control(func(fd uintptr) {
		err = unix.SetsockoptInt(int(fd), unix.IPPROTO_UDP, unix.UDP_SEGMENT, size)
	})
	must(t, err)
	data := randomBytes(rand.New(rand.NewPCG(17, 18)), 20*size+321)
	_, err = sender.Write(data)
	must(t, err)
	receiver.SetReadDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 2*size)
	for from := 0; from < len(data); from += size {
		n, err := receiver.Read(buf)
		for err == nil && n == 1 { // an earlier packet of untilUsable
			n, err = receiver.Read(buf)
		}
		must(t, err)
		if want := data[from:min(from+size, len(data))]; !bytes.Equal(buf[:n], want) {
			t.Fatalf("datagram at %d: %d bytes, differ from the %d sent", from, n, len(want))
		}
	}
}

// Where the kernel answers EINVAL to a run, its packets arrive one by one, and the next run is not tried whole.
func TestLinuxOffloadRefused(t *testing.T) {
	var d *linuxDevice
	var receiver *net.UDPConn
	inNewNamespace(t, func() {
		d = mustOpen(t, Options{Name: "refused0"})
		must(t, host.AddAddress(d.Name(), netip.MustParsePrefix("10.255.255.254/8")))
		must(t, host.SetUp(d.Name()))
		var err error
		receiver, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(10, 255, 255, 254), Port: 4433})
		must(t, err)
	})
	defer receiver.Close()
	before := d.Capabilities()
	c := NewCoalescer(allOffloads)
	for round := range 2 {
		runs := coalesce(c, pack(series(spec{udp: true, flow: 9}, 700, 700, 123)))
		if len(runs) != 1 {
			t.Fatalf("%d runs", len(runs))
		}
		runs[0].ChecksumStart = 60000 // lies outside of the packet
		n, err := d.Queues()[0].Write(runs)
		if n != 1 || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
		receiver.SetReadDeadline(time.Now().Add(10 * time.Second))
		buf := make([]byte, 2000)
		for i, want := range []int{700, 700, 123} {
			n, err := receiver.Read(buf)
			must(t, err)
			if !bytes.Equal(buf[:n], bytes.Repeat([]byte{byte(i + 1)}, want)) {
				t.Fatalf("round %d, datagram %d: %d bytes", round, i, n)
			}
		}
	}
	s := d.Queues()[0].Stats()
	if refused, calls := s.OffloadRefused.Load(), s.WriteCalls.Load(); refused != 2 || calls != 1+3+3 {
		t.Errorf("%d runs refused in %d calls, want 2 in 7", refused, calls)
	}
	if before.USO && d.Capabilities().USO {
		t.Error("the capability was not taken back")
	}
	if d.Capabilities().TSO4 != before.TSO4 {
		t.Error("another capability was taken back")
	}
}

// A run that has to be cut on a kernel where header and packet must be one buffer: the cut packets must not be put where
// the run still is. A socket that keeps message boundaries stands in for the device.
func TestLinuxSegmentsContiguous(t *testing.T) {
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_SEQPACKET|unix.SOCK_CLOEXEC, 0)
	must(t, err)
	defer unix.Close(fds[0])
	defer unix.Close(fds[1])
	for _, contiguous := range []bool{false, true} {
		q := newLinuxQueue(&linuxDevice{}, fds[0]) // without capabilities
		q.vnet, q.contiguous = true, contiguous
		packets := pack(series(spec{flow: 9, seq: 1000, df: true, window: 5}, 700, 700, 700, 123))
		want := make([][]byte, len(packets))
		for i := range packets {
			want[i] = bytes.Clone(packets[i])
		}
		if n, err := q.Write(coalesce(NewCoalescer(allOffloads), packets)); n != 1 || err != nil {
			t.Fatalf("Write = %d, %v", n, err)
		}
		buf := make([]byte, 2000)
		for i := range want {
			n, err := unix.Read(fds[1], buf)
			must(t, err)
			got := buf[virtioHeaderLen:n]
			clear(got[4:6]) // with DF the identification means nothing
			clear(want[i][4:6])
			clear(got[10:12])
			clear(want[i][10:12])
			if !bytes.Equal(got, want[i]) {
				t.Fatalf("contiguous %v: packet %d changed\n%x\n%x", contiguous, i, got[:40], want[i][:40])
			}
		}
	}
}

// However a packet is cut into pieces, and whichever system call takes it, it arrives whole.
func TestLinuxWritePieces(t *testing.T) {
	var d *linuxDevice
	var receiver *net.UDPConn
	inNewNamespace(t, func() {
		d = mustOpen(t, Options{Name: "pieces0"})
		must(t, host.AddAddress(d.Name(), netip.MustParsePrefix("10.255.255.254/8")))
		must(t, host.SetUp(d.Name()))
		var err error
		receiver, err = net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(10, 255, 255, 254), Port: 4433})
		must(t, err)
	})
	defer receiver.Close()
	payload := randomBytes(rand.New(rand.NewPCG(19, 20)), 1200)
	packet := spec{udp: true, flow: 9, payload: payload}.bytes()
	for _, c := range []struct {
		contiguous bool
		size       int
	}{{false, 2000}, {false, 700}, {false, 1}, {true, 700}} {
		d.queues[0].contiguous = c.contiguous
		pieces := slices.Collect(slices.Chunk(packet, c.size)) // of one byte, they are more than one writev takes
		if n, err := d.Queues()[0].Write([]Run{{Pieces: pieces}}); n != 1 || err != nil {
			t.Fatalf("%+v: Write = %d, %v", c, n, err)
		}
		receiver.SetReadDeadline(time.Now().Add(10 * time.Second))
		buf := make([]byte, 2000)
		n, err := receiver.Read(buf)
		must(t, err)
		if !bytes.Equal(buf[:n], payload) {
			t.Errorf("%+v: %d bytes arrived changed", c, n)
		}
	}
	if n, err := d.Queues()[0].Write([]Run{{Pieces: [][]byte{{0x50, 0}}}, {Pieces: [][]byte{packet}}}); n != 2 || err != nil {
		t.Errorf("a bad packet stopped Write: %d, %v", n, err)
	}
	if n := d.Queues()[0].Stats().WriteRefused.Load(); n != 1 {
		t.Errorf("WriteRefused %d, want 1", n)
	}
}

func TestLinuxErrors(t *testing.T) {
	inNewNamespace(t, func() {
		first := mustOpen(t, Options{Name: "sluice%d"})
		if first.Name() != "sluice0" {
			t.Errorf("name %q, want sluice0", first.Name())
		}
		for _, c := range []struct {
			name string
			want error
		}{
			{"sluice0", ErrBusy}, {"lo", ErrBusy}, {"sixteen-letters-", ErrName}, {"a/b", ErrName}, {"a b", ErrName},
			{".", ErrName}, {"..", ErrName}, {"a:b", ErrName}, {"a%s", ErrName}, {"%d%d", ErrName}, {"a\x00", ErrName},
		} {
			d, err := Open(Options{Name: c.name})
			if !errors.Is(err, c.want) {
				t.Errorf("%q: %v, want %v", c.name, err, c.want)
			}
			if err == nil {
				d.Close()
			}
		}
		if d := mustOpen(t, Options{}); d.Name() == "" {
			t.Error("no name chosen")
		}
		if _, err := Open(Options{FD: 0x7fffffff}); err == nil || !strings.Contains(err.Error(), "not an attached TUN device") {
			t.Errorf("bad descriptor: %v", err)
		}
		if _, err := Open(Options{Name: "mtu0", MTU: 1 << 20}); err == nil {
			t.Error("an MTU of 1 MiB was accepted")
		}
		mustOpen(t, Options{Name: "many0", Queues: 2})
		if d, err := Open(Options{Name: "many0", Queues: 2}); !errors.Is(err, ErrBusy) {
			t.Errorf("multi-queue device opened twice: %v, want %v", err, ErrBusy)
			if err == nil {
				d.Close()
			}
		}
	})
}

func TestLinuxWithoutRights(t *testing.T) {
	inNewNamespace(t, func() {
		// Capabilities belong to the thread, which is locked here.
		header := unix.CapUserHeader{Version: unix.LINUX_CAPABILITY_VERSION_3}
		var full [2]unix.CapUserData
		must(t, unix.Capget(&header, &full[0]))
		less := full
		less[0].Effective &^= 1 << unix.CAP_NET_ADMIN
		must(t, unix.Capset(&header, &less[0]))
		_, err := Open(Options{Name: "norights0"})
		must(t, unix.Capset(&header, &full[0]))
		if !errors.Is(err, ErrPermission) || !strings.Contains(err.Error(), "CAP_NET_ADMIN") {
			t.Errorf("%v, want %v", err, ErrPermission)
		}
	})
}

func TestLinuxEvents(t *testing.T) {
	inNewNamespace(t, func() {
		d := mustOpen(t, Options{Name: "events0", MTU: 1300})
		if d.MTU() != 1300 {
			t.Errorf("MTU %d, want 1300", d.MTU())
		}
		q := d.Queues()[0]
		packet := spec{payload: []byte("abc")}.bytes()
		if n, err := q.Write([]Run{{Pieces: [][]byte{packet}}, {Pieces: [][]byte{packet}}}); n != 2 || err != ErrDown {
			t.Errorf("Write while down = %d, %v, want 2, ErrDown", n, err)
		}
		if n := q.Stats().WriteDown.Load(); n != 2 {
			t.Errorf("WriteDown %d, want 2", n)
		}
		must(t, host.SetUp("events0"))
		expect(t, d, EventUp)
		if n, err := q.Write([]Run{{Pieces: [][]byte{packet[:3], nil, packet[3:]}}}); n != 1 || err != nil {
			t.Errorf("Write = %d, %v", n, err)
		}
		must(t, host.SetMTU("events0", 1280))
		expect(t, d, EventMTU)
		if d.MTU() != 1280 {
			t.Errorf("MTU %d, want 1280", d.MTU())
		}
		must(t, host.SetDown("events0"))
		expect(t, d, EventDown)
		link, err := netlink.LinkByName("events0")
		must(t, err)
		must(t, netlink.LinkDel(link))
		expect(t, d, EventGone)
		if _, ok := <-d.Events(); ok {
			t.Error("Events was not closed")
		}
		if n, err := q.Read(batch(1)); n != 0 || err != ErrClosed {
			t.Errorf("Read after deletion = %d, %v", n, err)
		}
		if n, err := q.Write([]Run{{Pieces: [][]byte{packet}}}); n != 0 || err != ErrClosed {
			t.Errorf("Write after deletion = %d, %v", n, err)
		}
		must(t, d.Close())
	})
}

// A device that is moved to another namespace, and renamed there, is not gone; its state is still seen.
func TestLinuxMoved(t *testing.T) {
	other := inNewNamespace(t, func() {})
	inNewNamespace(t, func() {
		d := mustOpen(t, Options{Name: "moved0", MTU: 1300})
		must(t, host.SetUp("moved0"))
		expect(t, d, EventUp)
		link, err := netlink.LinkByName("moved0")
		must(t, err)
		must(t, netlink.LinkSetNsFd(link, other))
		expect(t, d, EventDown) // the kernel sets a link down to move it
		inNamespace(t, other, func() {
			link, err := netlink.LinkByName("moved0")
			must(t, err)
			must(t, netlink.LinkSetName(link, "renamed0"))
			must(t, host.SetUp("renamed0"))
			expect(t, d, EventUp)
			must(t, host.SetMTU("renamed0", 1400))
			expect(t, d, EventMTU)
			if d.MTU() != 1400 {
				t.Errorf("MTU %d, want 1400", d.MTU())
			}
			must(t, host.SetDown("renamed0"))
			expect(t, d, EventDown)
			must(t, netlink.LinkDel(link))
			expect(t, d, EventGone)
		})
	})
}

func TestLinuxAdopt(t *testing.T) {
	inNewNamespace(t, func() {
		fd, err := openClone()
		must(t, err)
		_, err = setInterface(fd, "adopted0", unix.IFF_TUN|unix.IFF_NO_PI|unix.IFF_VNET_HDR)
		must(t, err)
		must(t, host.SetUp("adopted0"))
		d := mustOpen(t, Options{FD: fd, MTU: 1234})
		if d.Name() != "adopted0" || d.MTU() != 1234 || !d.Capabilities().TSO4 {
			t.Errorf("%q, MTU %d, %+v", d.Name(), d.MTU(), d.Capabilities())
		}
		expect(t, d, EventUp)

		plain, err := openClone()
		must(t, err)
		_, err = setInterface(plain, "ethernet0", unix.IFF_TAP|unix.IFF_NO_PI)
		must(t, err)
		if _, err := Open(Options{FD: plain}); err == nil || !strings.Contains(err.Error(), "IFF_TUN") {
			t.Errorf("descriptor of a TAP device: %v", err)
		}
		if err := unix.Close(plain); err != nil {
			t.Errorf("a refused descriptor was closed: %v", err)
		}
	})
}

// A persistent device remembers how its last user read it: another length of header, and superpackets. Who takes it over
// must not be given those (tun_set_iff resets neither vnet_hdr_sz nor set_features).
func TestLinuxTakeOver(t *testing.T) {
	for _, without := range []bool{false, true} {
		inNewNamespace(t, func() {
			fd, err := openClone()
			must(t, err)
			_, err = setInterface(fd, "left0", unix.IFF_TUN|unix.IFF_NO_PI|unix.IFF_VNET_HDR)
			must(t, err)
			must(t, unix.IoctlSetPointerInt(fd, unix.TUNSETVNETHDRSZ, 12))
			must(t, unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offloadTCP))
			must(t, unix.IoctlSetInt(fd, unix.TUNSETPERSIST, 1))
			must(t, unix.Close(fd))

			d := mustOpen(t, Options{Name: "left0", NoOffload: without})
			must(t, host.AddAddress("left0", netip.MustParsePrefix("10.255.255.254/8")))
			must(t, host.SetUp("left0"))
			settle(t, d.Queues()[0], batch(8))
			receiver, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(10, 255, 255, 254), Port: 4433})
			must(t, err)
			defer receiver.Close()
			packet := spec{udp: true, flow: 9, payload: []byte("whole")}.bytes()
			if n, err := d.Queues()[0].Write([]Run{{Pieces: [][]byte{packet}}}); n != 1 || err != nil {
				t.Fatalf("Write = %d, %v", n, err)
			}
			receiver.SetReadDeadline(time.Now().Add(2 * time.Second))
			buf := make([]byte, 100)
			if n, err := receiver.Read(buf); err != nil || string(buf[:n]) != "whole" {
				t.Errorf("without offload %v: %q arrived, %v", without, buf[:n], err)
			}
			_, err = receiver.WriteToUDP([]byte("out"), &net.UDPAddr{IP: net.IPv4(10, 0, 0, 9), Port: 4433})
			must(t, err)
			read := batch(1)
			n, err := d.Queues()[0].Read(read)
			for n == 1 && err == nil && read[0].Data[0]>>4 == 6 { // the host's own reports of groups, which come when they like
				n, err = d.Queues()[0].Read(read)
			}
			if n != 1 || err != nil || !bytes.HasSuffix(read[0].Data, []byte("out")) {
				t.Errorf("without offload %v: Read = %d, %v", without, n, err)
			} else if without && ip.Add(ip.PseudoSum(read[0].Data, ip.ProtocolUDP, 11), ip.Sum(read[0].Data[20:], 0)) != 0xffff {
				t.Error("a checksum is incomplete, and nothing says so")
			}
		})
	}
}

// transmit makes the kernel send packets out through the device.
func transmit(t *testing.T, payload []byte, times int) {
	t.Helper()
	c, err := net.Dial("udp", "10.9.0.77:9")
	must(t, err)
	defer c.Close()
	for range times {
		_, err = c.Write(payload)
		must(t, err)
	}
}

// settle reads until the queue is dry, so that what the kernel sends on its own is gone.
func settle(t *testing.T, q Queue, packets []Superpacket) {
	t.Helper()
	for {
		n, err := q.Read(packets)
		must(t, err)
		if n == 0 {
			return
		}
	}
}

func TestLinuxQueues(t *testing.T) {
	for _, o := range []Options{{Queues: 3}, {NoOffload: true}, {Queues: 2, NoOffload: true}} {
		inNewNamespace(t, func() {
			o.Name = "queues0"
			d := mustOpen(t, o)
			if len(d.Queues()) != max(1, o.Queues) || d.Capabilities().VNETHeader == o.NoOffload {
				t.Fatalf("%+v: %d queues, %+v", o, len(d.Queues()), d.Capabilities())
			}
			must(t, host.AddAddress(d.Name(), netip.MustParsePrefix("10.9.0.1/24")))
			must(t, host.SetUp(d.Name()))
			transmit(t, []byte("payload"), 4)
			found := 0
			for _, q := range d.Queues() {
				packets := batch(16)
				n, err := q.Read(packets)
				must(t, err)
				for i := range packets[:n] {
					for _, p := range cutAll(t, &packets[i]) {
						if bytes.HasSuffix(p, []byte("payload")) {
							verify(t, p)
							found++
						}
					}
				}
			}
			if found != 4 {
				t.Errorf("%+v: %d of 4 packets read", o, found)
			}
			must(t, d.Close())
		})
	}
}

func TestLinuxClose(t *testing.T) {
	inNewNamespace(t, func() {
		d := mustOpen(t, Options{Name: "close0"})
		started := make(chan struct{})
		ended := make(chan error)
		q := d.Queues()[0]
		go func() {
			packets := batch(1)
			close(started)
			for {
				if _, err := q.Read(packets); err != nil {
					ended <- err
					return
				}
			}
		}()
		<-started
		must(t, d.Close())
		if err := <-ended; err != ErrClosed {
			t.Errorf("Read after Close: %v", err)
		}
		must(t, d.Close())
		if _, ok := <-d.Events(); ok {
			t.Error("Events delivers something after Close")
		}
		if _, err := netlink.LinkByName("close0"); err == nil {
			t.Error("the interface is still there")
		}
	})
}

func TestLinuxAllocations(t *testing.T) {
	inNewNamespace(t, func() {
		d := mustOpen(t, Options{Name: "allocs0"})
		must(t, host.AddAddress(d.Name(), netip.MustParsePrefix("10.9.0.1/24")))
		must(t, host.SetUp(d.Name()))
		q := d.Queues()[0]
		packets := batch(8)
		settle(t, q, packets)
		transmit(t, make([]byte, 100), 101)
		read := 0
		if n := testing.AllocsPerRun(100, func() {
			k, err := q.Read(packets[:1])
			if err != nil {
				panic(err)
			}
			read += k
		}); n != 0 || read < 90 {
			t.Errorf("Read: %v allocations, %d packets", n, read)
		}
		c := NewCoalescer(d.Capabilities())
		runs := coalesce(c, pack(series(spec{flow: 3}, 1000, 1000, 1000)))
		if n := testing.AllocsPerRun(100, func() {
			if k, err := q.Write(runs); k != len(runs) || err != nil {
				panic(fmt.Sprint(k, err))
			}
		}); n != 0 {
			t.Errorf("Write: %v allocations", n)
		}
	})
}

func BenchmarkLinuxWrite(b *testing.B) {
	lab.NeedTUN(b)
	runtime.LockOSThread() // not unlocked: the thread ends with the benchmark
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		b.Fatal(err)
	}
	d, err := Open(Options{Name: "write0"})
	if err != nil {
		b.Fatal(err)
	}
	defer d.Close()
	if err := host.SetUp("write0"); err != nil {
		b.Fatal(err)
	}
	sizes := make([]int, 45)
	for i := range sizes {
		sizes[i] = 1400
	}
	runs := coalesce(NewCoalescer(d.Capabilities()), pack(series(spec{}, sizes...)))
	n, _ := ip.Length(runs[0].Pieces[0])
	b.SetBytes(int64(n))
	for b.Loop() {
		if _, err := d.Queues()[0].Write(runs); err != nil {
			b.Fatal(err)
		}
	}
}
