package tun

import (
	"bytes"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"sync"
	"testing"

	"github.com/sluice-vpn/sluice/tun/ip"
)

func cutAll(t *testing.T, p *Superpacket) [][]byte {
	t.Helper()
	var s Segmenter
	if err := s.Init(p); err != nil {
		t.Fatal(err)
	}
	var all [][]byte
	for k := range s.Count() {
		dst := bytes.Repeat([]byte{0xaa}, s.Len(k)+8)
		if n := s.Cut(k, dst); n != s.Len(k) || !bytes.Equal(dst[n:], bytes.Repeat([]byte{0xaa}, 8)) {
			t.Fatalf("segment %d: Cut = %d, Len = %d, or bytes behind it were written", k, n, s.Len(k))
		}
		all = append(all, dst[:s.Len(k)])
	}
	return all
}

func TestSegmenterTwin(t *testing.T) {
	random := rand.New(rand.NewPCG(5, 6))
	for i := range 300 {
		s := spec{
			six: i&1 != 0, udp: i&2 != 0, df: i&4 != 0, tos: uint8(random.Uint32()), id: uint16(random.Uint32()),
			seq: random.Uint32(), ack: random.Uint32(), window: uint16(random.Uint32()), flowLabel: random.Uint32() & 0xfffff,
			flags: uint8(random.Uint32()) &^ (ip.TCPSyn | ip.TCPRst), flow: uint8(i),
			payload: randomBytes(random, 1+random.IntN(20000)),
		}
		if !s.udp {
			s.options = randomBytes(random, 4*random.IntN(11))
			for o := s.options; len(o) > 0; o = o[4:] {
				o[0], o[1] = 254, 4
			}
		}
		size := 1 + random.IntN(3000)
		if i%10 == 0 {
			size = len(s.payload) // exactly one
		}
		got, want := cutAll(t, s.superpacket(size)), s.segments(size)
		if len(got) != len(want) {
			t.Fatalf("%+v: %d segments, want %d", s, len(got), len(want))
		}
		for k := range got {
			if !same(got[k], want[k]) {
				t.Fatalf("case %d, segment %d of %d\ngot  %x\nwant %x", i, k, len(got), got[k], want[k])
			}
		}
		verify(t, got[0])
		verify(t, got[len(got)-1])
	}
}

func TestSegmenterFlags(t *testing.T) {
	s := spec{flags: ip.TCPFin | ip.TCPPsh | ip.TCPCwr | ip.TCPEce, payload: make([]byte, 250), seq: 0xffffffff - 100, id: 0xffff}
	all := cutAll(t, s.superpacket(100))
	want := []uint8{
		ip.TCPAck | ip.TCPEce | ip.TCPCwr,
		ip.TCPAck | ip.TCPEce,
		ip.TCPAck | ip.TCPEce | ip.TCPFin | ip.TCPPsh,
	}
	for k, p := range all {
		tcp := ip.TCP(p[20:])
		if tcp.Flags() != want[k] {
			t.Errorf("segment %d: flags %#x, want %#x", k, tcp.Flags(), want[k])
		}
		if got, seq := binary.BigEndian.Uint32(tcp[4:]), s.seq+uint32(100*k); got != seq {
			t.Errorf("segment %d: sequence number %d, want %d", k, got, seq)
		}
		if id := uint16(0xffff + k); ip.IPv4(p).ID() != id {
			t.Errorf("segment %d: ID %d, want %d", k, ip.IPv4(p).ID(), id)
		}
	}
}

func TestSegmenterSingle(t *testing.T) {
	for _, s := range []spec{{payload: []byte("abc")}, {six: true, udp: true, payload: []byte("abcd")}} {
		want := s.bytes()
		if got := cutAll(t, &Superpacket{Data: want}); len(got) != 1 || !bytes.Equal(got[0], want) {
			t.Errorf("complete packet changed: %x", got)
		}
		if got := cutAll(t, s.superpacket(0)); len(got) != 1 || !bytes.Equal(got[0], want) {
			t.Errorf("checksum not completed: %x, want %x", got, want)
		}
	}
}

// A datagram whose sum comes out as zero must be sent with 0xffff: zero means no checksum (RFC 768).
func TestSegmenterZeroChecksum(t *testing.T) {
	s := spec{udp: true, payload: make([]byte, 4)}
	for v := range 0x10000 {
		binary.BigEndian.PutUint16(s.payload, uint16(v))
		p := s.superpacket(2)
		var g Segmenter
		if err := g.Init(p); err != nil {
			t.Fatal(err)
		}
		var dst [30]byte
		g.Cut(0, dst[:])
		if dst[26]|dst[27] == 0 {
			t.Fatalf("payload %x: checksum 0", s.payload)
		}
		if dst[26]&dst[27] == 0xff {
			return
		}
	}
	t.Fatal("no payload gave a sum of zero")
}

func TestSegmenterIPv6Extension(t *testing.T) {
	s := spec{six: true, payload: randomBytes(rand.New(rand.NewPCG(7, 8)), 500)}
	p := s.superpacket(200)
	// Destination options with six bytes of padding.
	extended := append(bytes.Clone(p.Data[:40]), ip.ProtocolTCP, 0, 1, 4, 0, 0, 0, 0)
	extended = append(extended, p.Data[40:]...)
	extended[6] = ip.ProtocolDestOptions
	binary.BigEndian.PutUint16(extended[4:], uint16(len(extended)-40))
	for k, got := range cutAll(t, &Superpacket{Data: extended, Offload: p.Offload}) {
		want := s.segments(200)[k]
		if !bytes.Equal(got[48:], want[40:]) {
			t.Errorf("segment %d: transport differs\ngot  %x\nwant %x", k, got[48:], want[40:])
		}
		if n, ok := ip.Length(got); !ok || n != len(got) {
			t.Errorf("segment %d: length %d, want %d", k, n, len(got))
		}
	}
}

func TestSegmenterMalformed(t *testing.T) {
	var g Segmenter
	for _, six := range []bool{false, true} {
		for _, udp := range []bool{false, true} {
			s := spec{six: six, udp: udp, payload: make([]byte, 100)}
			whole := s.superpacket(30)
			for n := range whole.Data {
				p := *whole
				p.Data = whole.Data[:n]
				if err := g.Init(&p); err != ErrMalformed || g.Count() != 0 {
					t.Fatalf("%+v cut to %d bytes: %v, %d segments", s, n, err, g.Count())
				}
			}
			for kind := GSONone; kind < GSOUDPv6+2; kind++ {
				p := *whole
				p.Type, p.SegmentSize = kind, 30
				if err := g.Init(&p); (err == nil) != (kind == s.gso() || kind == GSONone) {
					t.Errorf("six %v, udp %v as kind %d: %v", six, udp, kind, err)
				}
			}
			whole.SegmentSize = 0
			if g.Init(whole) != ErrMalformed {
				t.Error("segment size 0 accepted")
			}
		}
	}
	p := spec{}.superpacket(0)
	for _, o := range []Offload{
		{NeedsChecksum: true, ChecksumStart: 19}, {NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 19},
		{NeedsChecksum: true, ChecksumStart: 0xffff, ChecksumOffset: 0xffff},
	} {
		p.Offload = o
		if g.Init(p) != ErrMalformed {
			t.Errorf("%+v accepted", o)
		}
	}
}

// After Init several goroutines may cut.
func TestSegmenterShared(t *testing.T) {
	s := spec{payload: randomBytes(rand.New(rand.NewPCG(9, 10)), 50000)}
	want := s.segments(1000)
	var g Segmenter
	if err := g.Init(s.superpacket(1000)); err != nil {
		t.Fatal(err)
	}
	var wg sync.WaitGroup
	for part := range 4 {
		wg.Go(func() {
			dst := make([]byte, 2000)
			for k := part; k < g.Count(); k += 4 {
				if got := dst[:g.Cut(k, dst)]; !same(got, want[k]) {
					t.Errorf("segment %d differs", k)
				}
			}
		})
	}
	wg.Wait()
}

func TestSegmenterAllocations(t *testing.T) {
	p := spec{payload: make([]byte, 60000)}.superpacket(1400)
	var g Segmenter
	dst := make([]byte, 2000)
	if n := testing.AllocsPerRun(100, func() {
		if g.Init(p) != nil {
			panic("malformed")
		}
		for k := range g.Count() {
			g.Cut(k, dst)
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzSegmenter takes any bytes with any offload; whatever is accepted must come out as valid packets that carry the
// payload, each once and in order.
func FuzzSegmenter(f *testing.F) {
	for i := range 4 {
		s := spec{six: i&1 != 0, udp: i&2 != 0, payload: make([]byte, 100)}
		p := s.superpacket(40)
		f.Add(p.Data, uint8(p.Type), true, p.ChecksumStart, p.ChecksumOffset, p.SegmentSize)
	}
	f.Fuzz(func(t *testing.T, data []byte, kind uint8, needs bool, start, offset, size uint16) {
		p := &Superpacket{Data: data, Offload: Offload{
			Type: GSOType(kind), NeedsChecksum: needs, ChecksumStart: start, ChecksumOffset: offset, SegmentSize: size,
		}}
		var g Segmenter
		if g.Init(p) != nil {
			return
		}
		dst := make([]byte, MaxSuperpacket)
		var payload []byte
		for k := range g.Count() {
			got := dst[:g.Cut(k, dst)]
			if n, ok := ip.Length(got); !ok || n != len(got) {
				t.Fatalf("segment %d: length %d of %d", k, n, len(got))
			}
			if p.Type == GSONone {
				return
			}
			if got[0]>>4 == 4 && !ip.IPv4(got).ChecksumOK() {
				t.Fatalf("segment %d: header checksum", k)
			}
			transport, _ := ip.FindTransport(got)
			body := got[transport.Offset:]
			pseudo := ip.PseudoSum(got, transport.Protocol, len(body))
			if needs { // what stands in the field, but for the length
				at := transport.Offset + tcpChecksumOffset
				if transport.Protocol == ip.ProtocolUDP {
					at = transport.Offset + udpChecksumOffset
				}
				whole := len(data) - transport.Offset
				pseudo = ip.Add(ip.Add(binary.BigEndian.Uint16(data[at:]), ^uint16(whole)), uint16(len(body)))
			}
			if ip.Sum(body, pseudo) != 0xffff {
				t.Fatalf("segment %d: transport checksum", k)
			}
			payload = append(payload, got[g.HeaderLen():]...)
		}
		if !bytes.Equal(payload, data[g.HeaderLen():]) {
			t.Fatal("payload differs")
		}
	})
}

func BenchmarkCut(b *testing.B) {
	for _, size := range []int{100, 1400} {
		b.Run(fmt.Sprintf("%dB", size), func(b *testing.B) {
			p := spec{payload: make([]byte, 64000)}.superpacket(size)
			var g Segmenter
			if err := g.Init(p); err != nil {
				b.Fatal(err)
			}
			dst := make([]byte, 2000)
			b.SetBytes(int64(size))
			k := 0
			for b.Loop() {
				g.Cut(k, dst)
				if k++; k == g.Count()-1 {
					k = 0
				}
			}
		})
	}
}
