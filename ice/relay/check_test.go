package relay

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"net/netip"
	"slices"
	"testing"

	"github.com/pion/stun/v4"
)

// rfc5769 is the sample request of RFC 5769 section 2.1; its padding is spaces.
const rfc5769 = "000100582112a442b7e7a701bc34d686fa87dfae" +
	"802200105354554e207465737420636c69656e74" + "002400046e0001ff" + "80290008932ff9b151263b36" +
	"000600096576746a3a68367659202020" + "000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a2" + "80280004e57a3bcf"

func sample(t testing.TB) []byte {
	t.Helper()
	b, err := hex.DecodeString(rfc5769)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestCheckSample(t *testing.T) {
	b := sample(t)
	m, ok := checkMessage(b)
	if !ok || m.method != methodBinding || m.class != classRequest || !m.integrity {
		t.Fatalf("%+v %v", m, ok)
	}
	for n := range len(b) {
		if _, ok := checkMessage(b[:n]); ok {
			t.Errorf("the first %d bytes pass", n)
		}
	}
	for i := range b[20:] { // a fingerprint covers everything
		b[20+i] ^= 0x01
		if _, ok := checkMessage(b); ok {
			t.Errorf("byte %d changed: passes", 20+i)
		}
		b[20+i] ^= 0x01
	}
}

func TestCheckTable(t *testing.T) {
	id := newID()
	message := func(attrs ...attr) []byte { return plain(methodAllocate, classRequest, id, attrs...) }
	edit := func(b []byte, f func([]byte) []byte) []byte { return f(append([]byte{}, b...)) }
	good := message(udpTransport)
	address := func(kind uint16, family byte, n int) []byte {
		return message(attr{kind, append([]byte{0, family}, make([]byte, n-2)...)})
	}
	fingerprint := func(b []byte) []byte {
		b = appendAttr(b, attrFingerprint, make([]byte, 4))
		binary.BigEndian.PutUint32(b[len(b)-4:], crc32.ChecksumIEEE(b[:len(b)-8])^fingerprintXOR)
		return b
	}
	integrity := attr{attrIntegrity, make([]byte, 20)}
	for name, c := range map[string]struct {
		b    []byte
		want bool
	}{
		"good":                   {good, true},
		"header only":            {message(), true},
		"nothing":                {nil, false},
		"first bits":             {edit(good, func(b []byte) []byte { b[0] |= 0x80; return b }), false},
		"cookie":                 {edit(good, func(b []byte) []byte { b[5]++; return b }), false},
		"one byte more":          {append(good[:len(good):len(good)], 0), false},
		"four bytes more":        {append(good[:len(good):len(good)], 0, 0, 0, 0), false},
		"length too long":        {edit(good, func(b []byte) []byte { b[3] += 4; return b }), false},
		"attribute too long":     {edit(good, func(b []byte) []byte { b[23] = 5; return b }), false},
		"attribute to 65535":     {edit(good, func(b []byte) []byte { b[22], b[23] = 0xff, 0xff; return b }), false},
		"peer empty":             {message(attr{attrXORPeer, nil}), false},
		"peer of 1":              {message(attr{attrXORPeer, []byte{0}}), false},
		"peer of 4":              {message(attr{attrXORPeer, []byte{0, 1, 0, 0}}), false},
		"peer IPv4":              {address(attrXORPeer, familyIPv4, 8), true},
		"peer IPv6":              {address(attrXORPeer, familyIPv6, 20), true},
		"peer IPv6 of 8":         {address(attrXORPeer, familyIPv6, 8), false},
		"peer IPv4 of 20":        {address(attrXORPeer, familyIPv4, 20), false},
		"peer of no family":      {address(attrXORPeer, 3, 8), false},
		"mapped empty":           {message(attr{attrXORMapped, nil}), false},
		"relayed empty":          {message(attr{attrXORRelayed, nil}), false},
		"plain mapped of 7":      {address(attrMappedAddress, familyIPv4, 7), false},
		"alternate server empty": {message(attr{attrAlternateServer, nil}), false},
		"channel of 2":           {message(attr{attrChannelNumber, []byte{0x40, 0}}), false},
		"lifetime of 8":          {message(attr{attrLifetime, make([]byte, 8)}), false},
		"transport empty":        {message(attr{attrRequestedTransport, nil}), false},
		"integrity of 19":        {message(attr{attrIntegrity, make([]byte, 19)}), false},
		"integrity":              {message(integrity), true},
		"after integrity":        {message(integrity, udpTransport), false},
		"two integrities":        {message(integrity, integrity), false},
		"fingerprint":            {fingerprint(message(integrity)), true},
		"fingerprint not last":   {appendAttr(fingerprint(message()), attrSoftware, nil), false},
		"fingerprint wrong":      {message(attr{attrFingerprint, make([]byte, 4)}), false},
		"username of 508":        {message(attr{attrUsername, make([]byte, 508)}), true},
		"username of 509":        {message(attr{attrUsername, make([]byte, 509)}), false},
		"64 attributes":          {message(make([]attr, 64)...), true},
		"65 attributes":          {message(make([]attr, 65)...), false},
		"2048 bytes":             {message(attr{attrData, make([]byte, 2024)}), true},
		"2052 bytes":             {message(attr{attrData, make([]byte, 2028)}), false},
		"unknown attribute":      {message(attr{0x7abc, []byte("x")}), true},
	} {
		if _, ok := checkMessage(c.b); ok != c.want {
			t.Errorf("%s: %v, want %v", name, ok, c.want)
		}
	}
}

func TestTypes(t *testing.T) {
	for method := range 0x1000 {
		for class := range 4 {
			m, c := parseType(messageType(method, class))
			if m != method || c != class || messageType(method, class)&0xC000 != 0 {
				t.Fatalf("%#x %d: %#x %d", method, class, m, c)
			}
		}
	}
	if messageType(methodAllocate, classError) != 0x0113 {
		t.Errorf("Allocate error: %#x", messageType(methodAllocate, classError))
	}
}

func TestAddresses(t *testing.T) {
	id := newID()
	for _, s := range []string{"192.0.2.1:32853", "[2001:db8::1]:1", "[::ffff:10.0.0.1]:65535"} {
		want := netip.MustParseAddrPort(s)
		if got := xorAddress(xorValue(want, &id), &id); got != want {
			t.Errorf("%v came back as %v", want, got)
		}
	}
}

func TestChannelDataLength(t *testing.T) {
	good := channelData(0x4001, []byte("hello"))
	for n := range len(good) {
		if _, _, ok := parseChannelData(good[:n]); ok {
			t.Errorf("%d bytes of %d pass", n, len(good))
		}
	}
	if n, data, ok := parseChannelData(append(good, 0, 0, 0)); !ok || n != 0x4001 || string(data) != "hello" {
		t.Errorf("%#x %q %v", n, data, ok)
	}
	if _, _, ok := parseChannelData([]byte{0x40, 1, 0xff, 0xff, 1}); ok {
		t.Error("65535 bytes in one pass")
	}
}

func TestZeroPadding(t *testing.T) {
	b := plain(methodData, classIndication, newID(), attr{attrData, []byte("12345")}, attr{attrSoftware, []byte("x")})
	dirty := append([]byte{}, b...)
	copy(dirty[29:], "\xaa\xaa\xaa")
	copy(dirty[37:], "\xbb\xbb\xbb")
	zeroPadding(dirty)
	if !bytes.Equal(b, dirty) {
		t.Errorf("%x, want %x", dirty, b)
	}
}

func TestCheckAllocates(t *testing.T) {
	b := sample(t)
	if n := testing.AllocsPerRun(100, func() { checkMessage(b) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzCheck: what passes the strict check is a message for pion too, and none of pion's decoders panics on it or disagrees
// about what is in it.
func FuzzCheck(f *testing.F) {
	id := [12]byte{1, 2, 3}
	f.Add(sample(f))
	f.Add(plain(methodAllocate, classRequest, id, udpTransport))
	f.Add(plain(methodSend, classIndication, id, peerAttr(netip.MustParseAddrPort("192.0.2.1:9"), &id), attr{attrData, []byte("x")}))
	f.Add(plain(methodChannelBind, classRequest, id, channelAttr(0x4000), peerAttr(netip.MustParseAddrPort("[2001:db8::1]:9"), &id)))
	f.Add(plain(methodAllocate, classError, id, attr{attrErrorCode, []byte{0, 0, 4, 1}}, attr{attrUnknown, []byte{1, 2}}))
	f.Add(plain(methodBinding, classSuccess, id, attr{attrXORMapped, nil}))
	f.Fuzz(func(t *testing.T, b []byte) {
		m, ok := checkMessage(b)
		if !ok {
			return
		}
		p := &stun.Message{Raw: append([]byte{}, b...)}
		if err := p.Decode(); err != nil {
			t.Fatalf("pion does not decode what passes: %v", err)
		}
		if int(p.Type.Method) != m.method || int(p.Type.Class) != m.class || p.TransactionID != m.id ||
			p.Contains(stun.AttrMessageIntegrity) != m.integrity {
			t.Fatalf("pion reads %v, we %+v", p, m)
		}
		var a stun.XORMappedAddress
		if err := a.GetFromAs(p, stun.AttrXORPeerAddress); (err == nil) != m.peer.IsValid() {
			t.Fatalf("pion's peer %v %v, ours %v", a, err, m.peer)
		} else if err == nil {
			ip, _ := netip.AddrFromSlice(a.IP)
			if netip.AddrPortFrom(ip, uint16(a.Port)) != m.peer {
				t.Fatalf("pion's peer %v, ours %v", a, m.peer)
			}
		}
		var (
			mapped    stun.MappedAddress
			alternate stun.AlternateServer
			other     stun.OtherAddress
			origin    stun.ResponseOrigin
			code      stun.ErrorCodeAttribute
			unknown   stun.UnknownAttributes
			user      stun.Username
			nonce     stun.Nonce
			realm     stun.Realm
			software  stun.Software
		)
		for _, g := range []stun.Getter{&a, &mapped, &alternate, &other, &origin, &code, &unknown, &user, &nonce, &realm, &software} {
			_ = g.GetFrom(p) // no panic is all that is asked
		}
		_ = stun.MessageIntegrity("key").Check(p)
		_ = stun.Fingerprint.Check(p)
		_ = errorOf(b)
		zeroPadding(append([]byte{}, b...))
		_, _, _ = parseChannelData(b)
		withoutReason(nil, b)
	})
}

// FuzzCloseUp: whatever comes in a train of datagrams, what leaves is what each of them would have been by itself, in their order.
func FuzzCloseUp(f *testing.F) {
	var train []byte
	for _, text := range []string{"abc", "def", "gh", "ijk", "lmn", ""} {
		train = append(train, channelData(0x4001, []byte(text))...)
	}
	f.Add(train, uint16(7))
	f.Add(append(train, channelData(0x4002, []byte("opq"))...), uint16(7))
	f.Add(bytes.Repeat(append(channelData(0x4001, []byte("xy")), 0, 0), 3), uint16(8))
	f.Add([]byte{0x40, 1, 0, 0, 0x40, 1, 0, 0}, uint16(4))
	f.Add([]byte{0x40, 1, 0xff, 0xff, 0x40}, uint16(3))
	f.Fuzz(func(t *testing.T, b []byte, segment uint16) {
		step := max(int(segment), 1)
		type message struct {
			number uint16
			text   string
			bad    bool
		}
		var want, got []message
		for rest := b; len(rest) > 0; rest = rest[min(step, len(rest)):] {
			number, data, ok := parseChannelData(rest[:min(step, len(rest))])
			want = append(want, message{number, string(data), !ok})
		}
		for rest := append([]byte{}, b...); len(rest) > 0; {
			var r channelRun
			r, rest = closeUp(rest, step)
			if r.data == nil {
				got = append(got, message{bad: true})
				continue
			}
			for first := true; first || len(r.data) > 0; first = false {
				one := r.data[:min(r.size, len(r.data))]
				r.data = r.data[len(one):]
				got = append(got, message{number: r.number, text: string(one)})
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("%v, want %v", got, want)
		}
	})
}
