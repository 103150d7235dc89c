package count

import (
	"maps"
	"reflect"
	"sync/atomic"
	"testing"
)

type sample struct {
	ReadCalls atomic.Uint64 `help:"Calls."`
	NoGRO     atomic.Uint64 `help:"Runs." name:"other_name"`
	Lost      atomic.Uint64 `help:"Lost." drop:"tun_read queue_full"`
	Now       atomic.Uint64 `help:"Now." kind:"gauge"`
	Plain     uint64        `help:"Plain."`
	Sizes     Histogram     `help:"Sizes." unit:"0.5"`
	Other     atomic.Uint64 // not declared
}

// TestOf: one declaration gives the name that programs read and the series of a metrics page.
func TestOf(t *testing.T) {
	s := &sample{Plain: 4}
	s.ReadCalls.Store(1)
	s.NoGRO.Store(2)
	s.Lost.Store(3)
	s.Now.Store(5)
	for _, n := range []uint64{0, 1, 2, 3, 4, 5, 32768, 32769, 1 << 40} {
		s.Sizes.Observe(n)
	}
	type short struct {
		name, series, help, kind string
		value                    uint64
		labels                   []string
	}
	var got []short
	for _, c := range Of("x_", s) {
		got = append(got, short{c.Name, c.Series, c.Family.Help, c.Kind.String(), c.Value, c.Labels})
	}
	want := []short{
		{"x_read_calls", "sluice_x_read_calls_total", "Calls.", "counter", 1, nil},
		{"other_name", "sluice_other_name_total", "Runs.", "counter", 2, nil},
		{"x_lost", "sluice_dropped_packets_total", Dropped.Help, "counter", 3, []string{"stage", "tun_read", "reason", "queue_full"}},
		{"x_now", "sluice_x_now", "Now.", "gauge", 5, nil},
		{"x_plain", "sluice_x_plain_total", "Plain.", "counter", 4, nil},
		{"x_sizes", "sluice_x_sizes", "Sizes.", "histogram", 9, nil},
	}
	if !reflect.DeepEqual(got, want) {
		t.Errorf("got  %v\nwant %v", got, want)
	}
}

// TestHistogram: a bound belongs to its bucket; sets add bucket by bucket, and what programs read is cumulative.
func TestHistogram(t *testing.T) {
	s := &sample{}
	for _, n := range []uint64{0, 1, 2, 3, 4, 5, 32768, 32769} {
		s.Sizes.Observe(n)
	}
	var set Set
	set.Add(Of("x_", s)...)
	set.Add(Of("x_", s)...)
	values := set.Values()
	for name, want := range map[string]uint64{
		"x_sizes_count": 16, "x_sizes_sum": 2 * (15 + 32768 + 32769), "x_sizes_le_1": 4, "x_sizes_le_2": 6, "x_sizes_le_4": 10, "x_sizes_le_8": 12,
		"x_sizes_le_16384": 12, "x_sizes_le_32768": 14, "x_read_calls": 0,
	} {
		if got, ok := values[name]; got != want || !ok {
			t.Errorf("%s is %d (%t), want %d", name, got, ok, want)
		}
	}
	for _, c := range set.List() {
		if c.Name == "x_sizes" {
			if got := c.Cumulative(); len(got) != bounds || got[0.5] != 4 || got[1] != 6 || got[16384] != 14 {
				t.Errorf("by bound in the unit: %v", maps.Collect(maps.All(got)))
			}
		}
	}
	if c := Of("x_", s)[5]; c.Value != 8 {
		t.Errorf("a set has changed what it was given: %d observations, want 8", c.Value)
	}
}
