package turn

import (
	"bytes"
	"encoding/hex"
	"net/netip"
	"testing"

	"github.com/pion/stun/v3"

	"github.com/sluice-vpn/sluice/pipeline"
)

func TestChannelData(t *testing.T) {
	b := make([]byte, 4)
	pipeline.PutChannelHeader(b, 0x4001, 1420)
	if hex.EncodeToString(b) != "4001058c" {
		t.Errorf("%x", b)
	}
	for _, c := range []struct {
		in      string
		number  uint16
		payload string
		ok      bool
	}{
		{"40000000", 0x4000, "", true},
		{"4fff0001aa", 0x4FFF, "aa", true},
		{"40000001aabbcc", 0x4000, "aa", true}, // padding
		{"40000002aa", 0, "", false},
		{"400000", 0, "", false},
		{"", 0, "", false},
		{"50000000", 0, "", false}, // reserved
		{"3fff0000", 0, "", false},
		{"00010000", 0, "", false}, // STUN
		{"04000000", 0, "", false}, // WireGuard
		{"4000ffff", 0, "", false},
	} {
		in, err := hex.DecodeString(c.in)
		if err != nil {
			t.Fatal(err)
		}
		number, payload, ok := pipeline.ParseChannelData(in)
		if number != c.number || hex.EncodeToString(payload) != c.payload || ok != c.ok {
			t.Errorf("%s: %#x %x %v", c.in, number, payload, ok)
		}
	}
	packet := channelData(FirstChannel, make([]byte, 1200))
	if n := testing.AllocsPerRun(100, func() {
		pipeline.PutChannelHeader(packet, FirstChannel, 1200)
		if _, _, ok := pipeline.ParseChannelData(packet); !ok {
			t.Error("not taken")
		}
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestAppendSend compares with pion's encoder.
func TestAppendSend(t *testing.T) {
	id := [12]byte{1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12}
	for _, peer := range []string{"192.0.2.7:1", "[2001:db8::7]:65535"} {
		peer := netip.MustParseAddrPort(peer)
		for size := range 9 {
			data := bytes.Repeat([]byte{0xAA}, size)
			want := &stun.Message{TransactionID: id, Type: stun.NewType(stun.MethodSend, stun.ClassIndication)}
			want.WriteHeader()
			must(stun.XORMappedAddress{IP: peer.Addr().AsSlice(), Port: int(peer.Port())}.AddToAs(want, stun.AttrXORPeerAddress))
			want.Add(stun.AttrData, data)
			dirty := bytes.Repeat([]byte{0xFF}, 200)
			if got := AppendSend(dirty[:3], id, peer, data); !bytes.Equal(got[3:], want.Raw) {
				t.Errorf("%v, %d bytes:\n%x, want\n%x", peer, size, got[3:], want.Raw)
			}
			if got, ok := xorAddressOf(want, stun.AttrXORPeerAddress); !ok || got != peer {
				t.Errorf("%v, want %v", got, peer)
			}
		}
	}
	if got := AppendSend(nil, id, peerA, make([]byte, maxSend+1)); len(got) != 0 {
		t.Error("too long a payload was taken")
	}
	buffer, data := make([]byte, 0, 1400), make([]byte, 1200)
	if n := testing.AllocsPerRun(100, func() { AppendSend(buffer, id, peerA, data) }); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestXORVectors: RFC 5769, sections 2.2 and 2.3.
func TestXORVectors(t *testing.T) {
	id, err := hex.DecodeString("b7e7a701bc34d686fa87dfae")
	if err != nil {
		t.Fatal(err)
	}
	for want, value := range map[string]string{
		"192.0.2.1:32853": "0001a147e112a643",
		"[2001:db8:1234:5678:11:2233:4455:6677]:32853": "0002a1470113a9faa5d3f179bc25f4b5bed2b9d9",
	} {
		v, err := hex.DecodeString(value)
		if err != nil {
			t.Fatal(err)
		}
		m := &stun.Message{TransactionID: [12]byte(id)}
		m.WriteHeader()
		m.Add(stun.AttrXORMappedAddress, v)
		got, ok := xorAddressOf(m, stun.AttrXORMappedAddress)
		if !ok || got.String() != want {
			t.Errorf("%v %v, want %s", got, ok, want)
		}
		if again := appendXORAddress(nil, &m.TransactionID, got); !bytes.Equal(again, v) {
			t.Errorf("%x, want %x", again, v)
		}
	}
}

// TestCheckTakesRFC5769 feeds the sample responses of RFC 5769, whose SOFTWARE is padded with spaces.
func TestCheckTakesRFC5769(t *testing.T) {
	for _, sample := range []string{
		"0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000080001a147e112a64300080014" +
			"2b91f599fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96",
		"010100482112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000140002a1470113a9faa5d3f179" +
			"bc25f4b5bed2b9d900080014a382954e4be67bf11784c97c8292c275bfe3ed4180280004c8fb0b4c",
	} {
		b, err := hex.DecodeString(sample)
		if err != nil {
			t.Fatal(err)
		}
		if drop := check(b); drop != DropNone {
			t.Errorf("dropped: %v", drop)
		}
		m := &stun.Message{}
		must(stun.Decode(b, m))
		if err := stun.NewShortTermIntegrity("VOkJxbRl1RmTxUk/WvJxBt").Check(m); err != nil {
			t.Error(err)
		}
	}
}
