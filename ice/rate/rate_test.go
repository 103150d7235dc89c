package rate

import (
	"testing"
	"time"
)

func TestBucket(t *testing.T) {
	const perSecond, burst = 2, 3
	var b Bucket
	now := time.Unix(1e9, 0)
	take := func(want int) {
		t.Helper()
		got := 0
		for b.Take(now, perSecond, burst) {
			got++
		}
		if got != want {
			t.Errorf("%d taken, want %d", got, want)
		}
	}
	take(burst) // the zero value is full
	now = now.Add(499 * time.Millisecond)
	take(0)
	now = now.Add(time.Millisecond)
	take(1)
	now = now.Add(time.Hour)
	take(burst)
	now = now.Add(-time.Hour) // a clock that runs back gives nothing and takes nothing
	take(0)
	now = now.Add(time.Second)
	take(2)
	b.Give(burst)
	if left := b.Left(now, perSecond, burst); left != 1 {
		t.Errorf("%v left, want 1", left)
	}
	for range burst + 1 {
		b.Give(burst)
	}
	if left := b.Left(now, perSecond, burst); left != burst {
		t.Errorf("%v left, want %d", left, burst)
	}
	for range burst + 1 {
		b.Spend()
	}
	if left := b.Left(now, perSecond, burst); left != 0 {
		t.Errorf("%v left, want none", left)
	}
}
