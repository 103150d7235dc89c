package stun

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"strings"
	"testing"

	witness "github.com/pion/stun/v4"

	"github.com/sluice-vpn/sluice/pipeline/frame"
)

// vectors are the samples of RFC 5769: sections 2.1 to 2.4. Their padding is not zero.
var vectors = []struct {
	name, hex, user, mapped string
	policy                  Policy
	key                     *Key
}{
	{"request", "000100582112a442b7e7a701bc34d686fa87dfae802200105354554e207465737420636c69656e74002400046e0001ff80290008932ff9b151263b36" +
		"00060009" + "6576746a3a68367659202020" + "000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a280280004e57a3bcf", "evtj", "", Peer, ShortTerm(vectorPassword)},
	{"IPv4 response", "0101003c2112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000080001a147e112a643" +
		"000800142b91f599fd9e90c38c7489f92af9ba53f06be7d780280004c07d4c96", "", "192.0.2.1:32853", Peer, ShortTerm(vectorPassword)},
	{"IPv6 response", "010100482112a442b7e7a701bc34d686fa87dfae8022000b7465737420766563746f7220002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d9" +
		"00080014a382954e4be67bf11784c97c8292c275bfe3ed4180280004c8fb0b4c", "", "[2001:db8:1234:5678:11:2233:4455:6677]:32853", Client, ShortTerm(vectorPassword)},
	{"long-term request", "000100602112a44278ad3433c6ad72c029da412e00060012e3839ee38388e383aae38383e382afe382b90000" +
		"0015001c662f2f3439396b39353464364f4c33346f4c394653547679363473410014000b6578616d706c652e6f726700" +
		"00080014f67024656dd64a3e02b8e0712e85c9a28ca89666", "", "", Server, LongTerm("マトリックス", "example.org", "TheMatrIX")},
}

const vectorPassword = "VOkJxbRl1RmTxUk/WvJxBt"

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

// TestVectors: RFC 5769.
func TestVectors(t *testing.T) {
	for _, v := range vectors {
		var m Message
		if drop := m.Parse(unhex(t, v.hex), v.policy); drop != DropNone {
			t.Errorf("%s: dropped as %d", v.name, drop)
			continue
		}
		if got := string(m.Recipient()); got != v.user {
			t.Errorf("%s: for %q, want %q", v.name, got, v.user)
		}
		if got := m.Mapped(); v.mapped != "" && got.String() != v.mapped {
			t.Errorf("%s: mapped %v, want %s", v.name, got, v.mapped)
		}
		if !v.key.Authentic(&m) || ShortTerm("another").Authentic(&m) {
			t.Errorf("%s: authentic %v with the key, %v with another", v.name, v.key.Authentic(&m), ShortTerm("another").Authentic(&m))
		}
	}
}

// TestTruncations: no beginning of a message is one, none with a byte more is, and each bit that differs shows in the fingerprint or the
// integrity.
func TestTruncations(t *testing.T) {
	for _, v := range vectors {
		b, m := unhex(t, v.hex), Message{}
		for n := range b {
			if m.Parse(b[:n:n], v.policy) == DropNone {
				t.Errorf("%s: %d of %d bytes pass", v.name, n, len(b))
			}
			for bit := range 8 {
				bad := bytes.Clone(b)
				bad[n] ^= 1 << bit
				if m.Parse(bad, v.policy) == DropNone && v.key.Authentic(&m) {
					t.Errorf("%s: bit %d of byte %d can be changed", v.name, bit, n)
				}
			}
		}
		for more := 1; more < 9; more++ {
			if m.Parse(append(bytes.Clone(b), make([]byte, more)...), v.policy) == DropNone {
				t.Errorf("%s: passes with %d bytes more", v.name, more)
			}
		}
	}
	for p, b := range samples() {
		for n := range b {
			if m := (Message{}); m.Parse(b[:n:n], Policy(p)) == DropNone {
				t.Errorf("%s: %d of %d bytes pass", policyNames[p], n, len(b))
			}
		}
	}
}

// asPeer is pion's XOR-PEER-ADDRESS.
type asPeer witness.XORMappedAddress

func (a asPeer) AddTo(m *witness.Message) error {
	return witness.XORMappedAddress(a).AddToAs(m, witness.AttrXORPeerAddress)
}

// TestBuilderAgainstPion: what is built is byte by byte what pion builds.
func TestBuilderAgainstPion(t *testing.T) {
	id := benchID
	for _, peer := range []string{"192.0.2.7:1", "[2001:db8::7]:65535", "[::ffff:192.0.2.7]:9"} {
		peer := addr(peer)
		for size := range 9 {
			data := bytes.Repeat([]byte{0xAA}, size)
			want, err := witness.Build(witness.NewTransactionIDSetter(id), witness.NewType(witness.MethodSend, witness.ClassIndication),
				asPeer{IP: peer.Addr().AsSlice(), Port: int(peer.Port())},
				witness.RawAttribute{Type: witness.AttrData, Value: data}, witness.NewShortTermIntegrity("secret"), witness.Fingerprint)
			if err != nil {
				t.Fatal(err)
			}
			dirty := bytes.Repeat([]byte{0xFF}, 300)
			w := Build(dirty[:3], Indication, Send, id) // behind something else, and in memory that is not clean
			w.XORAddress(XORPeerAddress, peer)
			w.Add(Data, data)
			w.Sign(ShortTerm("secret"))
			w.Fingerprint()
			if got := w.Bytes()[3:]; !bytes.Equal(got, want.Raw) && !peer.Addr().Is4In6() { // which pion writes as IPv4
				t.Errorf("%v, %d bytes:\n%x, want\n%x", peer, size, got, want.Raw)
			}
			var m Message
			if drop := m.Parse(w.Bytes()[3:], Server); drop != DropNone || m.Address(XORPeerAddress) != peer || !bytes.Equal(m.Get(Data), data) {
				t.Errorf("%v, %d bytes: read as %v, %x (%d)", peer, size, m.Address(XORPeerAddress), m.Get(Data), drop)
			}
		}
	}
}

// TestHeader: class and method come back from every type.
func TestHeader(t *testing.T) {
	for method := range Method(0x1000) {
		for class := range Class(4) {
			w := Build(nil, class, method, benchID)
			h, ok := ParseHeader(w.Bytes())
			if want := (Header{class, method, benchID}); !ok || h != want {
				t.Fatalf("%+v %v, want %+v", h, ok, want)
			}
		}
	}
	if got := messageType(Error, Allocate); got != 0x0113 {
		t.Errorf("Allocate error response: %#x, want 0x113", got)
	}
}

// message is a message of any form.
func message(c Class, m Method, attributes ...any) []byte {
	w := Build(nil, c, m, benchID)
	for i := 0; i < len(attributes); i += 2 {
		if kind := attributes[i].(Attr); kind == Fingerprint && attributes[i+1] == nil {
			w.Fingerprint()
		} else {
			w.Text(kind, attributes[i+1].(string))
		}
	}
	return w.Bytes()
}

// TestParse says what passes, by reader.
func TestParse(t *testing.T) {
	const v4, v6 = "\x00\x01\x11\x22abcd", "\x00\x02\x11\x22abcdefghijklmnop"
	sum, long := strings.Repeat("i", 20), strings.Repeat("s", 763)
	var many []any
	for range 65 {
		many = append(many, Attr(0xC000), "")
	}
	wrong := message(Success, Binding, Fingerprint, nil)
	wrong[len(wrong)-1] ^= 1
	edit := func(b []byte, at int, to byte) []byte { b[at] = to; return b }
	answer := func(attributes ...any) []byte { return message(Success, Binding, attributes...) }
	check := []any{Username, "a:b", Integrity, sum, Fingerprint, nil}
	for _, c := range []struct {
		name string
		b    []byte
		want [3]Drop // of client, peer, server
	}{
		{"nothing", nil, [3]Drop{DropNotSTUN, DropNotSTUN, DropNotSTUN}},
		{"no cookie", make([]byte, 40), [3]Drop{DropNotSTUN, DropNotSTUN, DropNotSTUN}},
		{"ChannelData", edit(answer(), 0, 0x40), [3]Drop{DropNotSTUN, DropNotSTUN, DropNotSTUN}},
		{"one byte more", append(answer(), 0), [3]Drop{DropLength, DropLength, DropLength}},
		{"four bytes more", append(answer(), 0, 0, 0, 0), [3]Drop{DropLength, DropLength, DropLength}},
		{"length that is no multiple of 4", edit(append(answer(), 0), 3, 1), [3]Drop{DropLength, DropLength, DropLength}},
		{"1280 bytes", answer(Software, long[:763], Software, long[:488]), [3]Drop{DropNone, DropNone, DropMethod}},
		{"1284 bytes", answer(Software, long[:763], Software, long[:492]), [3]Drop{DropNone, DropLength, DropMethod}},
		{"2048 bytes", message(Indication, Send, Data, strings.Repeat("d", 2024)), [3]Drop{DropIndication, DropLength, DropNone}},
		{"2052 bytes", message(Indication, Send, Data, strings.Repeat("d", 2028)), [3]Drop{DropLength, DropLength, DropLength}},
		{"answer", answer(XORMappedAddress, v4), [3]Drop{DropNone, DropNone, DropMethod}},
		{"answer of an old server", answer(MappedAddress, v4, SourceAddress, v4, ChangedAddress, v6), [3]Drop{DropNone, DropUnknown, DropMethod}},
		{"answer with more", answer(XORMappedAddress, v6, ResponseOrigin, v4, OtherAddress, v4, Software, "s", Attr(0xC057), "1"), [3]Drop{DropNone, DropNone, DropMethod}},
		{"error", message(Error, Binding, ErrorCode, "\x00\x00\x04\x57Role Conflict"), [3]Drop{DropNone, DropNone, DropMethod}},
		{"error 299", message(Error, Binding, ErrorCode, "\x00\x00\x02\x63"), [3]Drop{DropValue, DropValue, DropMethod}},
		{"error 4100", message(Error, Binding, ErrorCode, "\x00\x00\x04\x64"), [3]Drop{DropValue, DropValue, DropMethod}},
		{"answer to Allocate", message(Success, Allocate, XORRelayedAddress, v4, Lifetime, "1234"), [3]Drop{DropNone, DropMethod, DropMethod}},
		{"Data indication", message(Indication, DataMethod, XORPeerAddress, v4, Data, "d"), [3]Drop{DropNone, DropMethod, DropMethod}},
		{"Binding indication", message(Indication, Binding), [3]Drop{DropIndication, DropIndication, DropNone}},
		{"check", message(Request, Binding, check...), [3]Drop{DropRequest, DropNone, DropNone}},
		{"nomination", message(Request, Binding, append([]any{UseCandidate, "", Priority, "1234", ICEControlling, "12345678"}, check...)...), [3]Drop{DropRequest, DropNone, DropNone}},
		{"check without USERNAME", message(Request, Binding, check[2:]...), [3]Drop{DropRequest, DropIncomplete, DropNone}},
		{"check without integrity", message(Request, Binding, Username, "a:b", Fingerprint, nil), [3]Drop{DropRequest, DropIncomplete, DropNone}},
		{"check without fingerprint", message(Request, Binding, check[:4]...), [3]Drop{DropRequest, DropIncomplete, DropNone}},
		{"check with DATA", message(Request, Binding, append([]any{Data, "d"}, check...)...), [3]Drop{DropRequest, DropNone, DropNone}},
		{"Allocate", message(Request, Allocate, RequestedTransport, "\x11\x00\x00\x00"), [3]Drop{DropRequest, DropMethod, DropNone}},
		{"Connect", message(Request, 0x00A), [3]Drop{DropRequest, DropMethod, DropMethod}},
		{"unknown attribute of an answer", answer(Attr(0x7ABC), "x"), [3]Drop{DropUnknown, DropUnknown, DropMethod}},
		{"of an indication", message(Indication, Send, Attr(0x7ABC), "x"), [3]Drop{DropIndication, DropMethod, DropUnknown}},
		{"of a request", message(Request, Allocate, Attr(0x7ABC), "x"), [3]Drop{DropRequest, DropMethod, DropNone}},
		{"half a head", append(edit(answer(), 3, 4), 0, 6, 0, 0)[:22], [3]Drop{DropLength, DropLength, DropLength}},
		{"attribute beyond the end", edit(answer(Username, "1234"), 23, 5), [3]Drop{DropAttribute, DropAttribute, DropMethod}},
		{"attribute to 65535", edit(edit(answer(Username, "1234"), 22, 0xFF), 23, 0xFF), [3]Drop{DropAttribute, DropAttribute, DropMethod}},
		{"64 attributes", answer(many[:128]...), [3]Drop{DropNone, DropNone, DropMethod}},
		{"65 attributes", answer(many...), [3]Drop{DropAttribute, DropAttribute, DropMethod}},
		{"empty address (CVE-2026-54909)", answer(XORMappedAddress, ""), [3]Drop{DropAddress, DropAddress, DropMethod}},
		{"one byte of it", answer(XORMappedAddress, "\x00"), [3]Drop{DropAddress, DropAddress, DropMethod}},
		{"the draft's, empty", answer(XORMappedOld, ""), [3]Drop{DropAddress, DropAddress, DropMethod}},
		{"IPv4 as IPv6", answer(XORMappedAddress, "\x00\x02"+v4[2:]), [3]Drop{DropAddress, DropAddress, DropMethod}},
		{"IPv6 as IPv4", answer(XORMappedAddress, "\x00\x01"+v6[2:]), [3]Drop{DropAddress, DropAddress, DropMethod}},
		{"no family", answer(MappedAddress, "\x00\x03"+v4[2:]), [3]Drop{DropAddress, DropAddress, DropMethod}},
		{"first byte", answer(MappedAddress, "\x01\x01"+v4[2:]), [3]Drop{DropAddress, DropAddress, DropMethod}},
		{"peer of 4 bytes", message(Indication, Send, XORPeerAddress, "\x00\x01\x11\x22"), [3]Drop{DropIndication, DropMethod, DropAddress}},
		{"two addresses", answer(XORMappedAddress, v4, XORMappedAddress, v6), [3]Drop{DropNone, DropNone, DropMethod}},
		{"fat USE-CANDIDATE", message(Request, Binding, append([]any{UseCandidate, "x"}, check...)...), [3]Drop{DropRequest, DropValue, DropValue}},
		{"short integrity", answer(Integrity, "short"), [3]Drop{DropValue, DropValue, DropMethod}},
		{"long USERNAME", answer(Username, long[:509]), [3]Drop{DropValue, DropValue, DropMethod}},
		{"long SOFTWARE", answer(Software, long+"s"), [3]Drop{DropValue, DropValue, DropMethod}},
		{"odd UNKNOWN-ATTRIBUTES", answer(UnknownAttributes, "x"), [3]Drop{DropValue, DropValue, DropMethod}},
		{"SHA-256 of 8 bytes", answer(IntegritySHA256, "12345678"), [3]Drop{DropValue, DropValue, DropMethod}},
		{"both integrities", answer(Integrity, sum, IntegritySHA256, sum, Fingerprint, nil), [3]Drop{DropNone, DropNone, DropMethod}},
		{"the other way round", answer(IntegritySHA256, sum, Integrity, sum), [3]Drop{DropOrder, DropOrder, DropMethod}},
		{"two integrities", answer(Integrity, sum, Integrity, sum), [3]Drop{DropOrder, DropOrder, DropMethod}},
		{"behind the integrity", answer(Integrity, sum, Software, "s"), [3]Drop{DropOrder, DropOrder, DropMethod}},
		{"behind the fingerprint", append(edit(message(Success, Binding, Fingerprint, nil), 3, 12), 0x80, 0x22, 0, 0), [3]Drop{DropOrder, DropOrder, DropMethod}},
		{"wrong fingerprint", wrong, [3]Drop{DropFingerprint, DropFingerprint, DropMethod}},
	} {
		for p, want := range c.want {
			var m Message
			if got := m.Parse(c.b, Policy(p)); got != want {
				t.Errorf("%s, to a %s: dropped as %d, want %d", c.name, policyNames[p], got, want)
			}
		}
	}
}

// TestFirstCounts: of two attributes of a kind the first is read, as pion does.
func TestFirstCounts(t *testing.T) {
	var m Message
	b := message(Request, Binding, Username, "a:b", Username, "c:d", Integrity, strings.Repeat("i", 20), Fingerprint, nil)
	if drop := m.Parse(b, Peer); drop != DropNone || string(m.Recipient()) != "a" {
		t.Errorf("for %q (%d), want a", m.Recipient(), drop)
	}
	for user, want := range map[string]string{"a:b": "a", "a:": "a", ":b": "", "ab": "", "": ""} {
		if drop := m.Parse(message(Success, Binding, Username, user), Peer); drop != DropNone || string(m.Recipient()) != want {
			t.Errorf("USERNAME %q is for %q, want %q", user, m.Recipient(), want)
		}
	}
}

// TestUnknown: "an error code of 420 (Unknown Attribute) and includes an UNKNOWN-ATTRIBUTES attribute in the response that lists the
// unknown comprehension-required attributes" (RFC 8489, section 6.3.1), and it is never longer than the request.
func TestUnknown(t *testing.T) {
	for n := range 50 {
		var attributes []any
		for i := range n {
			attributes = append(attributes, Attr(0x7A00+i), "", Attr(0xC000), "") // one that must be understood, one that need not
		}
		var m Message
		request := message(Request, Binding, attributes...)
		if drop := m.Parse(request, Server); n <= 32 && (drop != DropNone || m.Unknown() != (n > 0)) || n > 32 && drop != DropAttribute {
			t.Fatalf("%d: dropped as %d, unknown %v", n, drop, m.Unknown())
		}
		if n == 0 || n > 32 {
			continue
		}
		w := Build(nil, Error, Binding, m.ID)
		w.Unknown(&m)
		var list witness.UnknownAttributes
		pion := witness.Message{Raw: w.Bytes()}
		if err := pion.Decode(); err != nil || list.GetFrom(&pion) != nil || len(list) != n || list[n-1] != witness.AttrType(0x7A00+n-1) {
			t.Errorf("%d: pion reads %v (%v)", n, list, err)
		}
		if CodeOf(w.Bytes()) != 420 || len(w.Bytes()) > 3*len(request) {
			t.Errorf("%d: code %d, %d bytes for %d", n, CodeOf(w.Bytes()), len(w.Bytes()), len(request))
		}
	}
}

// TestFind reads what was not checked, and never beyond the end.
func TestFind(t *testing.T) {
	b := message(Request, Binding, Software, "12345", UseCandidate, "", Priority, "abcd")
	for kind, want := range map[Attr]string{Software: "12345", UseCandidate: "", Priority: "abcd"} {
		if got := Find(b, kind); got == nil || string(got) != want || cap(got) != len(want) {
			t.Errorf("%#x: %q, want %q", kind, got, want)
		}
	}
	for n := range b {
		Find(b[:n:n], Nonce)
	}
	if got := Find(b, Nonce); got != nil {
		t.Errorf("NONCE: %q", got)
	}
}

// TestKeyIsSilent: nothing prints a key.
func TestKeyIsSilent(t *testing.T) {
	for _, format := range []string{"%v", "%+v", "%#v", "%s", "%x", "%q"} {
		if got := fmt.Sprintf(format, ShortTerm("topsecret")); got != "[redacted]" {
			t.Errorf("%s: %s", format, got)
		}
	}
}

// TestAllocations: none, neither to check nor to read nor to build.
func TestAllocations(t *testing.T) {
	list, room := samples(), make([]byte, 0, 1500)
	m := new(Message)
	for name, f := range map[string]func(){
		"client": func() { m.Parse(list[Client], Client); m.Code(); m.Get(Data); m.Mapped() },
		"peer":   func() { m.Parse(list[Peer], Peer); m.Recipient(); m.Has(UseCandidate) },
		"server": func() { m.Parse(list[Server], Server); m.Address(XORPeerAddress); m.Get(Data) },
		"drop":   func() { m.Parse(list[Server][:30], Server) },
		"build": func() {
			w := Build(room, Request, Binding, benchID)
			w.Text(Username, "a:b")
			w.XORAddress(XORMappedAddress, benchPeer)
			w.Fingerprint()
		},
		"Data indication": func() { frame.ParseDataIndication(list[Server]) },
	} {
		if n := testing.AllocsPerRun(1000, f); n != 0 {
			t.Errorf("%s: %v allocations, want 0", name, n)
		}
	}
	if raceEnabled {
		return // the race detector has sync.Pool forget at random
	}
	if n := testing.AllocsPerRun(1000, func() { m.Parse(list[Peer], Peer); benchKey.Authentic(m) }); n != 0 {
		t.Errorf("authentic: %v allocations, want 0", n)
	}
}

// TestKeyAgainstPion: both take each other's integrity, and a key serves many at once.
func TestKeyAgainstPion(t *testing.T) {
	key := LongTerm("user", "realm", "password")
	m, err := witness.Build(witness.TransactionID, witness.NewType(witness.MethodRefresh, witness.ClassRequest), witness.NewUsername("user"),
		witness.NewLongTermIntegrity("user", "realm", "password"), witness.Fingerprint)
	if err != nil {
		t.Fatal(err)
	}
	t.Run("many", func(t *testing.T) {
		for range 4 {
			t.Run("", func(t *testing.T) {
				t.Parallel()
				for range 500 {
					var ours Message
					if drop := ours.Parse(m.Raw, Server); drop != DropNone || !key.Authentic(&ours) {
						t.Fatalf("dropped as %d, or not authentic", drop)
					}
				}
			})
		}
	})
}
