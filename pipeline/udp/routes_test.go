package udp

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"
)

// TestSourceHolds: a source is kept where its route leads to the interface that the peer's datagram came by, also where the
// kernel names that interface in two ways.
func TestSourceHolds(t *testing.T) {
	const arrived, other, loopback, vrf = 2, 3, 1, 9
	type answer struct {
		ifIndex    int
		routed, ok bool
	}
	src, dst := netip.MustParseAddr("192.0.2.1"), netip.MustParseAddrPort("198.51.100.1:9")
	linkLocal := netip.MustParseAddrPort("[fe80::1%2]:9")
	for _, c := range []struct {
		name        string
		run         Run
		answer      answer // to the question with the source
		bound       answer // to that without it, bound to the interface
		wantIfIndex int    // that the first question is bound to
		want        bool
	}{
		{"no source", Run{Dst: dst}, answer{}, answer{}, 0, true},
		{"no interface", Run{Dst: dst, Src: src}, answer{}, answer{}, 0, true},
		{"where it came by", Run{Dst: dst, Src: src, IfIndex: arrived}, answer{arrived, true, true}, answer{}, 0, true},
		{"elsewhere", Run{Dst: dst, Src: src, IfIndex: arrived}, answer{other, true, true}, answer{arrived, true, true}, 0, false},
		{"elsewhere, and no route there", Run{Dst: dst, Src: src, IfIndex: arrived}, answer{other, true, true}, answer{0, false, true}, 0, false},
		{"no route, or not ours", Run{Dst: dst, Src: src, IfIndex: arrived}, answer{0, false, true}, answer{}, 0, false},
		{"a VRF", Run{Dst: dst, Src: src, IfIndex: vrf}, answer{arrived, true, true}, answer{arrived, true, true}, 0, true},
		{"not of that VRF", Run{Dst: dst, Src: src, IfIndex: vrf}, answer{other, true, true}, answer{arrived, true, true}, 0, false},
		{"this host", Run{Dst: dst, Src: src, IfIndex: arrived}, answer{loopback, true, true}, answer{loopback, true, true}, 0, true},
		{"nobody says", Run{Dst: dst, Src: src, IfIndex: arrived}, answer{}, answer{}, 0, true},
		{"nobody says the rest", Run{Dst: dst, Src: src, IfIndex: arrived}, answer{other, true, true}, answer{}, 0, true},
		{"link-local", Run{Dst: linkLocal, Src: netip.MustParseAddr("fe80::2"), IfIndex: arrived}, answer{arrived, true, true}, answer{}, arrived, true},
	} {
		asked := 0
		got := sourceHolds(&c.run, routeQuestion{port: 7, mark: 8}, func(q routeQuestion) (int, bool, bool) {
			a, want := c.answer, routeQuestion{dst: c.run.Dst, src: c.run.Src, port: 7, mark: 8, ifIndex: c.wantIfIndex}
			if asked++; asked == 2 {
				a, want.src, want.ifIndex = c.bound, netip.Addr{}, c.run.IfIndex
			}
			if q != want {
				t.Errorf("%s: question %d is %+v, want %+v", c.name, asked, q, want)
			}
			return a.ifIndex, a.routed, a.ok
		})
		if got != c.want {
			t.Errorf("%s: the source is kept: %v, want %v", c.name, got, c.want)
		}
	}
}

// TestRouteRequest: the fields are where the kernel reads them, and room for the longest was reckoned.
func TestRouteRequest(t *testing.T) {
	for _, q := range []routeQuestion{
		{dst: netip.MustParseAddrPort("198.51.100.1:258"), src: netip.MustParseAddr("192.0.2.1"), port: 772},
		{dst: netip.MustParseAddrPort("[2001:db8::1]:258"), src: netip.MustParseAddr("2001:db8::2"), port: 772, mark: 5, ifIndex: 6},
		{dst: netip.MustParseAddrPort("[fe80::1%3]:258"), port: 772, ifIndex: 3},
	} {
		b := appendRouteRequest(nil, 42, q)
		native := binary.NativeEndian
		if len(b) > routeRequestSize || int(native.Uint32(b)) != len(b) || len(b)%4 != 0 || native.Uint32(b[8:]) != 42 {
			t.Errorf("%+v: %d bytes, header % x", q, len(b), b[:netlinkHeader])
		}
		family, bits := byte(2), byte(32)
		if q.dst.Addr().Is6() {
			family, bits = 10, 128
		}
		want := map[uint16][]byte{
			attrDst: q.dst.Addr().AsSlice(), attrProtocol: {17}, attrSport: {3, 4}, attrDport: {1, 2},
		}
		header := []byte{family, bits, 0, 0}
		if q.src.IsValid() {
			want[attrSrc], header[2] = q.src.AsSlice(), bits
		}
		if q.mark != 0 {
			want[attrMark] = native.AppendUint32(nil, q.mark)
		}
		if q.ifIndex != 0 {
			want[attrOIF] = native.AppendUint32(nil, uint32(q.ifIndex))
		}
		if !slices.Equal(b[netlinkHeader:netlinkHeader+4], header) {
			t.Errorf("%+v: struct rtmsg begins with % x, want % x", q, b[netlinkHeader:netlinkHeader+4], header)
		}
		got := 0
		for b = b[netlinkHeader+routeHeader:]; len(b) > 0; got++ {
			size, kind := native.Uint16(b), native.Uint16(b[2:])
			if value := b[attrHeader:size]; !slices.Equal(value, want[kind]) {
				t.Errorf("%+v: attribute %d is % x, want % x", q, kind, value, want[kind])
			}
			b = b[(size+3)&^3:]
		}
		if got != len(want) {
			t.Errorf("%+v: %d attributes, want %d", q, got, len(want))
		}
	}
}

// TestRouteAnswer: answers, and what is none: another one's, cut anywhere, or without an interface.
func TestRouteAnswer(t *testing.T) {
	native := binary.NativeEndian
	message := func(kind uint16, sequence uint32, body []byte) []byte {
		b := make([]byte, netlinkHeader)
		native.PutUint32(b, uint32(netlinkHeader+len(body)))
		native.PutUint16(b[4:], kind)
		native.PutUint32(b[8:], sequence)
		return append(b, body...)
	}
	route := appendRouteAttr(make([]byte, routeHeader), attrSrc, []byte{1, 2, 3, 4, 5})
	without := message(newRoute, 7, route)
	whole := message(newRoute, 7, appendRouteAttr(route, attrOIF, native.AppendUint32(nil, 12)))
	refusal := message(netlinkError, 7, append(native.AppendUint32(nil, 1<<32-101), 0, 0, 0, 0))
	for _, c := range []struct {
		name    string
		b       []byte
		ifIndex int
		errno   uint32
		ok      bool
	}{
		{"a route", whole, 12, 0, true},
		{"unreachable", refusal, 0, 101, true},
		{"no error", message(netlinkError, 7, make([]byte, 4)), 0, 0, false},
		{"no interface", without, 0, 0, false},
		{"another question's", message(newRoute, 6, whole[netlinkHeader:]), 0, 0, false},
		{"another kind", message(newRoute+1, 7, whole[netlinkHeader:]), 0, 0, false},
		{"nothing", nil, 0, 0, false},
	} {
		ifIndex, errno, ok := parseRouteAnswer(c.b, 7)
		if ifIndex != c.ifIndex || errno != c.errno || ok != c.ok {
			t.Errorf("%s: %d, %d, %v, want %d, %d, %v", c.name, ifIndex, errno, ok, c.ifIndex, c.errno, c.ok)
		}
	}
	for n := range whole {
		if _, _, ok := parseRouteAnswer(whole[:n], 7); ok {
			t.Errorf("%d of %d bytes were taken for an answer", n, len(whole))
		}
	}
	for n := range len(whole) { // lies about lengths
		b := slices.Clone(whole)
		b[n] = 0xff
		parseRouteAnswer(b, 7)
	}
}
