package relay

import (
	"net"
	"net/netip"
	"runtime"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/ice/stun"
)

// TestManySources: requests from a hundred thousand addresses leave nothing behind, and a client is served before and after.
func TestManySources(t *testing.T) {
	count := 100_000
	if testing.Short() {
		count = 10_000
	}
	s := start(t, func(c *Config) { c.RefusalsPerSecond, c.BindingsPerSecond = 10, 100 })
	known := dial(t, s, 0, "known")
	known.allocate()
	heap, goroutines := heapInUse(), runtime.NumGoroutine()
	stranger := [][]byte{
		plain(stun.Allocate, stun.Request, newID(), udpTransport), plain(stun.Binding, stun.Request, newID()),
		known.signed(stun.Refresh, newID()), channelData(0x4001, make([]byte, 100)),
	}
	for i := range count {
		source := netip.AddrFrom4([4]byte{127, 1 + byte(i>>16), byte(i >> 8), byte(i)})
		conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(source, 0)))
		if err != nil {
			t.Fatal(err)
		}
		_, err = conn.WriteToUDPAddrPort(stranger[i%len(stranger)], s.Addrs()[0])
		conn.Close()
		if err != nil {
			t.Fatal(err)
		}
	}
	eventually(t, "the client to be served after the flood", func() bool {
		r := known.exchange(known.signed(stun.Refresh, newID()), time.Second)
		return r != nil && stun.CodeOf(r) == 0
	})
	if grown := heapInUse() - heap; grown > 1<<20 {
		t.Errorf("%d bytes more are in use", grown)
	}
	if n := runtime.NumGoroutine() - goroutines; n > 2 {
		t.Errorf("%d goroutines more", n)
	}
	if allocations, users := s.quota.count(); allocations != 1 || users != 1 {
		t.Errorf("%d allocations of %d users", allocations, users)
	}
	if n := s.stats.answers[answerUnauthorized].Load(); n < uint64(count/20) {
		t.Errorf("only %d strangers got a 401", n)
	}
	rests(t)
}

// heapInUse is what is in use once the garbage is gone.
func heapInUse() int64 {
	var m runtime.MemStats
	for range 3 {
		runtime.GC()
		time.Sleep(time.Millisecond)
	}
	runtime.ReadMemStats(&m)
	return int64(m.HeapAlloc)
}
