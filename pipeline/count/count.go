// Package count is the one way to count. A package declares each of its counters once, beside the field that is added to: name, help and
// kind stand in the field's tag, or in a table beside an array of them. What programs read of it (SLUICE_STATS, status) and the series of
// a metrics page both come from that declaration, so that they cannot tell different things.
//
//	help:"..."       what is counted; a field without it is no counter
//	name:"..."       the name, where it is not the prefix and the field's name in snake case
//	drop:"A B"       it is a packet that was dropped at stage A for reason B, one value of the family [Dropped]
//	kind:"gauge"     it may fall
//
// Packages that stand below this one (tun, pipeline/udp) need only the tags.
package count

import (
	"cmp"
	"math/bits"
	"reflect"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"unicode"
)

// Kind is what a series does over time.
type Kind uint8

// The kinds.
const (
	Total   Kind = iota // only grows
	Gauge               // as of now
	Buckets             // a histogram
)

// String returns the kind's name in the Prometheus text format.
func (k Kind) String() string {
	return [...]string{Total: "counter", Gauge: "gauge", Buckets: "histogram"}[k]
}

// Family is a metric family: series that differ in the values of their labels only.
type Family struct {
	Series string // its name, which begins with sluice_
	Help   string
	Kind   Kind
	Unit   float64 // Buckets: what 1 is in the unit that Series ends with, such as 1e-6 for microseconds in seconds
}

// Dropped is the family of packets that went no further.
var Dropped = Family{Series: "sluice_dropped_packets_total", Help: "Packets and datagrams that went no further, by the stage of their way and the reason."}

// Counter is a declared count and its value.
type Counter struct {
	Name   string   // in SLUICE_STATS and status; names are stable
	Help   string   // what Name counts
	Labels []string // of the series: name, value, name, value
	Family

	Value uint64
	// Of a histogram, where Value is how many observations there were.
	Counts []uint64 // of each bucket alone, with bounds 1, 2, 4 ..; the last has none
	Sum    uint64
}

// Of returns the counters that the struct behind stats declares, with their values; prefix begins their names. Fields are atomic.Uint64,
// Histogram or uint64.
func Of(prefix string, stats any) []Counter {
	v := reflect.ValueOf(stats).Elem()
	fields := declared(prefix, v.Type())
	list := make([]Counter, len(fields))
	for i, f := range fields {
		list[i] = f.counter
		switch at := v.Field(f.index).Addr().Interface().(type) {
		case *atomic.Uint64:
			list[i].Value = at.Load()
		case *uint64:
			list[i].Value = *at
		case *Histogram:
			at.read(&list[i])
		}
	}
	return list
}

// field is a declared field of a struct.
type field struct {
	index   int
	counter Counter
}

type declaration struct {
	prefix string
	of     reflect.Type
}

// known keeps what tags say by declaration, since they are read again and again.
var known sync.Map

func declared(prefix string, t reflect.Type) []field {
	if fields, ok := known.Load(declaration{prefix, t}); ok {
		return fields.([]field)
	}
	var fields []field
	for i := range t.NumField() {
		if f := t.Field(i); f.Tag.Get("help") != "" {
			fields = append(fields, field{i, declare(prefix, f)})
		}
	}
	known.Store(declaration{prefix, t}, fields)
	return fields
}

func declare(prefix string, f reflect.StructField) Counter {
	name := f.Tag.Get("name")
	if name == "" {
		name = prefix + snakeCase(f.Name)
	}
	help := f.Tag.Get("help")
	if stage, reason, ok := strings.Cut(f.Tag.Get("drop"), " "); ok {
		return Counter{Name: name, Help: help, Family: Dropped, Labels: []string{"stage", stage, "reason", reason}}
	}
	c := Plain(Total, name, help, 0)
	switch {
	case f.Tag.Get("kind") == Gauge.String():
		c = Plain(Gauge, name, help, 0)
	case f.Type == reflect.TypeFor[Histogram]():
		unit, err := strconv.ParseFloat(f.Tag.Get("unit"), 64)
		if err != nil {
			unit = 1
		}
		c = Counter{Name: name, Help: help, Family: Family{Series: "sluice_" + name, Help: help, Kind: Buckets, Unit: unit}}
	}
	return c
}

// Plain is a counter or gauge without labels, whose series has its name.
func Plain(kind Kind, name, help string, value uint64) Counter {
	series := "sluice_" + name
	if kind == Total {
		series += "_total"
	}
	return Counter{Name: name, Help: help, Family: Family{Series: series, Help: help, Kind: kind}, Value: value}
}

// Labeled is one series of a family; labels are name, value, name, value.
func Labeled(f Family, name, help string, value uint64, labels ...string) Counter {
	return Counter{Name: name, Help: help, Family: f, Labels: labels, Value: value}
}

// snakeCase turns a field's name into a counter's: ReceiveGRO is receive_gro.
func snakeCase(s string) string {
	var b strings.Builder
	for i, r := range s {
		if unicode.IsUpper(r) && i > 0 && !unicode.IsUpper(rune(s[i-1])) {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}

// bounds is how many buckets of a Histogram have a bound: 1, 2, 4 .. 32768.
const bounds = 16

// Histogram counts observations by size. Any goroutine may add to it and read it.
type Histogram struct {
	counts [bounds + 1]atomic.Uint64
	sum    atomic.Uint64
}

// Observe counts one of size n.
func (h *Histogram) Observe(n uint64) {
	h.counts[min(bits.Len64(max(n, 1)-1), bounds)].Add(1)
	h.sum.Add(n)
}

func (h *Histogram) read(c *Counter) {
	c.Counts, c.Sum = make([]uint64, bounds+1), h.sum.Load()
	for i := range h.counts {
		c.Counts[i] = h.counts[i].Load()
		c.Value += c.Counts[i]
	}
}

// Cumulative are the counts of a histogram as the Prometheus format has them: by upper bound, in the family's unit.
func (c *Counter) Cumulative() map[float64]uint64 {
	sum, list := uint64(0), make(map[float64]uint64, len(c.Counts))
	for i := range max(len(c.Counts), 1) - 1 {
		sum += c.Counts[i]
		list[float64(uint64(1)<<i)*c.Unit] = sum
	}
	return list
}

// Set sums counters by name. The zero value is empty. It belongs to one goroutine.
type Set struct {
	at   map[string]int
	list []Counter
}

// Add adds to the counters of these names, or begins them.
func (s *Set) Add(list ...Counter) {
	if s.at == nil {
		s.at = make(map[string]int)
	}
	for _, c := range list {
		i, known := s.at[c.Name]
		if !known {
			s.at[c.Name] = len(s.list)
			c.Counts = slices.Clone(c.Counts)
			s.list = append(s.list, c)
			continue
		}
		sum := &s.list[i]
		sum.Value += c.Value
		sum.Sum += c.Sum
		for k := range c.Counts {
			sum.Counts[k] += c.Counts[k]
		}
	}
}

// List returns the counters by name.
func (s *Set) List() []Counter {
	list := slices.Clone(s.list)
	slices.SortFunc(list, func(a, b Counter) int { return cmp.Compare(a.Name, b.Name) })
	return list
}

// Values are the counters as programs read them: see [Values].
func (s *Set) Values() map[string]uint64 { return Values(s.list) }

// Values maps names to values. Of a histogram there are NAME_count and NAME_sum; NAME_le_BOUND are those up to a bound, in its own unit.
func Values(list []Counter) map[string]uint64 {
	values := make(map[string]uint64, len(list))
	for _, c := range list {
		if c.Kind != Buckets {
			values[c.Name] = c.Value
			continue
		}
		values[c.Name+"_count"], values[c.Name+"_sum"] = c.Value, c.Sum
		sum := uint64(0)
		for i := range max(len(c.Counts), 1) - 1 {
			sum += c.Counts[i]
			values[c.Name+"_le_"+strconv.FormatUint(1<<i, 10)] = sum
		}
	}
	return values
}
