package udp

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
)

var (
	addr4 = netip.MustParseAddr("192.0.2.7")
	addr6 = netip.MustParseAddr("2001:db8::7")
)

// rawControl makes one control message as the kernel does.
func rawControl(level, kind uint32, data []byte) []byte {
	return alignControl(append(appendControlHeader(nil, level, kind, len(data)), data...))
}

func int32Bytes(v int32) []byte { return binary.NativeEndian.AppendUint32(nil, uint32(v)) }

func TestAppendControl(t *testing.T) {
	pktinfo4 := append(append(int32Bytes(3), 192, 0, 2, 7), 0, 0, 0, 0)
	a6 := addr6.As16()
	tests := []struct {
		name string
		f    family
		out  outgoing
		want []byte
	}{
		{"nothing", v4, outgoing{}, nil},
		{"tos", v4, outgoing{tos: 0x88}, rawControl(levelIP, typeIPTOS, int32Bytes(0x88))},
		{"traffic class", v6, outgoing{tos: 3}, rawControl(levelIPv6, typeIPv6Tclass, int32Bytes(3))},
		{"ttl", v4, outgoing{ttl: 56}, rawControl(levelIP, typeIPTTL, int32Bytes(56))},
		{"hop limit", v6, outgoing{ttl: 48}, rawControl(levelIPv6, typeIPv6HopLimit, int32Bytes(48))},
		{"segments", v4, outgoing{segmentSize: 1452}, rawControl(levelUDP, typeUDPSegment, binary.NativeEndian.AppendUint16(nil, 1452))},
		{"source", v4, outgoing{src: addr4, ifIndex: 3}, rawControl(levelIP, typeIPPktinfo, pktinfo4)},
		{"interface alone", v4, outgoing{ifIndex: 9}, rawControl(levelIP, typeIPPktinfo, append(int32Bytes(9), make([]byte, 8)...))},
		{"source v6", v6, outgoing{src: addr6}, rawControl(levelIPv6, typeIPv6Pktinfo, append(a6[:], 0, 0, 0, 0))},
		{"source of the other family", v4, outgoing{src: addr6, ifIndex: 1}, nil},
		{"source of the other family", v6, outgoing{src: addr4, ifIndex: 1}, nil},
		{"all", v6, outgoing{src: addr6, tos: 1, segmentSize: 5}, slices.Concat(
			rawControl(levelIPv6, typeIPv6Pktinfo, append(a6[:], 0, 0, 0, 0)),
			rawControl(levelIPv6, typeIPv6Tclass, int32Bytes(1)),
			rawControl(levelUDP, typeUDPSegment, binary.NativeEndian.AppendUint16(nil, 5)))},
	}
	for _, test := range tests {
		got := appendControl(make([]byte, 0, sendControlSize), test.f, test.out)
		if !slices.Equal(got, test.want) {
			t.Errorf("%s: got % x\nwant % x", test.name, got, test.want)
		}
		if len(got)%wordSize != 0 || len(got) > sendControlSize {
			t.Errorf("%s: %d bytes", test.name, len(got))
		}
	}
}

func TestAppendControlFitsItsArray(t *testing.T) {
	var room [sendControlSize]byte
	all := outgoing{src: addr6, ifIndex: 1, tos: 1, ttl: 1, segmentSize: 1}
	if got := appendControl(room[:0], v6, all); &got[0] != &room[0] {
		t.Fatalf("%d bytes do not fit the array of %d", len(got), len(room))
	}
}

// arrivedAt is the time in receivedControl, in nanoseconds.
const arrivedAt = 1_700_000_000_123_456_789

// receivedControl is what Linux attaches to a joined run with every option on.
func receivedControl(f family) []byte {
	native := binary.NativeEndian
	stamp := rawControl(levelSocket, typeTimestamp, native.AppendUint64(native.AppendUint64(nil, arrivedAt/1_000_000_000), arrivedAt%1_000_000_000))
	gro := rawControl(levelUDP, typeUDPGRO, int32Bytes(1452))
	if f == v4 {
		return slices.Concat(stamp,
			rawControl(levelIP, typeIPPktinfo, append(append(int32Bytes(4), 10, 0, 0, 9), 192, 0, 2, 7)),
			rawControl(levelIP, typeIPTOS, []byte{0x2}), gro)
	}
	a := addr6.As16()
	return slices.Concat(stamp,
		rawControl(levelIPv6, typeIPv6Pktinfo, append(a[:], int32Bytes(4)...)),
		rawControl(levelIPv6, typeIPv6Tclass, int32Bytes(2)), gro)
}

func TestParseControl(t *testing.T) {
	unknown := rawControl(1, 37, make([]byte, 5)) // SCM_TIMESTAMPING_OPT_STATS or whatever else may be there
	for _, test := range []struct {
		f   family
		dst netip.Addr
	}{{v4, addr4}, {v6, addr6}} {
		want := incoming{dst: test.dst, ifIndex: 4, segmentSize: 1452, tos: 2, arrived: arrivedAt}
		if got := parseControl(slices.Concat(unknown, receivedControl(test.f))); got != want {
			t.Errorf("family %d: got %+v, want %+v", test.f, got, want)
		}
	}
	if got := parseControl(rawControl(levelUDP, typeUDPGRO, int32Bytes(-1))); got.segmentSize != 0 {
		t.Errorf("a negative segment size became %d", got.segmentSize)
	}
}

// What is asked for fits into what a receive call gets.
func TestReceivedControlFits(t *testing.T) {
	for _, f := range []family{v4, v6} {
		if got := len(receivedControl(f)); got > receiveControlSize-receiveSpareSize/2 {
			t.Errorf("family %d: %d bytes of %d", f, got, receiveControlSize)
		}
	}
}

func TestParseControlTruncated(t *testing.T) {
	for _, f := range []family{v4, v6} {
		b := receivedControl(f)
		whole := parseControl(b)
		for n := range b {
			got := parseControl(b[:n:n])
			if got.arrived != 0 && got.arrived != whole.arrived || got.dst.IsValid() && got.dst != whole.dst || got.segmentSize != 0 && got.segmentSize != whole.segmentSize {
				t.Fatalf("family %d cut at %d: got %+v", f, n, got)
			}
		}
		if got := parseControl(b[:controlHeader]); got != (incoming{}) {
			t.Errorf("a header without data gave %+v", got)
		}
	}
}

func FuzzParseControl(f *testing.F) {
	f.Add(receivedControl(v4))
	f.Add(receivedControl(v6))
	f.Add(receivedControl(v6)[:controlHeader+3])
	f.Add(rawControl(levelIP, typeIPTOS, nil))
	long := receivedControl(v4)
	binary.NativeEndian.PutUint32(long, 0xfffffff9)
	f.Add(long)
	f.Fuzz(func(t *testing.T, b []byte) {
		in := parseControl(b)
		if in.segmentSize < 0 {
			t.Fatalf("segment size %d", in.segmentSize)
		}
		if in.dst.Is4In6() {
			t.Fatalf("destination %v is mapped", in.dst)
		}
	})
}

// FuzzControlRoundTrip: what is sent as IPv6 PKTINFO and TOS reads back the same. (In IPv4 a source stands in another field
// than a received destination.)
func FuzzControlRoundTrip(f *testing.F) {
	f.Add([]byte{0x20, 0x01, 0x0d, 0xb8, 15: 7}, uint16(2), uint8(1))
	f.Add([]byte{}, uint16(0), uint8(0))
	f.Fuzz(func(t *testing.T, raw []byte, ifIndex uint16, tos uint8) {
		var a [16]byte
		copy(a[:], raw)
		src := netip.AddrFrom16(a)
		if src.Is4In6() {
			return // never a source on an IPv6-only socket
		}
		in := parseControl(appendControl(nil, v6, outgoing{src: src, ifIndex: int(ifIndex), tos: tos}))
		if want := (incoming{dst: src, ifIndex: int(ifIndex), tos: tos}); in != want {
			t.Fatalf("got %+v, want %+v", in, want)
		}
	})
}
