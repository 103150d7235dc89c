package frame

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"testing"
)

// "If the ChannelData message is received in a UDP datagram, and if the UDP datagram is too short to contain the claimed length
// of the ChannelData message [...], then the message is silently discarded" (RFC 8656, section 12.6); padding "MAY be included"
// (section 12.5).
func TestParseChannelData(t *testing.T) {
	cases := []struct {
		name    string
		b       []byte
		channel uint16
		payload string
		ok      bool
	}{
		{"nothing", nil, 0, "", false},
		{"first byte alone", []byte{0x40}, 0, "", false},
		{"one byte short of a header", []byte{0x40, 1, 0}, 0, "", false},
		{"empty", []byte{0x40, 1, 0, 0}, 0x4001, "", true},
		{"payload", []byte("\x4f\xff\x00\x03abc"), 0x4FFF, "abc", true},
		{"padding", []byte("\x40\x00\x00\x03abc\x00"), 0x4000, "abc", true},
		{"much padding", []byte("\x40\x00\x00\x01abc\x00\x00"), 0x4000, "a", true},
		{"one byte missing", []byte("\x40\x00\x00\x04abc"), 0, "", false},
		{"longest length", []byte("\x40\x00\xff\xffabc"), 0, "", false},
		{"below the channel numbers", []byte("\x3f\xff\x00\x01a"), 0, "", false},
		{"above them", []byte("\x50\x00\x00\x01a"), 0, "", false},
		{"STUN", append([]byte{0, 1, 0, 0, 0x21, 0x12, 0xa4, 0x42}, make([]byte, 12)...), 0, "", false},
		{"WireGuard", append([]byte{4, 0, 0, 0}, make([]byte, 28)...), 0, "", false},
	}
	for _, c := range cases {
		channel, payload, ok := ParseChannelData(c.b, LastChannel)
		if channel != c.channel || string(payload) != c.payload || ok != c.ok {
			t.Errorf("%s: %#x, %q, %v", c.name, channel, payload, ok)
		}
	}
}

// Each truncation of a message is refused, and what is put is what is parsed, in place.
func TestChannelDataTruncated(t *testing.T) {
	for _, size := range []int{0, 1, 2, 3, 4, 5, 32, 148, 1452} {
		b := make([]byte, ChannelHeaderSize+size)
		PutChannelHeader(b, 0x4ABC, uint16(size))
		if size > 0 {
			b[ChannelHeaderSize] = 7
		}
		channel, payload, ok := ParseChannelData(b, LastChannel)
		if !ok || channel != 0x4ABC || len(payload) != size || cap(payload) != size || size > 0 && &payload[0] != &b[ChannelHeaderSize] {
			t.Fatalf("%d bytes: %#x, %d bytes of %d, %v", size, channel, len(payload), cap(payload), ok)
		}
		for n := range b {
			if channel, payload, ok := ParseChannelData(b[:n], LastChannel); ok {
				t.Errorf("%d bytes of %d are taken: %#x, %x", n, len(b), channel, payload)
			}
		}
	}
}

func FuzzParseChannelData(f *testing.F) {
	f.Add([]byte("\x40\x01\x00\x03abc"))
	f.Add([]byte("\x40\x01\x00\x02abc"))
	f.Add([]byte("\x40\x01\x00"))
	f.Fuzz(func(t *testing.T, b []byte) {
		channel, payload, ok := ParseChannelData(b, LastChannel)
		if !ok {
			if channel != 0 || payload != nil {
				t.Fatalf("refused, but %#x, %x", channel, payload)
			}
			return
		}
		again := make([]byte, ChannelHeaderSize, len(b))
		PutChannelHeader(again, channel, uint16(len(payload)))
		if again = append(again, payload...); !bytes.HasPrefix(b, again) || channel < 0x4000 || channel > 0x4FFF {
			t.Fatalf("%x was parsed as %x", b, again)
		}
	})
}

// indication makes a Data indication as a TURN server does (RFC 8656, section 11.3), its attributes in that order.
func indication(peer netip.AddrPort, data []byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, dataIndication)
	b = append(b, 0, 0, 0x21, 0x12, 0xA4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12)
	ip, family := peer.Addr().AsSlice(), byte(1)
	if peer.Addr().Is6() {
		family = 2
	}
	for i := range ip {
		ip[i] ^= b[4+i]
	}
	b = binary.BigEndian.AppendUint16(b, xorPeerAddress)
	b = binary.BigEndian.AppendUint16(b, uint16(4+len(ip)))
	b = binary.BigEndian.AppendUint16(append(b, 0, family), peer.Port()^0x2112)
	b = append(b, ip...)
	b = binary.BigEndian.AppendUint16(b, dataAttribute)
	b = binary.BigEndian.AppendUint16(b, uint16(len(data)))
	b = append(b, data...)
	for len(b)%4 != 0 {
		b = append(b, 0)
	}
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)-HeaderSize))
	return b
}

// A Data indication is split into peer and data, in place; what is cut, longer than it says or lacks one of the two is none.
func TestParseDataIndication(t *testing.T) {
	for _, peer := range []netip.AddrPort{netip.MustParseAddrPort("192.0.2.7:40000"), netip.MustParseAddrPort("[2001:db8::7]:1")} {
		for _, size := range []int{0, 1, 2, 3, 4, 32, 1452} {
			want := bytes.Repeat([]byte{9}, size)
			b := indication(peer, want)
			got, data, ok := ParseDataIndication(b)
			if !ok || got != peer || !bytes.Equal(data, want) || cap(data) != size {
				t.Fatalf("%v, %d bytes: %v, %d bytes of %d, %v", peer, size, got, len(data), cap(data), ok)
			}
			for n := range b {
				if _, _, ok := ParseDataIndication(b[:n:n]); ok {
					t.Fatalf("%d of %d bytes passed", n, len(b))
				}
			}
			if _, _, ok := ParseDataIndication(append(b, 0, 0, 0, 0)); ok {
				t.Error("a message that is longer than it says passed")
			}
		}
	}
	change := func(at int, to ...byte) []byte {
		b := indication(netip.MustParseAddrPort("192.0.2.7:40000"), []byte("four"))
		copy(b[at:], to)
		return b
	}
	for name, b := range map[string][]byte{
		"a Send indication": change(1, 0x16), "a request": change(1, 1), "another cookie": change(4, 0), "no peer": change(21, 0x13),
		"no data": change(33, 0x14), "an IPv6 address of 4 bytes": change(25, 2), "an address of 5 bytes": change(23, 9),
		"data that is longer than the message": change(34, 1),
	} {
		if peer, data, ok := ParseDataIndication(b); ok {
			t.Errorf("%s passed: %v, %x", name, peer, data)
		}
	}
	b := indication(netip.MustParseAddrPort("192.0.2.7:40000"), make([]byte, 1000))
	if n := testing.AllocsPerRun(100, func() { ParseDataIndication(b) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// FuzzParseDataIndication: no message makes it read what is not there, and what it returns lies in the message.
func FuzzParseDataIndication(f *testing.F) {
	f.Add(indication(netip.MustParseAddrPort("192.0.2.7:40000"), []byte("data")))
	f.Add(indication(netip.MustParseAddrPort("[2001:db8::7]:40000"), nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		peer, data, ok := ParseDataIndication(b)
		if ok && (!peer.IsValid() || len(data) > len(b)-HeaderSize) {
			t.Errorf("%v, %d bytes of %d", peer, len(data), len(b))
		}
	})
}

// TestXORVectors: RFC 5769, sections 2.2 and 2.3, and RFC 8489, section 14.1, for what is not XORed.
func TestXORVectors(t *testing.T) {
	header, err := hex.DecodeString("000000002112a442b7e7a701bc34d686fa87dfae")
	if err != nil {
		t.Fatal(err)
	}
	for want, value := range map[string]string{
		"192.0.2.1:32853": "0001a147e112a643",
		"[2001:db8:1234:5678:11:2233:4455:6677]:32853": "0002a1470113a9faa5d3f179bc25f4b5bed2b9d9",
		"[::ffff:192.0.2.1]:32853":                     "0002a1472112a442b7e7a701bc3429793a87ddaf", // stays mapped
	} {
		v, err := hex.DecodeString(value)
		if err != nil {
			t.Fatal(err)
		}
		if got := Address(v, header); got.String() != want {
			t.Errorf("%s: %v, want %s", value, got, want)
		}
		if got := AppendXORAddress([]byte("before"), netip.MustParseAddrPort(want), header); string(got) != "before"+string(v) {
			t.Errorf("%s: %x, want %s", want, got[6:], value)
		}
		for n := range v {
			if got := Address(v[:n:n], header); got.IsValid() {
				t.Errorf("%d bytes of %s: %v", n, value, got)
			}
		}
	}
	if got := Address([]byte("\x00\x01\x1f\x90\xc0\x00\x02\x01"), nil); got.String() != "192.0.2.1:8080" {
		t.Errorf("plain: %v, want 192.0.2.1:8080", got)
	}
	if got := Address([]byte("\x01\x01\x1f\x90\xc0\x00\x02\x01"), nil); got.IsValid() {
		t.Errorf("with a first byte that is not 0: %v", got)
	}
}

// TestAttribute: what is returned lies inside, padding included.
func TestAttribute(t *testing.T) {
	b := []byte("\x00\x06\x00\x05hello\x00\x00\x00\x80\x22\x00\x00")
	kind, v, next := Attribute(b, 0)
	if kind != 6 || string(v) != "hello" || cap(v) != 5 || next != 12 {
		t.Errorf("%#x %q, next at %d", kind, v, next)
	}
	if kind, v, next = Attribute(b, 12); kind != 0x8022 || len(v) != 0 || next != len(b) {
		t.Errorf("%#x %q, next at %d", kind, v, next)
	}
	for n := range 12 {
		if _, _, next := Attribute(b[:n:n], 0); next != 0 {
			t.Errorf("%d bytes: next at %d", n, next)
		}
	}
}

// TestOldChannels: RFC 5766, section 11, had more channel numbers.
func TestOldChannels(t *testing.T) {
	for first := range 256 {
		b := []byte{byte(first), 1, 0, 0}
		for last, want := range map[uint16]bool{LastChannel: first >= 0x40 && first <= 0x4F, LastOldChannel: first >= 0x40 && first <= 0x7F} {
			if _, _, ok := ParseChannelData(b, last); ok != want || IsChannelData(b, last) != want {
				t.Errorf("%#x, up to %#x: %v, want %v", first, last, ok, want)
			}
		}
	}
}
