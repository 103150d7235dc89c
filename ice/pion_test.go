package ice

import (
	"encoding/binary"
	"net/netip"
	"slices"
	"testing"

	pion "github.com/pion/ice/v2"
	witness "github.com/pion/stun"

	"github.com/sluice-vpn/sluice/ice/stun"
	"github.com/sluice-vpn/sluice/pipeline/frame"
)

const testPassword = "abcdefghijklmnopqrstuvwxyz"

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
