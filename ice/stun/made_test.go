package stun

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"net"
	"slices"
	"testing"

	pion "github.com/pion/ice/v2"
	oldwitness "github.com/pion/stun"
	witness "github.com/pion/stun/v4"

	"github.com/sluice-vpn/sluice/pipeline/frame"
)

// maker makes datagrams that are nearly right.
type maker struct {
	*rand.Rand
	b []byte
}

// kinds are the attributes that readers know; [3] has those that somebody or nobody knows.
var kinds = func() (list [4][]Attr) {
	for slot := range slots {
		k, known := Attr(slot), shapes[slot].known
		if slot >= slotsHalf {
			k += upper
		}
		if known == 0 || k == Integrity || k == IntegritySHA256 || k == Fingerprint {
			continue
		}
		for p := range Policy(3) {
			if known&p.bit() != 0 {
				list[p] = append(list[p], k)
			}
		}
		list[3] = append(list[3], k)
	}
	for p := range Policy(3) {
		list[p] = append(list[p], 0xC057)
	}
	list[3] = append(list[3], Integrity, IntegritySHA256, Fingerprint, 0x001D, 0x0026, 0x7ABC, 0xC057, 0x8001, 0xFFFF)
	return list
}()

// types are those of messages that readers take; [3] has all.
var types = [4][]uint16{
	Client: {0x0101, 0x0111, 0x0103, 0x0113, 0x0104, 0x0017, 0x0108, 0x0109, 0x0119},
	Peer:   {0x0001, 0x0001, 0x0101, 0x0111},
	Server: {0x0001, 0x0011, 0x0003, 0x0004, 0x0016, 0x0008, 0x0009},
	3:      {0x0001, 0x0101, 0x0111, 0x0011, 0x0003, 0x0103, 0x0113, 0x0004, 0x0104, 0x0016, 0x0017, 0x0008, 0x0108, 0x0009, 0x0109, 0x0119, 0x2001},
}

func (k *maker) bytes(n int) {
	for range n {
		k.b = append(k.b, byte(k.Uint32()))
	}
}

func (k *maker) attribute(kind Attr) {
	s, n := &shapes[kind.slot()], 0
	family := byte(1 + k.IntN(2))
	switch {
	case s.known == 0:
		n = k.IntN(9)
	case s.address:
		n = 8 + 12*int(family-1)
	case s.max == maxValue || s.max == maxText:
		n = int(s.min) + k.IntN(12)*int(s.step)
	case s.max > s.min:
		n = int(s.min) + k.IntN(min(int(s.max-s.min), 16)+1)/int(s.step)*int(s.step)
	default:
		n = int(s.min)
	}
	switch k.IntN(64) {
	case 0:
		n = max(0, n-1-k.IntN(2))
	case 1:
		n += 1 + k.IntN(4)
	case 2:
		n = []int{0, 508, 509, 763, 764, 767, 768}[k.IntN(7)]
	}
	k.b = binary.BigEndian.AppendUint16(k.b, uint16(kind))
	k.b = binary.BigEndian.AppendUint16(k.b, uint16(n))
	at := len(k.b)
	k.bytes(n)
	switch {
	case s.address && n > 1 && k.IntN(32) > 0:
		k.b[at], k.b[at+1] = 0, family
	case kind == ErrorCode && n > 3 && k.IntN(8) > 0:
		k.b[at+2], k.b[at+3] = byte(3+k.IntN(4)), byte(k.IntN(100))
	case kind == Username && n > 3:
		k.b[at+k.IntN(n)] = ':'
	}
	k.b = append(k.b, 0, 0, 0)
	k.b = k.b[:at+(n+3)&^3]
}

func (k *maker) length() { binary.BigEndian.PutUint16(k.b[2:], uint16(len(k.b)-frame.HeaderSize)) }

func (k *maker) fingerprint() {
	k.b = append(k.b, 0x80, 0x28, 0, 4, 0, 0, 0, 0)
	k.length()
	k.seal()
}

func (k *maker) seal() {
	if n := len(k.b) - 8; n >= frame.HeaderSize {
		binary.BigEndian.PutUint32(k.b[n+4:], crc32.ChecksumIEEE(k.b[:n])^fingerprintXOR)
	}
}

// next makes one.
func (k *maker) next() []byte {
	k.b = append(k.b[:0], 0, 0, 0, 0, 0x21, 0x12, 0xA4, 0x42)
	if k.IntN(16) == 0 { // ChannelData, and noise
		k.b = k.b[:0]
		k.bytes(k.IntN(40))
		if len(k.b) > 3 {
			k.b[0] = 0x40 + byte(k.IntN(0x50))
			binary.BigEndian.PutUint16(k.b[2:], uint16(max(0, len(k.b)-4+k.IntN(9)-5)))
		}
		return k.b
	}
	p := k.IntN(3)
	reads := func() int {
		if k.IntN(16) == 0 {
			return 3
		}
		return p
	}
	kind := types[reads()]
	binary.BigEndian.PutUint16(k.b, kind[k.IntN(len(kind))])
	k.bytes(12)
	check := Policy(p) == Peer && k.b[0] == 0 && k.IntN(16) > 0
	if check || k.IntN(3) == 0 {
		k.attribute(Username)
	}
	n := k.IntN(6)
	if k.IntN(256) == 0 {
		n = 28 + k.IntN(42)
	}
	for range n {
		kind := kinds[reads()]
		k.attribute(kind[k.IntN(len(kind))])
	}
	if check || k.IntN(2) == 0 {
		k.attribute(Integrity)
	}
	if k.IntN(8) == 0 {
		k.attribute(IntegritySHA256)
	}
	k.length()
	if check || k.IntN(4) > 0 {
		k.fingerprint()
	}
	if k.IntN(2) == 0 {
		k.mutate()
	}
	return k.b
}

func (k *maker) mutate() {
	at := k.IntN(len(k.b))
	switch k.IntN(10) {
	case 0:
		k.b = k.b[:at]
	case 1:
		k.bytes(1 + k.IntN(8))
	case 2:
		k.b[at] ^= 1 << k.IntN(8)
	case 3:
		k.b[at] = byte(k.Uint32())
	case 4:
		k.b[k.IntN(min(4, len(k.b)))] = byte(k.Uint32())
	case 5: // something behind the end
		k.attribute(kinds[3][k.IntN(len(kinds[3]))])
	case 6: // a part twice
		k.b = append(k.b, k.b[at&^3:]...)
	case 7:
		copy(k.b[at&^3:], k.b[k.IntN(len(k.b))&^3:])
	case 8: // the length of an attribute
		if at = frame.HeaderSize + k.IntN(16)*4; at+4 <= len(k.b) {
			binary.BigEndian.PutUint16(k.b[at+2:], uint16(k.IntN(40)))
		}
	case 9:
		clear(k.b[at:min(len(k.b), at+4)])
	}
	if len(k.b) >= 20 && k.IntN(2) == 0 {
		k.length()
		if k.IntN(2) == 0 {
			k.seal()
		}
	}
}

// TestMade looks at as many made datagrams as take a moment. Hundreds of millions of them were compared with the checks that this package has
// replaced; package stun's comment has what came of it.
func TestMade(t *testing.T) {
	k, passed := maker{Rand: rand.New(rand.NewPCG(1, 2))}, 0
	for range 50_000 {
		passed += againstPion(t, k.next())
	}
	if passed < 10_000 {
		t.Errorf("%d passed a check, want a fifth at least", passed)
	}
}

// FuzzPion lets the fuzzer look for more. Its seeds are made.
func FuzzPion(f *testing.F) {
	k := maker{Rand: rand.New(rand.NewPCG(3, 4))}
	for range 300 {
		f.Add(bytes.Clone(k.next()))
	}
	for _, b := range samples() {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) { againstPion(t, b) })
}

// againstPion: what passes a check is a message to pion in both of its versions, none of their readers panics on it, and they read what we
// read. It returns how many checks passed.
func againstPion(t *testing.T, b []byte) (passed int) {
	for p := range Policy(3) {
		var m Message
		if m.Parse(b, p) != DropNone {
			continue
		}
		passed++
		// Without room behind the end, so that reading too far panics.
		theirs, old := &witness.Message{Raw: slices.Clip(bytes.Clone(b))}, &oldwitness.Message{Raw: slices.Clip(bytes.Clone(b))}
		if err := theirs.Decode(); err != nil {
			t.Fatalf("%x passes, but pion: %v", b, err)
		}
		if err := old.Decode(); err != nil {
			t.Fatalf("%x passes, but pion v0: %v", b, err)
		}
		if uint16(theirs.Type.Method) != uint16(m.Method) || byte(theirs.Type.Class) != byte(m.Class) || theirs.TransactionID != m.ID {
			t.Fatalf("%x: pion reads %v, we %+v", b, theirs, m.Header)
		}
		for _, kind := range kinds[3] {
			if v, err := theirs.Get(witness.AttrType(kind)); kind.slot() != 0 && shapes[kind.slot()].known != 0 && kind != XORMappedAddress && kind != XORMappedOld &&
				((err == nil) != m.Has(kind) || !bytes.Equal(v, m.Get(kind))) {
				t.Fatalf("%x: pion's %#x is %x (%v), ours %x", b, kind, v, err, m.Get(kind))
			}
		}
		for _, kind := range [...]Attr{XORPeerAddress, XORRelayedAddress} {
			var a witness.XORMappedAddress
			err := a.GetFromAs(theirs, witness.AttrType(kind))
			if ours := m.Address(kind); (err == nil) != ours.IsValid() || err == nil && (!a.IP.Equal(net.IP(ours.Addr().AsSlice())) || a.Port != int(ours.Port())) {
				t.Fatalf("%x: pion's %#x is %v (%v), ours %v", b, kind, a, err, ours)
			}
		}
		if m.Has(Fingerprint) && (witness.Fingerprint.Check(theirs) != nil || oldwitness.Fingerprint.Check(old) != nil) {
			t.Fatalf("%x: pion refuses the fingerprint", b)
		}
		if got := witness.MessageIntegrity(benchKey.secret).Check(theirs) == nil; got != benchKey.Authentic(&m) {
			t.Fatalf("%x: pion takes the integrity for %v", b, got)
		}
		readOld(old)
	}
	return passed
}

// readOld reads a message with what the agents have.
func readOld(m *oldwitness.Message) {
	for _, g := range []oldwitness.Getter{
		new(oldwitness.MappedAddress), new(oldwitness.XORMappedAddress), new(oldwitness.Username), new(pion.AttrControl), new(pion.PriorityAttr),
		new(oldwitness.ErrorCodeAttribute), new(oldwitness.UnknownAttributes), new(oldwitness.Software), new(oldwitness.Realm), new(oldwitness.Nonce),
		new(oldwitness.OtherAddress), new(oldwitness.AlternateServer), new(oldwitness.ResponseOrigin),
	} {
		_ = g.GetFrom(m) // no panic is all that is asked
	}
	for _, kind := range []oldwitness.AttrType{oldwitness.AttrXORPeerAddress, oldwitness.AttrXORRelayedAddress} {
		_ = new(oldwitness.XORMappedAddress).GetFromAs(m, kind)
	}
	_ = m.String()
}
