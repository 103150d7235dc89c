package pipeline

import (
	"bytes"
	"fmt"
	"log/slog"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-vpn/sluice/pipeline/udp/udptest"
)

// The first line comes when the first loss is seen, further ones a minute apart, each with what was lost since, in the order
// of lossNames; none while nothing is lost.
func TestLossWatch(t *testing.T) {
	w := countWatch{names: lossNames[:], least: 1}
	for i, c := range []struct {
		at                  time.Duration
		read, full, uncared uint64
		want                []any
	}{
		{at: 1 * time.Second, uncared: 5},
		{at: 6 * time.Second, read: 3, uncared: 5, want: []any{slog.Uint64("tun_read_dropped", 3)}},
		{at: 11 * time.Second, read: 4},
		{at: 65 * time.Second, read: 7, full: 1},
		{at: 66 * time.Second, read: 9, full: 2, want: []any{slog.Uint64("tun_read_dropped", 6), slog.Uint64("drop_tun_full", 2)}},
		{at: 126 * time.Second, read: 9, full: 2},
		{at: 300 * time.Second, read: 9, full: 3, want: []any{slog.Uint64("drop_tun_full", 1)}},
	} {
		got := w.look(c.at, map[string]uint64{"tun_read_dropped": c.read, "drop_tun_full": c.full, "drop_replayed": c.uncared})
		if fmt.Sprint(got) != fmt.Sprint(c.want) {
			t.Errorf("look %d: %v, want %v", i, got, c.want)
		}
		if w.due(c.at+watchLook-1) || !w.due(c.at+watchLook) || w.deadline() != c.at+watchLook+watchLine {
			t.Errorf("look %d: due or deadline is wrong", i)
		}
	}
}

// Every counter that is told of is one that there is.
func TestLossNames(t *testing.T) {
	runWorld(t, plain, func(w *world) {
		set := map[string]uint64{}
		for _, c := range w.a.Counters() {
			set[c.Name] = c.Value
		}
		for _, name := range slices.Concat(lossNames[:], floodNames[:]) {
			if _, ok := set[name]; !ok {
				t.Errorf("there is no counter %q", name)
			}
		}
		if s, err := w.a.Status(); err != nil || len(s.Lost) != 0 {
			t.Errorf("lost %v, %v, before anything was", s.Lost, err)
		}
	})
}

// A flood of what is no peer's is told by a line a minute at most, with the names and what came since; a few are only counted.
func TestFloodTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		n := newNode(t, udptest.New(1), plain, 1, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
		stats := n.shards[0].stats
		minutes := func(perSecond, minutes int) (lines int) {
			synctest.Wait()
			before := log.Len()
			for range 60 * minutes { // control has something to do each second, as with traffic
				stats.drop(dropUnauthentic, perSecond)
				time.Sleep(time.Second)
				n.Counters()
				synctest.Wait()
			}
			return strings.Count(log.String()[before:], "flood of datagrams")
		}
		if got := minutes(100, 10); got != 0 {
			t.Errorf("%d lines of 100 messages a second, want none:\n%s", got, &log)
		}
		if got := minutes(50_000, 3); got != 3 || !strings.Contains(log.String(), "drop_unauthentic=") {
			t.Errorf("%d lines in 3 minutes, want 3 with drop_unauthentic:\n%s", got, &log)
		}
		if got := minutes(0, 3); got > 1 { // the rest
			t.Errorf("%d lines after the flood, want 1 at most:\n%s", got, &log)
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		<-n.ran
	})
}

// What the kernel drops in front of the tunnel is told in status at once, and in the log within watchLook while there is traffic, by a
// line a minute at most, and not after it has stopped.
func TestLossTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		lines := func() int { return strings.Count(log.String(), "packets were lost") }
		n := newNode(t, udptest.New(1), plain, 1, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
		stats := n.device.Queue(0).Stats()
		synctest.Wait()
		for second := range 240 { // control has something to do each second, as with traffic
			if second < 150 {
				stats.ReadDropped.Add(10)
			}
			time.Sleep(time.Second)
			if s, err := n.Status(); err != nil || len(s.Lost) != 1 || s.Lost[0].Name != "tun_read_dropped" || s.Lost[0].Value != stats.ReadDropped.Load() {
				t.Fatalf("after %d s lost %v, %v, want %d", second, s.Lost, err, stats.ReadDropped.Load())
			}
			if want := 1 + second/60; second >= 10 && second%60 > 5 && second < 150 && lines() != want {
				t.Errorf("after %d s: %d lines, want %d:\n%s", second, lines(), want, &log)
			}
		}
		// The rest of what was lost until second 150 is told at 180.
		if lines() != 4 {
			t.Errorf("%d lines, want 4:\n%s", lines(), &log)
		}
		stats.ReadDropped.Add(7) // and with nothing else to do, within two minutes
		time.Sleep(2 * time.Minute)
		synctest.Wait()
		if !strings.Contains(log.String(), "tun_read_dropped=7") {
			t.Errorf("a loss while idle is not told:\n%s", &log)
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		<-n.ran
	})
}

// An MTU that lets packets through which no datagram carries, and that could not be set back, is told.
func TestLargeMTUTold(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		var log bytes.Buffer
		n := newNode(t, udptest.New(1), plain, 1, func(c *Config) { c.Logger = slog.New(slog.NewTextHandler(&log, nil)) })
		n.device.SetMTU(MaxMTU)
		synctest.Wait()
		if strings.Contains(log.String(), "too large") {
			t.Errorf("at the limit:\n%s", &log)
		}
		n.device.SetMTU(MaxMTU + 1)
		synctest.Wait()
		if !strings.Contains(log.String(), "too large") {
			t.Errorf("above the limit:\n%s", &log)
		}
		if err := n.Close(); err != nil {
			t.Error(err)
		}
		<-n.ran
	})
}
