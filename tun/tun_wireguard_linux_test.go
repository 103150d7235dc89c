//go:build linux && sluice_portable

package tun

import (
	"bytes"
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/bench/lab"
	"github.com/sluice-vpn/sluice/tun/host"
	"github.com/sluice-vpn/sluice/tun/ip"
	"golang.org/x/sys/unix"
)

// A real device, in a network namespace of its own.
func TestPortableLinux(t *testing.T) {
	lab.NeedTUN(t)
	runtime.LockOSThread() // not unlocked: the thread ends with the test
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		t.Fatal(err)
	}
	d, err := Open(Options{Name: "portable0", MTU: 1300})
	if err != nil {
		t.Fatal(err)
	}
	defer d.Close()
	if d.MTU() != 1300 || d.Name() != "portable0" {
		t.Errorf("%q, MTU %d", d.Name(), d.MTU())
	}
	for _, err := range []error{
		host.AddAddress("portable0", netip.MustParsePrefix("10.9.0.1/24")), host.SetUp("portable0"),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	receiver, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(10, 9, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer receiver.Close()
	c, err := net.Dial("udp", "10.9.0.77:9")
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if _, err := c.Write([]byte("payload")); err != nil {
		t.Fatal(err)
	}
	for found := false; !found; {
		for _, p := range readAll(t, d.(*portableDevice), 1) {
			if bytes.HasSuffix(p, []byte("payload")) {
				verify(t, p)
				found = true
			}
		}
	}
	port := receiver.LocalAddr().(*net.UDPAddr).Port
	p := spec{udp: true, flow: 9, payload: []byte("answer")}.bytes()
	copy(p[12:], []byte{10, 9, 0, 9, 10, 9, 0, 1})
	p[22], p[23] = byte(port>>8), byte(port)
	p[26], p[27] = 0, 0 // no UDP checksum
	p[10], p[11] = 0, 0
	ip.IPv4(p).SetChecksum()
	if n, err := d.Queues()[0].Write([]Run{{Pieces: [][]byte{p}}}); n != 1 || err != nil {
		t.Fatalf("Write = %d, %v", n, err)
	}
	receiver.SetReadDeadline(time.Now().Add(10 * time.Second))
	buf := make([]byte, 100)
	if n, err := receiver.Read(buf); err != nil || string(buf[:n]) != "answer" {
		t.Errorf("received %q, %v", buf[:n], err)
	}
}
