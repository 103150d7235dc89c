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

// TestHandshakeQueue: handshakes wait for one another, and those that would wait too long are told so at once.
func TestHandshakeQueue(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		d, begin := &door{}, time.Now()
		var passed, refused atomic.Int32
		for range 3000 {
			go func() {
				switch err := d.queue(t.Context()); {
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
		if got := passed.Load(); got != handshakesPerSecond+1 {
			t.Errorf("%d have passed in a second, want %d", got, handshakesPerSecond+1)
		}
		time.Sleep(queueTime)
		synctest.Wait()
		if got, want := passed.Load(), int32(queueTime/time.Second*handshakesPerSecond+1); got != want || refused.Load() != 3000-want {
			t.Errorf("%d have passed and %d were refused, want %d and %d", got, refused.Load(), want, 3000-want)
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
