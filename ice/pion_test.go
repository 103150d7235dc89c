package ice

import (
	"encoding/binary"
	"net"
	"net/netip"
	"slices"
	"testing"

	pion "github.com/pion/ice/v2"
	witness "github.com/pion/stun"

	"github.com/sluice-vpn/sluice/ice/stun"
	"github.com/sluice-vpn/sluice/pipeline/frame"
)

const testPassword = "abcdefghijklmnopqrstuvwxyz"

var testKey = stun.ShortTerm(testPassword)

// pionCheck is a check as pion sends it.
func pionCheck(t testing.TB, ufrag, password string, more ...witness.Setter) []byte {
	t.Helper()
	setters := []witness.Setter{witness.TransactionID, witness.BindingRequest, witness.NewUsername(ufrag + ":peer"), pion.AttrControlling(7), pion.PriorityAttr(9)}
	setters = append(append(setters, more...), witness.NewShortTermIntegrity(password), witness.Fingerprint)
	m, err := witness.Build(setters...)
	if err != nil {
		t.Fatal(err)
	}
	return m.Raw
}

func pionAnswer(t testing.TB, id stun.ID, mapped netip.AddrPort) []byte {
	t.Helper()
	m, err := witness.Build(witness.NewTransactionIDSetter(id), witness.BindingSuccess,
		&witness.XORMappedAddress{IP: mapped.Addr().AsSlice(), Port: int(mapped.Port())},
		witness.NewShortTermIntegrity(testPassword), witness.Fingerprint)
	if err != nil {
		t.Fatal(err)
	}
	return m.Raw
}

// build makes a message of any form: attributes are as given, the length is right.
func build(kind uint16, attributes ...[]byte) []byte {
	b := binary.BigEndian.AppendUint16(nil, kind)
	b = binary.BigEndian.AppendUint32(append(b, 0, 0), frame.Cookie)
	b = append(append(b, make([]byte, 12)...), slices.Concat(attributes...)...)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)-frame.HeaderSize))
	return b
}

func attribute(kind stun.Attr, value string) []byte {
	b := binary.BigEndian.AppendUint16(nil, uint16(kind))
	b = binary.BigEndian.AppendUint16(b, uint16(len(value)))
	b = append(b, value...)
	return append(b, make([]byte, -len(value)&3)...)
}

// sealed appends a right FINGERPRINT.
func sealed(b []byte) []byte {
	w := stun.Edit(b)
	w.Fingerprint()
	return w.Bytes()
}

// FuzzPion: what passes the check does not panic pion's decoder nor any of its readers, and pion reads what we read.
func FuzzPion(f *testing.F) {
	f.Add(pionCheck(f, "ufrag", testPassword, pion.UseCandidate()))
	f.Add(pionAnswer(f, stun.ID{1}, netip.MustParseAddrPort("192.0.2.1:7")))
	f.Add(pionAnswer(f, stun.ID{1}, netip.MustParseAddrPort("[2001:db8::1]:7")))
	f.Add(build(0x0101, attribute(stun.XORMappedAddress, "")))
	f.Add(build(0x0101, attribute(stun.XORMappedOld, "\x00\x01\x11\x22abcd")))
	f.Add(build(0x0101, attribute(stun.Integrity, ""), attribute(stun.Integrity, "")))
	f.Add(build(0x0111, attribute(stun.ErrorCode, "\x00\x00\x04\x57Role Conflict"), attribute(stun.UnknownAttributes, "\x00\x01")))
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, b := range [][]byte{b, sealed(append(build(0x0101), b...))} { // the second gets deeper
			var ours stun.Message
			if ours.Parse(b, stun.Peer) != stun.DropNone {
				continue
			}
			m := witness.Message{Raw: exact(b)}
			if err := m.Decode(); err != nil {
				t.Fatalf("passed, but pion says %v", err)
			}
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
	b := build(0x0101, attribute(stun.XORMappedAddress, ""))
	m := witness.Message{Raw: exact(b)}
	if err := m.Decode(); err != nil {
		t.Fatal(err)
	}
	defer func() {
		if why := new(stun.Message).Parse(b, stun.Peer); recover() == nil || why != stun.DropAddress {
			t.Errorf("no panic, or not refused: %d", why)
		}
	}()
	_ = new(witness.XORMappedAddress).GetFrom(&m)
}

// readAll reads a message with everything that pion has.
func readAll(t *testing.T, m *witness.Message, ours *stun.Message) {
	_ = m.String()
	theirs := witness.MessageIntegrity(testPassword).Check(m) == nil
	if theirs != testKey.Authentic(ours) {
		t.Fatalf("pion takes the integrity for %v", theirs)
	}
	if ours.Has(stun.Fingerprint) && witness.Fingerprint.Check(m) != nil {
		t.Fatal("pion refuses the fingerprint")
	}
	var (
		mapped   witness.MappedAddress
		xor      witness.XORMappedAddress
		username witness.Username
		control  pion.AttrControl
		priority pion.PriorityAttr
		code     witness.ErrorCodeAttribute
		unknown  witness.UnknownAttributes
		software witness.Software
		realm    witness.Realm
		nonce    witness.Nonce
		other    witness.OtherAddress
		server   witness.AlternateServer
		origin   witness.ResponseOrigin
	)
	getters := []witness.Getter{&mapped, &username, &control, &priority, &code, &unknown, &software, &realm, &nonce, &other, &server, &origin}
	for _, g := range getters {
		_ = g.GetFrom(m)
	}
	for _, kind := range []witness.AttrType{witness.AttrXORPeerAddress, witness.AttrXORRelayedAddress} {
		_ = new(witness.XORMappedAddress).GetFromAs(m, kind)
	}
	if mapped := ours.Mapped(); xor.GetFrom(m) == nil && ours.Has(stun.XORMappedAddress) {
		// pion takes the draft's for the same attribute, and then the first of both.
		if !ours.Has(stun.XORMappedOld) && !net.IP(mapped.Addr().AsSlice()).Equal(xor.IP) {
			t.Fatalf("pion reads %v, we %v", xor.IP, mapped)
		}
	}
	if string(ours.Get(stun.Username)) != string(username) {
		t.Fatalf("pion reads user %q, we %q", username, ours.Get(stun.Username))
	}
}
