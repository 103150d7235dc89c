package ice

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"hash/crc32"
	"net"
	"net/netip"
	"strings"
	"testing"

	pion "github.com/pion/ice/v2"
	"github.com/pion/stun"
)

const testPassword = "abcdefghijklmnopqrstuvwxyz"

// pionCheck is a check as pion sends it.
func pionCheck(t testing.TB, ufrag, password string, more ...stun.Setter) []byte {
	t.Helper()
	setters := []stun.Setter{stun.TransactionID, stun.BindingRequest, stun.NewUsername(ufrag + ":peer"), pion.AttrControlling(7), pion.PriorityAttr(9)}
	setters = append(append(setters, more...), stun.NewShortTermIntegrity(password), stun.Fingerprint)
	m, err := stun.Build(setters...)
	if err != nil {
		t.Fatal(err)
	}
	return m.Raw
}

func pionAnswer(t testing.TB, id transactionID, mapped netip.AddrPort) []byte {
	t.Helper()
	m, err := stun.Build(stun.NewTransactionIDSetter(id), stun.BindingSuccess,
		&stun.XORMappedAddress{IP: mapped.Addr().AsSlice(), Port: int(mapped.Port())},
		stun.NewShortTermIntegrity(testPassword), stun.Fingerprint)
	if err != nil {
		t.Fatal(err)
	}
	return m.Raw
}

// build makes a message of any form: attributes are as given, the length is right.
func build(kind uint16, attributes ...[]byte) []byte {
	b := make([]byte, stunHeader)
	binary.BigEndian.PutUint16(b, kind)
	binary.BigEndian.PutUint32(b[4:], stunCookie)
	for _, a := range attributes {
		b = append(b, a...)
	}
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)-stunHeader))
	return b
}

func attribute(kind uint16, value string) []byte {
	b := binary.BigEndian.AppendUint16(nil, kind)
	b = binary.BigEndian.AppendUint16(b, uint16(len(value)))
	b = append(b, value...)
	return append(b, make([]byte, -len(value)&3)...)
}

// sealed appends a right FINGERPRINT.
func sealed(b []byte) []byte {
	b = append(b, 0x80, 0x28, 0, 4)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)+4-stunHeader))
	return binary.BigEndian.AppendUint32(b, crc32.ChecksumIEEE(b[:len(b)-4])^fingerprintXOR)
}

func TestValidate(t *testing.T) {
	integrity, user := attribute(attrMessageIntegrity, strings.Repeat("i", 20)), attribute(attrUsername, "a:b")
	v4, v6 := "\x00\x01\x11\x22abcd", "\x00\x02\x11\x22abcdefghijklmnop"
	const request, success = 0x0001, 0x0101
	wrong := sealed(build(success))
	wrong[len(wrong)-1] ^= 1
	tests := []struct {
		name string
		b    []byte
		want dropReason
	}{
		{"pion's check", pionCheck(t, "ufrag", testPassword), dropNone},
		{"pion's nomination", pionCheck(t, "ufrag", testPassword, pion.UseCandidate()), dropNone},
		{"pion's answer, IPv4", pionAnswer(t, transactionID{1}, netip.MustParseAddrPort("192.0.2.1:7")), dropNone},
		{"pion's answer, IPv6", pionAnswer(t, transactionID{1}, netip.MustParseAddrPort("[2001:db8::1]:7")), dropNone},
		{"plain probe's answer", build(success, attribute(attrXORMappedAddress, v4)), dropNone},
		{"coturn's answer", build(success, attribute(attrXORMappedAddress, v6), attribute(attrMappedAddress, v4),
			attribute(attrResponseOrigin, v4), attribute(attrOtherAddress, v4), attribute(attrSoftware, "Coturn-4.6.1")), dropNone},
		{"unknown attribute that may be ignored", build(success, attribute(0xC057, "1234")), dropNone},
		{"error", build(0x0111, attribute(attrErrorCode, "\x00\x00\x04\x57Role Conflict")), dropNone},
		{"indication", build(0x0011), dropNone},
		{"empty", nil, dropNotSTUN},
		{"ChannelData", append([]byte{0x40}, build(success)[1:]...), dropNotSTUN},
		{"no cookie", make([]byte, 40), dropNotSTUN},
		{"one byte more", append(build(success), 0), dropMalformed},
		{"one word more", append(build(success), 0, 0, 0, 0), dropMalformed},
		{"too long", build(success, attribute(attrSoftware, strings.Repeat("s", 700)), attribute(0xC000, strings.Repeat("s", 700))), dropMalformed},
		{"Allocate", build(0x0003), dropNotBinding},
		{"method's high bits", build(0x2001), dropNotBinding},
		{"half an attribute header", build(success, []byte{0, 6}), dropMalformed},
		{"attribute beyond the end", build(success, []byte{0, 6, 0, 8, 1, 2, 3, 4}), dropMalformed},
		{"padding beyond the end", build(success, []byte{0, 6, 0, 5, 1, 2, 3, 4}), dropMalformed},
		{"unknown attribute", build(success, attribute(0x0013, "data")), dropUnknownAttribute},
		{"TURN's XOR address", build(success, attribute(0x0016, v4)), dropUnknownAttribute},
		{"empty XOR address (CVE-2026-54909)", build(success, attribute(attrXORMappedAddress, "")), dropMalformed},
		{"one byte of it", build(success, attribute(attrXORMappedAddress, "\x00")), dropMalformed},
		{"the draft's XOR address, empty", build(success, attribute(attrXORMappedOld, "")), dropMalformed},
		{"IPv4 as IPv6", build(success, attribute(attrXORMappedAddress, "\x00\x02\x11\x22abcd")), dropMalformed},
		{"IPv6 as IPv4", build(success, attribute(attrXORMappedAddress, "\x00\x01"+v6[2:])), dropMalformed},
		{"unknown family", build(success, attribute(attrMappedAddress, "\x00\x03\x11\x22abcd")), dropMalformed},
		{"short MAPPED-ADDRESS", build(success, attribute(attrMappedAddress, v4[:7])), dropMalformed},
		{"two XOR addresses", build(success, attribute(attrXORMappedAddress, v4), attribute(attrXORMappedAddress, v4)), dropMalformed},
		{"an old and a new one", build(success, attribute(attrXORMappedOld, v4), attribute(attrXORMappedAddress, v4)), dropMalformed},
		{"short MESSAGE-INTEGRITY", build(success, attribute(attrMessageIntegrity, "short")), dropMalformed},
		{"long priority", build(success, attribute(attrPriority, "12345")), dropMalformed},
		{"short tie-breaker", build(success, attribute(attrICEControlled, "1234")), dropMalformed},
		{"fat USE-CANDIDATE", build(success, attribute(attrUseCandidate, "x")), dropMalformed},
		{"odd UNKNOWN-ATTRIBUTES", build(success, attribute(attrUnknownAttributes, "x")), dropMalformed},
		{"short ERROR-CODE", build(success, attribute(attrErrorCode, "x")), dropMalformed},
		{"short SHA-256", build(success, attribute(attrIntegritySHA256, "12345678")), dropMalformed},
		{"long USERNAME", build(success, attribute(attrUsername, strings.Repeat("u", 509))), dropMalformed},
		{"USE-CANDIDATE behind the integrity", sealed(build(request, user, integrity, attribute(attrUseCandidate, ""))), dropMalformed},
		{"unknown behind the integrity", build(success, integrity, attribute(0xC057, "1234")), dropMalformed},
		{"wrong fingerprint", wrong, dropFingerprint},
		{"behind the fingerprint", build(success, sealed(build(success))[stunHeader:], attribute(attrSoftware, "s")), dropFingerprint},
		{"request without USERNAME", sealed(build(request, integrity)), dropMalformed},
		{"request without integrity", sealed(build(request, user)), dropMalformed},
		{"request without fingerprint", build(request, user, integrity), dropMalformed},
		{"the least request", sealed(build(request, user, integrity)), dropNone},
	}
	for _, test := range tests {
		if _, got := validate(test.b); got != test.want {
			t.Errorf("%s: %q, want %q", test.name, dropTable[got].reason, dropTable[test.want].reason)
		}
	}
}

// TestValidateRFC5769 takes the sample request and responses of RFC 5769, sections 2.1 to 2.3.
func TestValidateRFC5769(t *testing.T) {
	const password = "VOkJxbRl1RmTxUk/WvJxBt"
	tests := []struct{ hex, user, mapped string }{
		{"000100582112a442b7e7a701bc34d686fa87dfae80220010" + "5354554e207465737420636c69656e74" + "002400046e0001ff" +
			"80290008932ff9b151263b36" + "00060009" + "6576746a3a68367659202020" + "000800149aeaa70cbfd8cb56781ef2b5b2d3f249c1b571a2" +
			"80280004e57a3bcf", "evtj", ""},
		{"0101003c2112a442b7e7a701bc34d686fa87dfae8022000b" + "7465737420766563746f7220" + "002000080001a147e112a643" +
			"000800142b91f599fd9e90c38c7489f92af9ba53f06be7d7" + "80280004c07d4c96", "", "192.0.2.1:32853"},
		{"010100482112a442b7e7a701bc34d686fa87dfae8022000b" + "7465737420766563746f7220" +
			"002000140002a1470113a9faa5d3f179bc25f4b5bed2b9d9" + "00080014a382954e4be67bf11784c97c8292c275bfe3ed41" +
			"80280004c8fb0b4c", "", "[2001:db8:1234:5678:11:2233:4455:6677]:32853"},
	}
	for i, test := range tests {
		b, err := hex.DecodeString(test.hex)
		if err != nil {
			t.Fatal(err)
		}
		m, why := validate(b)
		if why != dropNone || string(m.recipient()) != test.user || !m.authentic(password) || m.authentic(password+"x") {
			t.Errorf("%d: %q, user %q, authentic %v", i, dropTable[why].reason, m.recipient(), m.authentic(password))
		}
		if test.mapped != "" && m.mapped.String() != test.mapped {
			t.Errorf("%d: mapped %v", i, m.mapped)
		}
	}
}

// TestTruncations: no beginning of a message is one, and each byte counts.
func TestTruncations(t *testing.T) {
	for _, b := range [][]byte{pionCheck(t, "ufrag", testPassword), pionAnswer(t, transactionID{1}, netip.MustParseAddrPort("192.0.2.1:7"))} {
		for n := range b {
			if _, why := validate(b[:n]); why == dropNone {
				t.Errorf("%d of %d bytes passed", n, len(b))
			}
			bad := bytes.Clone(b)
			bad[n] ^= 0x10
			if m, why := validate(bad); why == dropNone && m.authentic(testPassword) {
				t.Errorf("byte %d can be changed", n)
			}
		}
	}
}

// TestBits: two known attributes share a bit only where pion reads them as one.
func TestBits(t *testing.T) {
	owner := map[uint32]int{}
	for kind := range 0x10000 {
		if known, _ := attrShape(uint16(kind), nil); !known || kind == attrXORMappedOld {
			continue
		}
		b := bit(uint16(kind))
		if other, taken := owner[b]; taken || b == 0 || b&(b-1) != 0 {
			t.Errorf("%#x and %#x have bit %#x", kind, other, b)
		}
		owner[b] = kind
	}
}

func TestBindingRequest(t *testing.T) {
	id := newTransactionID()
	m := stun.Message{Raw: bindingRequest(id)}
	if err := m.Decode(); err != nil || m.TransactionID != id || m.Type != stun.BindingRequest {
		t.Fatalf("%v, %v", m, err)
	}
	if err := stun.Fingerprint.Check(&m); err != nil {
		t.Error(err)
	}
	if id == newTransactionID() {
		t.Error("a transaction id came twice")
	}
}

// FuzzValidate: what passes does not panic pion's decoder nor any of its readers, and pion reads what we read.
func FuzzValidate(f *testing.F) {
	f.Add(pionCheck(f, "ufrag", testPassword, pion.UseCandidate()))
	f.Add(pionAnswer(f, transactionID{1}, netip.MustParseAddrPort("192.0.2.1:7")))
	f.Add(pionAnswer(f, transactionID{1}, netip.MustParseAddrPort("[2001:db8::1]:7")))
	f.Add(build(0x0101, attribute(attrXORMappedAddress, "")))
	f.Add(build(0x0101, attribute(attrXORMappedOld, "\x00\x01\x11\x22abcd")))
	f.Add(build(0x0101, attribute(attrMessageIntegrity, ""), attribute(attrMessageIntegrity, "")))
	f.Add(build(0x0111, attribute(attrErrorCode, "\x00\x00\x04\x57Role Conflict"), attribute(attrUnknownAttributes, "\x00\x01")))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, b := range [][]byte{b, sealed(append(build(0x0101), b...))} { // the second gets deeper
			ours, why := validate(b)
			if why != dropNone {
				continue
			}
			m := stun.Message{Raw: exact(b)}
			if err := m.Decode(); err != nil {
				t.Fatalf("passed, but pion says %v", err)
			}
			ours.authentic(testPassword)
			readAll(t, &m, &ours)
		}
	})
}

// exact copies without room behind the end, as pion does, so that reading too far panics.
func exact(b []byte) []byte {
	c := make([]byte, len(b))
	copy(c, b)
	return c
}

// TestPionPanics shows what the check is for: pion decodes the message, and panics when it reads the address.
func TestPionPanics(t *testing.T) {
	b := build(0x0101, attribute(attrXORMappedAddress, ""))
	m := stun.Message{Raw: exact(b)}
	if err := m.Decode(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if _, why := validate(b); recover() == nil || why != dropMalformed {
			t.Errorf("no panic, or not refused: %s", dropTable[why].reason)
		}
	}()
	_ = new(stun.XORMappedAddress).GetFrom(&m)
}

// readAll reads a message with everything that pion has.
func readAll(t *testing.T, m *stun.Message, ours *message) {
	_ = m.String()
	theirs := stun.MessageIntegrity(testPassword).Check(m) == nil
	if theirs != ours.authentic(testPassword) {
		t.Fatalf("pion takes the integrity for %v", theirs)
	}
	if ours.seen&bit(attrFingerprint) != 0 && stun.Fingerprint.Check(m) != nil {
		t.Fatal("pion refuses the fingerprint")
	}
	var (
		mapped   stun.MappedAddress
		xor      stun.XORMappedAddress
		username stun.Username
		control  pion.AttrControl
		priority pion.PriorityAttr
		code     stun.ErrorCodeAttribute
		unknown  stun.UnknownAttributes
		software stun.Software
		realm    stun.Realm
		nonce    stun.Nonce
		other    stun.OtherAddress
		server   stun.AlternateServer
		origin   stun.ResponseOrigin
	)
	getters := []stun.Getter{&mapped, &username, &control, &priority, &code, &unknown, &software, &realm, &nonce, &other, &server, &origin}
	for _, g := range getters {
		_ = g.GetFrom(m)
	}
	for _, kind := range []stun.AttrType{stun.AttrXORPeerAddress, stun.AttrXORRelayedAddress} {
		_ = new(stun.XORMappedAddress).GetFromAs(m, kind)
	}
	if err := xor.GetFrom(m); err == nil && ours.seen&bit(attrXORMappedAddress) != 0 && ours.mapped.IsValid() {
		old, _ := m.Get(stun.AttrXORMappedAddress)
		if old != nil && !net.IP(ours.mapped.Addr().AsSlice()).Equal(xor.IP) && !m.Contains(stun.AttrMappedAddress) {
			t.Fatalf("pion reads %v, we %v", xor.IP, ours.mapped)
		}
	}
	if string(ours.username) != string(username) {
		t.Fatalf("pion reads user %q, we %q", username, ours.username)
	}
}
