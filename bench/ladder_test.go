package bench

import (
	"encoding/binary"
	"net/netip"
	"testing"

	"github.com/sluice-vpn/sluice/bench/lab"
	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/crypto/aead"
	"github.com/sluice-vpn/sluice/tun"
	"github.com/sluice-vpn/sluice/tun/ip"
)

func TestMain(m *testing.M) { lab.Main(m) }

// A superpacket of the ladder: 45 TCP segments of an inner MTU of 1420, which sealed are the most that one UDP_SEGMENT run
// takes (45 x 1452 <= 65507).
const (
	mtu      = 1420
	segments = 45
	payload  = mtu - ip.IPv4HeaderLen - ip.TCPHeaderLen
	sealed   = crypto.SizeTransportHeader + mtu + aead.Overhead
)

// sink keeps the compiler from dropping what a benchmark computes.
var sink int

// superpacket is what a kernel with TSO hands over: one header, the payload of all segments, no complete checksum.
func superpacket() tun.Superpacket {
	b := make([]byte, mtu-payload+segments*payload)
	copy(b, []byte{0x45, 0, 0, 0, 0, 1, 0x40, 0, 64, ip.ProtocolTCP})
	from, to := netip.MustParseAddr("10.0.0.1").As4(), netip.MustParseAddr("10.0.0.2").As4()
	copy(b[12:], from[:])
	copy(b[16:], to[:])
	ip.IPv4(b).SetTotalLen(len(b))
	ip.IPv4(b).SetChecksum()
	tcp := ip.TCP(b[ip.IPv4HeaderLen:])
	binary.BigEndian.PutUint32(tcp, 1000<<16|2000)
	tcp[12] = 5 << 4
	tcp.SetFlags(ip.TCPAck)
	tcp.SetChecksum(ip.PseudoSum(b, ip.ProtocolTCP, len(tcp)))
	return tun.Superpacket{Data: b, Offload: tun.Offload{
		Type: tun.GSOTCPv4, NeedsChecksum: true, ChecksumStart: ip.IPv4HeaderLen, ChecksumOffset: 16,
		HeaderLen: mtu - payload, SegmentSize: payload,
	}}
}

// cutInto cuts the superpacket into buffers of size bytes, offset bytes into each.
func cutInto(tb testing.TB, size, offset int) [][]byte {
	var s tun.Segmenter
	p := superpacket()
	if err := s.Init(&p); err != nil || s.Count() != segments {
		tb.Fatal(err, s.Count())
	}
	list := make([][]byte, segments)
	for k := range list {
		list[k] = make([]byte, size)
		s.Cut(k, list[k][offset:])
	}
	return list
}

// perPacket runs f, which handles one superpacket's segments, until b.N packets are done.
func perPacket(b *testing.B, f func()) {
	b.SetBytes(mtu)
	b.ReportAllocs()
	b.ResetTimer()
	for done := 0; done < b.N; done += segments {
		f()
	}
}

func BenchmarkLadder(b *testing.B) {
	b.Run("1-copy", func(b *testing.B) {
		src, dst := make([]byte, segments*mtu), make([]byte, segments*mtu)
		perPacket(b, func() {
			for k := range segments {
				sink += copy(dst[k*mtu:(k+1)*mtu], src[k*mtu:])
			}
		})
	})
	b.Run("2-checksum", func(b *testing.B) {
		src := make([]byte, segments*mtu)
		perPacket(b, func() {
			for k := range segments {
				sink += int(ip.Sum(src[k*mtu:(k+1)*mtu], 0))
			}
		})
	})
	b.Run("3-segment", benchmarkSegment)
	b.Run("4-seal", func(b *testing.B) { benchmarkSeal(b, false) })
	b.Run("5-open", func(b *testing.B) { benchmarkSeal(b, true) })
	b.Run("6-coalesce", benchmarkCoalesce)
}

func benchmarkSegment(b *testing.B) {
	var s tun.Segmenter
	p := superpacket()
	dst := make([]byte, segments*sealed)
	perPacket(b, func() {
		if s.Init(&p) != nil {
			b.Fatal("superpacket refused")
		}
		for k := range segments {
			sink += s.Cut(k, dst[k*sealed+crypto.SizeTransportHeader:])
		}
	})
}

func benchmarkSeal(b *testing.B, open bool) {
	c := aead.New(&[aead.KeySize]byte{1})
	run := make([]aead.Packet, segments)
	for k, msg := range cutInto(b, mtu+aead.Overhead, 0) {
		run[k] = aead.Packet{Dst: msg, Src: msg[:mtu], Counter: uint64(k)}
	}
	if !open {
		perPacket(b, func() { c.Seal(run) })
		return
	}
	c.Seal(run)
	for k := range run {
		run[k] = aead.Packet{Dst: make([]byte, mtu), Src: run[k].Dst, Counter: uint64(k)}
	}
	perPacket(b, func() {
		if c.Open(run) != segments {
			b.Fatal("a packet did not open")
		}
	})
}

func benchmarkCoalesce(b *testing.B) {
	packets := cutInto(b, mtu, 0)
	var header [mtu - payload]byte
	copy(header[:], packets[0])
	c := tun.NewCoalescer(tun.Capabilities{VNETHeader: true, TSO4: true})
	perPacket(b, func() {
		copy(packets[0], header[:]) // Runs stamps it
		for _, p := range packets {
			c.Add(p)
		}
		if n := len(c.Runs()); n != 1 {
			b.Fatalf("%d runs, want 1", n)
		}
		c.Reset()
	})
}
