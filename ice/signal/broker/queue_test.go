package broker

import (
	"errors"
	"net/netip"
	"slices"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"
)

// TestHandshakeQueue: handshakes of a neighbourhood wait for one another, those that would wait too long are told so at once, and
// another neighbourhood's do not wait for them.
func TestHandshakeQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, begin := &door{paces: map[netip.Prefix]time.Time{}}, time.Now()
		var passed, refused atomic.Int32
		for range 1000 {
			go func() {
				switch err := d.queue(t.Context(), netip.MustParsePrefix("192.0.2.0/24")); {
				case err == nil:
					passed.Add(1)
				case errors.Is(err, errQueue) && time.Since(begin) == 0:
					refused.Add(1)
				default:
					t.Errorf("%v after %v", err, time.Since(begin))
				}
			}()
		}
		time.Sleep(time.Second)
		synctest.Wait()
		if got := passed.Load(); got != handshakesOfSource+1 {
			t.Errorf("%d have passed in a second, want %d", got, handshakesOfSource+1)
		}
		now := time.Now()
		if err := d.queue(t.Context(), netip.MustParsePrefix("198.51.100.0/24")); err != nil || time.Since(now) > time.Second/handshakesPerSecond {
			t.Errorf("another neighbourhood: %v after %v, want its turn at once", err, time.Since(now))
		}
		time.Sleep(queueTime)
		synctest.Wait()
		if got, want := passed.Load(), int32(queueTime/time.Second*handshakesOfSource+1); got != want || refused.Load() != 1000-want {
			t.Errorf("%d have passed and %d were refused, want %d and %d", got, refused.Load(), want, 1000-want)
		}
	})
}

// TestHandshakesInAll: many neighbourhoods together begin no more than there may be, and leave nothing behind.
func TestHandshakesInAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d := &door{paces: map[netip.Prefix]time.Time{}}
		var passed atomic.Int32
		for i := range 1500 {
			go func() {
				around := netip.PrefixFrom(netip.AddrFrom4([4]byte{11, byte(i >> 8), byte(i), 0}), 24)
				if d.queue(t.Context(), around) == nil {
					passed.Add(1)
				}
			}()
		}
		time.Sleep(queueTime)
		synctest.Wait()
		if got, want := passed.Load(), int32(queueTime/time.Second*handshakesPerSecond+1); got != want {
			t.Errorf("%d have passed in %v, want %d", got, queueTime, want)
		}
		for i := range maxPaces {
			d.paces[netip.PrefixFrom(netip.AddrFrom4([4]byte{12, byte(i >> 8), byte(i), 0}), 24)] = time.Now()
		}
		time.Sleep(time.Second)
		if err := d.queue(t.Context(), netip.MustParsePrefix("192.0.2.0/24")); err != nil || len(d.paces) > 2 {
			t.Errorf("%v, and %d paces are kept, want 2", err, len(d.paces))
		}
	})
}

func TestSources(t *testing.T) {
	d := &door{most: 8192}
	for _, tt := range []struct {
		from   string
		want   []string
		shares []int
	}{
		{"192.0.2.7", []string{"192.0.2.7/32", "192.0.2.0/24"}, []int{128, 512, 4096}},
		{"2001:db8:1:2::3", []string{"2001:db8:1:2::/64", "2001:db8:1::/48"}, []int{128, 512, 4096}},
	} {
		var names []string
		var shares []int
		for _, s := range sources(netip.MustParseAddr(tt.from)) {
			if s.IsValid() {
				names = append(names, s.String())
			}
			shares = append(shares, d.share(s))
		}
		if !slices.Equal(names, tt.want) || !slices.Equal(shares, tt.shares) {
			t.Errorf("%s: %v %v, want %v %v", tt.from, names, shares, tt.want, tt.shares)
		}
	}
}
