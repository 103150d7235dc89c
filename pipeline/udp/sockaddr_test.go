package udp

import (
	"net/netip"
	"testing"
)

func TestSockaddrRoundTrip(t *testing.T) {
	tests := []struct {
		f     family
		addr  string
		scope uint32
		size  int
	}{
		{v4, "192.0.2.7:51820", 0, sockaddrIn4Size},
		{v4, "0.0.0.0:1", 0, sockaddrIn4Size},
		{v4, "255.255.255.255:65535", 0, sockaddrIn4Size},
		{v6, "[2001:db8::7]:51820", 0, sockaddrIn6Size},
		{v6, "[fe80::1]:9", 4, sockaddrIn6Size},
		{v4, "[2001:db8::7]:1", 0, 0}, // the other family
		{v6, "192.0.2.7:1", 0, 0},
	}
	for _, test := range tests {
		addr := netip.MustParseAddrPort(test.addr)
		b := sockaddr{0: 0xff, 27: 0xff}
		size := encodeSockaddr(&b, test.f, addr, test.scope)
		if size != test.size {
			t.Errorf("%s for family %d: %d bytes, want %d", test.addr, test.f, size, test.size)
		}
		if size == 0 {
			continue
		}
		got, scope := parseSockaddr(b[:size])
		if got != addr || scope != test.scope {
			t.Errorf("%s scope %d read back as %v scope %d", test.addr, test.scope, got, scope)
		}
		for n := range size {
			if got, _ := parseSockaddr(b[:n:n]); got.IsValid() {
				t.Errorf("%s cut at %d gave %v", test.addr, n, got)
			}
		}
	}
}

func TestSockaddrUnmaps(t *testing.T) {
	var b sockaddr
	mapped := netip.MustParseAddrPort("[::ffff:192.0.2.7]:7")
	if n := encodeSockaddr(&b, v4, mapped, 0); n != sockaddrIn4Size {
		t.Fatalf("%d bytes", n)
	}
	if n := encodeSockaddr(&b, v6, mapped, 0); n != 0 {
		t.Fatalf("a mapped address was encoded for IPv6 in %d bytes", n)
	}
	a := mapped.Addr().As16()
	encodeSockaddr(&b, v6, netip.MustParseAddrPort("[::1]:7"), 0)
	copy(b[8:], a[:])
	b[24] = 3 // the interface of a link-local IPv6 address, which this is not
	if got, scope := parseSockaddr(b[:]); got != unmapped(mapped) || scope != 0 {
		t.Fatalf("got %v, scope %d", got, scope)
	}
}

func FuzzParseSockaddr(f *testing.F) {
	var b sockaddr
	n := encodeSockaddr(&b, v4, netip.MustParseAddrPort("192.0.2.7:51820"), 0)
	f.Add(append([]byte(nil), b[:n]...))
	n = encodeSockaddr(&b, v6, netip.MustParseAddrPort("[fe80::1]:9"), 4)
	f.Add(append([]byte(nil), b[:n]...))
	f.Fuzz(func(t *testing.T, raw []byte) {
		addr, scope := parseSockaddr(raw)
		if !addr.IsValid() {
			return
		}
		if addr.Addr().Is4In6() {
			t.Fatalf("%v is mapped", addr)
		}
		family := v4
		if addr.Addr().Is6() {
			family = v6
		}
		var again sockaddr
		size := encodeSockaddr(&again, family, addr, scope)
		if got, s := parseSockaddr(again[:size]); got != addr || s != scope {
			t.Fatalf("%v scope %d became %v scope %d", addr, scope, got, s)
		}
	})
}
