package turn

import (
	"encoding/binary"
	"net/netip"
	"time"

	witness "github.com/pion/stun/v4"

	"github.com/sluice-vpn/sluice/ice/stun"
)

// The servers of these tests are made of pion's STUN messages, so that no mistake of ours can hide by being made twice.

func must(err error) {
	if err != nil {
		panic(err)
	}
}

func newRequest(method witness.Method, id stun.ID) *witness.Message {
	m := &witness.Message{TransactionID: id, Type: witness.NewType(method, witness.ClassRequest)}
	m.WriteHeader()
	return m
}

func addUint32(m *witness.Message, kind witness.AttrType, v uint32) {
	m.Add(kind, binary.BigEndian.AppendUint32(nil, v))
}

// text is the value of an attribute, or "".
func text(m *witness.Message, kind witness.AttrType) string {
	v, _ := m.Get(kind)
	return string(v)
}

// pionAddressOf is the value of an XOR address attribute.
func pionAddressOf(id *[12]byte, a netip.AddrPort) []byte {
	m := &witness.Message{TransactionID: *id}
	m.WriteHeader()
	must(witness.XORMappedAddress{IP: a.Addr().AsSlice(), Port: int(a.Port())}.AddTo(m))
	v, err := m.Get(witness.AttrXORMappedAddress)
	must(err)
	return v
}

func pionAddress(m *witness.Message, kind witness.AttrType) (a netip.AddrPort, ok bool) {
	var x witness.XORMappedAddress
	if x.GetFromAs(m, kind) != nil {
		return a, false
	}
	ip, _ := netip.AddrFromSlice(x.IP)
	return netip.AddrPortFrom(ip.Unmap(), uint16(x.Port)), true
}

func pionLifetime(m *witness.Message) (time.Duration, bool) {
	v, err := m.Get(witness.AttrLifetime)
	if err != nil {
		return 0, false
	}
	return time.Duration(binary.BigEndian.Uint32(v)) * time.Second, true
}
