package udp

import (
	"net/netip"
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// The kernel tells when a datagram came if it is asked to, in both families, also of a run, and otherwise not; the portable socket does not.
func TestArrived(t *testing.T) {
	for _, test := range []struct {
		name string
		cfg  Config
		want bool
	}{
		{"asked", Config{Timestamps: true}, true},
		{"asked of two shards", Config{Timestamps: true, Shards: 2}, true},
		{"not asked", Config{}, false},
		{"portable", Config{Timestamps: true, Portable: true}, false},
	} {
		t.Run(test.name, func(t *testing.T) {
			pairs, err := Listen(test.cfg)
			if err != nil {
				t.Fatal(err)
			}
			defer closeAll(pairs)
			for _, address := range []string{"127.0.0.1", "::1"} {
				checkArrived(t, pairs, netip.MustParseAddr(address), test.want)
			}
		})
	}
}

// checkArrived sends a run to pairs and looks at what comes of it.
func checkArrived(t *testing.T, pairs []Pair, address netip.Addr, want bool) {
	family := v4
	if address.Is6() {
		family = v6
	}
	if pairs[0].of(family) == nil {
		t.Logf("no socket for %v", address)
		return
	}
	if fd := pairs[0].of(family).FD(); want && unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_TIMESTAMPNS_NEW, 1) != nil {
		t.Skip("SKIPPED: this kernel does not tell when a datagram came")
	}
	run := []Run{{Data: make([]byte, 3000), SegmentSize: 1000, Dst: netip.AddrPortFrom(address, pairs[0].LocalPort())}}
	before := time.Now().UnixNano()
	if n, err := pairs[0].of(family).Send(run); n != 1 || err != nil {
		t.Fatal(n, err)
	}
	batch := make([]Datagrams, 4)
	for i := range batch {
		batch[i].Buf = make([]byte, BufferSize)
	}
	for deadline, bytes := time.Now().Add(10*time.Second), 0; bytes < 3000; {
		if time.Now().After(deadline) {
			t.Fatalf("%v: %d bytes came, want 3000", address, bytes)
		}
		for _, pair := range pairs {
			n, err := pair.of(family).Receive(batch)
			if err != nil {
				t.Fatal(err)
			}
			for _, d := range batch[:n] {
				bytes += len(d.Data)
				if after := time.Now().UnixNano(); want && (d.Arrived < before || d.Arrived > after) || !want && d.Arrived != 0 {
					t.Errorf("%v: arrived at %d, want %v, between %d and %d", address, d.Arrived, want, before, after)
				}
			}
		}
		runtime.Gosched()
	}
}
