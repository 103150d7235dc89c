package tun

import (
	"bytes"
	"fmt"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/sluice-vpn/sluice/tun/ip"
)

var allOffloads = Capabilities{VNETHeader: true, TSO4: true, TSO6: true, USO: true}

// coalesce adds copies of packets and returns the runs.
func coalesce(c *Coalescer, packets [][]byte) []Run {
	c.Reset()
	for _, p := range packets {
		c.Add(bytes.Clone(p))
	}
	return c.Runs()
}

// cutRun gives back the packets that a run stands for, with lengths and offload fields checked.
func cutRun(t *testing.T, r *Run) [][]byte {
	t.Helper()
	whole := slices.Concat(r.Pieces...)
	if len(whole) > MaxSuperpacket {
		t.Fatalf("run of %d bytes", len(whole))
	}
	if n, ok := ip.Length(whole); !ok || n != len(whole) {
		t.Fatalf("run of %d bytes says it has %d: %x", len(whole), n, whole[:min(len(whole), 60)])
	}
	if r.Type == GSONone {
		if len(r.Pieces) != 1 || !r.ChecksumValid || r.NeedsChecksum {
			t.Fatalf("single packet: %d pieces, %+v", len(r.Pieces), r.Offload)
		}
		return [][]byte{whole}
	}
	var header [virtioHeaderLen]byte
	encodeVirtio(header[:], &r.Offload)
	data, o, f := decodeVirtio(header[:], whole)
	if f != faultNone || len(data) != len(whole) || o != r.Offload {
		t.Fatalf("offload %+v decodes as %+v, fault %d", r.Offload, o, f)
	}
	all := cutAll(t, &Superpacket{Data: whole, Offload: r.Offload})
	if len(all) != len(r.Pieces) {
		t.Fatalf("%d pieces make %d segments", len(r.Pieces), len(all))
	}
	// The pseudo-header sum in the field, with the rest, must give the checksum that the whole would have.
	start := int(o.ChecksumStart)
	transport, _ := ip.FindTransport(whole)
	body := bytes.Clone(whole[start:])
	sum := ip.Sum(body, 0)
	body[o.ChecksumOffset], body[o.ChecksumOffset+1] = 0, 0
	if want := ip.Sum(body, ip.PseudoSum(whole, transport.Protocol, len(body))); sum != want {
		t.Fatalf("sum with pseudo-header %#x, want %#x", sum, want)
	}
	if whole[0]>>4 == 4 && !ip.IPv4(whole).ChecksumOK() {
		t.Fatal("IPv4 header checksum of the run")
	}
	return all
}

// equivalent compares packets, where the identification of IPv4 packets with DF has no meaning.
func equivalent(a, b []byte) bool {
	if a[0]>>4 == 4 && len(a) == len(b) && a[6] == 0x40 && b[6] == 0x40 {
		a, b = bytes.Clone(a), bytes.Clone(b)
		for _, p := range [][]byte{a, b} {
			p[4], p[5] = 0, 0
			p[10], p[11] = 0, 0
		}
	}
	return same(a, b)
}

// series is a list of specs of one flow that follow each other.
func series(first spec, sizes ...int) []spec {
	var all []spec
	for _, n := range sizes {
		first.payload = bytes.Repeat([]byte{byte(len(all) + 1)}, n)
		all = append(all, first)
		first.seq += uint32(n)
		first.id++
	}
	return all
}

func pack(specs []spec) [][]byte {
	var all [][]byte
	for _, s := range specs {
		all = append(all, s.bytes())
	}
	return all
}

// change returns specs with f applied to number i.
func change(specs []spec, i int, f func(*spec)) []spec {
	specs = slices.Clone(specs)
	f(&specs[i])
	return specs
}

func TestCoalesceTable(t *testing.T) {
	options := []byte{254, 4, 1, 2}
	tcp := series(spec{seq: 0xffffff00, options: options}, 100, 100, 100)
	for _, c := range []struct {
		name  string
		specs []spec
		want  []int // segments of each run
	}{
		{"equal", tcp, []int{3}},
		{"shorter last", series(spec{}, 100, 100, 40), []int{3}},
		{"shorter ends a run", series(spec{}, 100, 40, 40, 40), []int{2, 2}},
		{"longer", series(spec{}, 40, 100, 100), []int{1, 2}},
		{"gap", change(tcp, 1, func(s *spec) { s.seq++ }), []int{1, 1, 1}},
		{"PSH ends a run", change(tcp, 1, func(s *spec) { s.flags = ip.TCPPsh }), []int{2, 1}},
		{"PSH first", change(tcp, 0, func(s *spec) { s.flags = ip.TCPPsh }), []int{1, 2}},
		{"FIN", change(tcp, 2, func(s *spec) { s.flags = ip.TCPFin }), []int{2, 1}},
		{"SYN", change(tcp, 0, func(s *spec) { s.flags = ip.TCPSyn }), []int{1, 2}},
		{"RST", change(tcp, 1, func(s *spec) { s.flags = ip.TCPRst }), []int{1, 1, 1}},
		{"URG", change(tcp, 1, func(s *spec) { s.flags = ip.TCPUrg }), []int{1, 1, 1}},
		{"ECE", change(tcp, 1, func(s *spec) { s.flags = ip.TCPEce }), []int{1, 1, 1}},
		{"CWR", change(tcp, 1, func(s *spec) { s.flags = ip.TCPCwr }), []int{1, 1, 1}},
		{"no ACK", change(tcp, 1, func(s *spec) { s.noAck = true }), []int{1, 1, 1}},
		{"acknowledgement", change(tcp, 1, func(s *spec) { s.ack++ }), []int{1, 1, 1}},
		{"window", change(tcp, 1, func(s *spec) { s.window++ }), []int{1, 1, 1}},
		{"option value", change(tcp, 1, func(s *spec) { s.options = []byte{254, 4, 1, 3} }), []int{1, 1, 1}},
		{"option length", change(tcp, 1, func(s *spec) { s.options = nil }), []int{1, 1, 1}},
		{"TTL", change(tcp, 1, func(s *spec) { s.ttl = 63 }), []int{1, 1, 1}},
		{"DSCP", change(tcp, 1, func(s *spec) { s.tos = 4 }), []int{1, 1, 1}},
		{"ECN", change(tcp, 1, func(s *spec) { s.tos = 3 }), []int{1, 1, 1}},
		{"DF", change(tcp, 1, func(s *spec) { s.df = true }), []int{1, 1, 1}},
		{"ID without DF", change(tcp, 1, func(s *spec) { s.id = 9 }), []int{1, 1, 1}},
		{"ID with DF", []spec{{df: true, id: 4, payload: []byte("a")}, {df: true, id: 4, seq: 1, payload: []byte("b")}}, []int{2}},
		{"IP options", change(tcp, 1, func(s *spec) { s.ipOptions = true }), []int{1, 1, 1}},
		{"fragment", change(tcp, 1, func(s *spec) { s.fragment = true }), []int{1, 1, 1}},
		{"bad header checksum", change(tcp, 1, func(s *spec) { s.badIPChecksum = true }), []int{1, 1, 1}},
		{"pure ACKs", series(spec{}, 0, 0), []int{1, 1}},
		{"ACK inside", []spec{tcp[0], {seq: tcp[1].seq, options: options}, tcp[1], tcp[2]}, []int{1, 1, 2}},
		{"other port", change(tcp, 1, func(s *spec) { s.sourcePort = 7 }), []int{1, 1, 1}},
		{"flows between", []spec{
			tcp[0], {flow: 1, udp: true, payload: []byte("x")}, tcp[1], {flow: 2, udp: true, payload: []byte("y")}, tcp[2],
		}, []int{3, 1, 1}},
		{"two hosts", []spec{
			tcp[0], {flow: 1, payload: []byte("x")}, tcp[1], {flow: 1, seq: 1, id: 1, payload: []byte("y")}, tcp[2],
		}, []int{3, 2}},
		{"IPv6", series(spec{six: true, seq: 5}, 100, 100, 1), []int{3}},
		{"IPv6 flow label", change(series(spec{six: true}, 100, 100, 1), 1, func(s *spec) { s.flowLabel = 1 }), []int{1, 1, 1}},
		{"IPv6 ECN", change(series(spec{six: true}, 100, 100, 1), 1, func(s *spec) { s.tos = 3 }), []int{1, 1, 1}},
		{"IPv6 hop limit", change(series(spec{six: true}, 100, 100, 1), 1, func(s *spec) { s.ttl = 3 }), []int{1, 1, 1}},
		{"UDP", series(spec{udp: true}, 100, 100, 40, 100), []int{3, 1}},
		{"UDP IPv6", series(spec{udp: true, six: true}, 100, 100, 40, 100), []int{3, 1}},
		{"UDP without checksum", change(series(spec{udp: true}, 9, 9, 9), 1, func(s *spec) { s.zeroChecksum = true }), []int{1, 1, 1}},
		{"UDP empty", series(spec{udp: true}, 100, 0, 100), []int{1, 1, 1}},
		{"UDP too many", series(spec{udp: true}, slices.Repeat([]int{9}, 130)...), []int{64, 64, 2}},
		{"TCP too many", series(spec{}, slices.Repeat([]int{9}, 600)...), []int{512, 88}},
		{"too long", series(spec{}, slices.Repeat([]int{1400}, 100)...), []int{46, 46, 8}},
		{"too long IPv6", series(spec{six: true}, slices.Repeat([]int{9000}, 10)...), []int{7, 3}},
	} {
		t.Run(c.name, func(t *testing.T) {
			checkRuns(t, c.specs, c.want)
		})
	}
}

func checkRuns(t *testing.T, specs []spec, want []int) {
	t.Helper()
	packets := pack(specs)
	runs := coalesce(NewCoalescer(allOffloads), packets)
	var got []int
	var out [][]byte
	for i := range runs {
		got = append(got, len(runs[i].Pieces))
		out = append(out, cutRun(t, &runs[i])...)
	}
	if !slices.Equal(got, want) {
		t.Fatalf("runs of %v segments, want %v", got, want)
	}
	checkFlows(t, packets, out)
}

// checkFlows compares what went in with what came out, flow by flow, in order.
func checkFlows(t *testing.T, in, out [][]byte) {
	t.Helper()
	if len(in) != len(out) {
		t.Fatalf("%d packets in, %d out", len(in), len(out))
	}
	flows := func(packets [][]byte) map[string][][]byte {
		m := map[string][][]byte{}
		for _, p := range packets {
			transport, _ := ip.FindTransport(p)
			key := fmt.Sprintf("%x %d", ip.Addresses(p), transport.Protocol)
			if !transport.Fragment && len(p) >= transport.Offset+4 {
				key = fmt.Sprintf("%s %x", key, p[transport.Offset:transport.Offset+4])
			}
			m[key] = append(m[key], p)
		}
		return m
	}
	want, got := flows(in), flows(out)
	for key, list := range want {
		if len(got[key]) != len(list) {
			t.Fatalf("flow %s: %d packets in, %d out", key, len(list), len(got[key]))
		}
		for i := range list {
			if !equivalent(list[i], got[key][i]) {
				t.Fatalf("flow %s: packet %d\nin  %x\nout %x", key, i, list[i], got[key][i])
			}
		}
	}
}

// A fragment may belong to any flow between its addresses, so nothing may pass it.
func TestCoalesceFragmentIsBarrier(t *testing.T) {
	udp := series(spec{udp: true}, 50, 50, 50)
	packets := pack(udp)
	fragment := spec{udp: true, fragment: true, payload: make([]byte, 50), sourcePort: 9}.bytes()
	checkRuns(t, []spec{udp[0], {udp: true, fragment: true, payload: make([]byte, 50)}, udp[1], udp[2]}, []int{1, 1, 2})
	runs := coalesce(NewCoalescer(allOffloads), [][]byte{packets[0], fragment, packets[1], packets[2]})
	if len(runs) != 3 {
		t.Errorf("%d runs, want 3", len(runs))
	}
}

func TestCoalesceCapabilities(t *testing.T) {
	var packets [][]byte
	for i := range 4 {
		packets = append(packets, pack(series(spec{six: i&1 != 0, udp: i&2 != 0}, 80, 80))...)
	}
	for _, c := range []struct {
		capabilities Capabilities
		runs         int
	}{
		{Capabilities{}, 8},
		{Capabilities{VNETHeader: true, TSO4: true}, 7},
		{Capabilities{VNETHeader: true, TSO4: true, TSO6: true}, 6},
		{allOffloads, 4},
	} {
		runs := coalesce(NewCoalescer(c.capabilities), packets)
		if len(runs) != c.runs {
			t.Errorf("%+v: %d runs, want %d", c.capabilities, len(runs), c.runs)
		}
		var out [][]byte
		for i := range runs {
			out = append(out, cutRun(t, &runs[i])...)
		}
		checkFlows(t, packets, out)
	}
}

// randomTraffic is some flows mixed, with what may and may not be joined.
func randomTraffic(random *rand.Rand, packets, flows int) [][]byte {
	state := make([]spec, flows)
	for i := range state {
		state[i] = spec{
			six: random.IntN(2) == 0, udp: random.IntN(2) == 0, df: random.IntN(2) == 0, flow: uint8(i),
			sourcePort: uint16(1 + random.IntN(3)), seq: random.Uint32(), id: uint16(random.Uint32()),
		}
	}
	var all [][]byte
	for range packets {
		s := &state[random.IntN(flows)]
		k := *s
		k.payload = randomBytes(random, []int{500, 500, 500, 500, 200, 0}[random.IntN(6)])
		switch random.IntN(40) {
		case 0:
			k.flags = ip.TCPFin
		case 1, 2:
			k.flags = ip.TCPPsh
		case 3:
			k.tos = 3
		case 4:
			k.fragment = true
		case 5:
			k.ipOptions = true
		case 6:
			k.zeroChecksum = k.udp
		case 7:
			s.ack++
		case 8:
			s.seq++
		case 9:
			k.badIPChecksum = !k.six
		}
		s.seq += uint32(len(k.payload))
		s.id++
		all = append(all, k.bytes())
	}
	return all
}

// With and without coalescing the same packets arrive, in the same order in each flow.
func TestCoalesceTraffic(t *testing.T) {
	random := rand.New(rand.NewPCG(11, 12))
	on, off := NewCoalescer(allOffloads), NewCoalescer(Capabilities{})
	joined := 0
	for i := range 60 {
		// The last rounds have more flows than the table takes.
		packets := randomTraffic(random, 200+i, []int{1, 2, 7, 255}[i%4])
		for _, c := range []*Coalescer{on, off} {
			runs := coalesce(c, packets)
			var out [][]byte
			for i := range runs {
				joined += len(runs[i].Pieces) - 1
				out = append(out, cutRun(t, &runs[i])...)
			}
			checkFlows(t, packets, out)
		}
	}
	if joined < 1000 {
		t.Errorf("only %d packets joined", joined)
	}
}

// Runs of more flows than there are slots stay correct, and the coalescer recovers with Reset.
func TestCoalesceManyFlows(t *testing.T) {
	c := NewCoalescer(allOffloads)
	var packets [][]byte
	for round := range 3 {
		for port := range 600 {
			packets = append(packets, spec{sourcePort: uint16(port + 1), df: true, seq: uint32(round), payload: []byte{1}}.bytes())
		}
	}
	runs := coalesce(c, packets)
	var out [][]byte
	for i := range runs {
		out = append(out, cutRun(t, &runs[i])...)
	}
	checkFlows(t, packets, out)
	if len(runs) < 600 || len(runs) > 3*600-2*flowSlots/2 {
		t.Errorf("%d runs of 600 flows", len(runs))
	}
	if runs := coalesce(c, pack(series(spec{}, 9, 9))); len(runs) != 1 {
		t.Errorf("%d runs after Reset, want 1", len(runs))
	}
}

// Runs may be asked for in between.
func TestCoalesceRunsTwice(t *testing.T) {
	packets := pack(series(spec{}, 9, 9, 9))
	c := NewCoalescer(allOffloads)
	c.Add(bytes.Clone(packets[0]))
	c.Add(bytes.Clone(packets[1]))
	c.Runs()
	c.Add(bytes.Clone(packets[2]))
	runs := c.Runs()
	if len(runs) != 1 || c.Len() != 3 {
		t.Fatalf("%d runs of %d packets", len(runs), c.Len())
	}
	checkFlows(t, packets, cutRun(t, &runs[0]))
}

func TestCoalesceGeneration(t *testing.T) {
	c := NewCoalescer(allOffloads)
	coalesce(c, pack(series(spec{}, 9)))
	c.generation = 0xffffffff
	coalesce(c, pack(series(spec{}, 9)))
	if runs := coalesce(c, pack(series(spec{}, 9, 9))); len(runs) != 1 {
		t.Errorf("%d runs after the generation wrapped", len(runs))
	}
}

func TestCoalesceTruncations(t *testing.T) {
	c := NewCoalescer(allOffloads)
	for _, s := range []spec{{payload: []byte("abc")}, {six: true, payload: []byte("abc")}, {udp: true}, {udp: true, six: true}} {
		whole := s.bytes()
		for n := 20; n < len(whole); n++ {
			// As the tunnel's other end might send it: shorter, but with a length that says so.
			p := bytes.Clone(whole[:n])
			if s.six {
				if n < 40 {
					continue
				}
				ip.IPv6(p).SetPayloadLen(n - 40)
			} else {
				ip.IPv4(p).SetTotalLen(n)
				ip.IPv4(p).SetChecksum()
			}
			runs := coalesce(c, [][]byte{p, p})
			for i := range runs {
				if got := slices.Concat(runs[i].Pieces...); runs[i].Type == GSONone && !bytes.Equal(got, p) {
					t.Fatalf("packet of %d bytes changed", n)
				}
			}
		}
	}
}

func TestCoalesceAllocations(t *testing.T) {
	packets := randomTraffic(rand.New(rand.NewPCG(13, 14)), 300, 20)
	c := NewCoalescer(allOffloads)
	work := func() {
		c.Reset()
		for _, p := range packets {
			c.Add(p)
		}
		c.Runs()
	}
	work()
	// Runs has changed headers, so these are other packets than before; the memory must do all the same.
	if n := testing.AllocsPerRun(100, work); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzCoalesce builds a batch of packets from the input and compares cut runs with it.
func FuzzCoalesce(f *testing.F) {
	for i := range 4 {
		s := spec{six: i&1 != 0, udp: i&2 != 0}
		f.Add(slices.Concat(pack(series(s, 5, 5, 3))...), uint8(10), uint8(3))
	}
	f.Fuzz(func(t *testing.T, data []byte, at, xor uint8) {
		var packets [][]byte
		for len(data) > 0 && len(packets) < 100 {
			n, ok := ip.Length(data)
			if !ok {
				break
			}
			packets = append(packets, data[:n:n])
			// And again with one byte of the header changed.
			again := bytes.Clone(data[:n])
			again[int(at)%n] ^= xor
			if m, ok := ip.Length(again); ok && m == n {
				packets = append(packets, again)
			}
			data = data[n:]
		}
		runs := coalesce(NewCoalescer(allOffloads), packets)
		var pieces int
		for i := range runs {
			pieces += len(runs[i].Pieces)
			if runs[i].Type != GSONone {
				cutRun(t, &runs[i])
			}
		}
		if pieces != len(packets) {
			t.Fatalf("%d packets in, %d out", len(packets), pieces)
		}
	})
}

func BenchmarkAdd(b *testing.B) {
	for _, c := range []struct {
		name        string
		size, flows int
		udp, six    bool
	}{
		{"tcp 1 flow", 1400, 1, false, false}, {"tcp6 1 flow", 1400, 1, false, true},
		{"tcp 16 flows", 1400, 16, false, false}, {"udp 1 flow", 100, 1, true, false},
	} {
		b.Run(c.name, func(b *testing.B) {
			var packets [][]byte
			for i := range 256 {
				packets = append(packets, spec{
					udp: c.udp, six: c.six, df: true, flow: uint8(i % c.flows), seq: uint32(i / c.flows * c.size), payload: make([]byte, c.size),
				}.bytes())
			}
			co := NewCoalescer(allOffloads)
			b.SetBytes(int64(c.size))
			i := 0
			for b.Loop() {
				if i == len(packets) {
					co.Runs()
					co.Reset()
					i = 0
				}
				co.Add(packets[i])
				i++
			}
		})
	}
}
