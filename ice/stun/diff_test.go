package stun

import (
	"bytes"
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"net/netip"
	"testing"

	"github.com/sluice-vpn/sluice/pipeline/frame"
)

// These tests compare Parse with the three checks that it has replaced, the agent's, the TURN client's and the relay's, and package
// frame with the code that the lanes had. What differs is listed here with its reason; anything else fails.

// attributes of a message whose attributes lie inside.
type walked struct {
	kind Attr
	v    []byte
}

// facts is what the explanations need to know, found by a walk of its own.
type facts struct {
	list     []walked
	ragged   bool // an attribute reaches out of the message
	twice    bool // a kind that the agent knew came twice
	badCode  bool
	sha      bool
	afterSHA bool // something but FINGERPRINT behind MESSAGE-INTEGRITY-SHA256
	emptied  bool // USERNAME, REALM or NONCE without a byte
	misfit   bool // a form that an old check did not look at
	foreign  map[Policy]bool
	header   Header
}

var walkRoom [600]walked

func look(b []byte) (f facts) {
	f.header, _ = ParseHeader(b)
	f.list = walkRoom[:0]
	seen, sha := [slots]bool{}, false
	for at := frame.HeaderSize; at < len(b); {
		t, v, next := frame.Attribute(b, at)
		if next == 0 {
			f.ragged = true
			return f
		}
		k := Attr(t)
		f.list = append(f.list, walked{k, v})
		slot := k.slot()
		if k == XORMappedOld {
			slot = XORMappedAddress.slot() // the agent's check gave both one bit
		}
		f.twice = f.twice || slot != 0 && seen[slot]
		seen[slot] = true
		f.badCode = f.badCode || k == ErrorCode && (len(v) < 4 || len(v) > 767 || v[2]&7 < 3 || v[2]&7 > 6 || v[3] > 99)
		f.afterSHA = f.afterSHA || sha && k != Fingerprint
		sha = sha || k == IntegritySHA256
		f.emptied = f.emptied || len(v) == 0 && (k == Username || k == Realm || k == Nonce)
		f.misfit = f.misfit || shapes[k.slot()].fits(k, v) != DropNone
		at = next
	}
	f.sha = sha
	return f
}

// unknown reports whether there is an attribute that the reader must know and does not.
func (f *facts) unknown(p Policy) bool {
	for _, a := range f.list {
		if a.kind.required() && shapes[a.kind.slot()].known&p.bit() == 0 {
			return true
		}
	}
	return false
}

// explain says why Parse differs from the old check, or "".
func explain(p Policy, b []byte, now Drop, before bool) string {
	f := look(b)
	if before { // it passed, and does not any more
		switch {
		case now == DropLength && p == Client && len(b) > 2048:
			return "the client's check had no largest message; its caller had"
		case now == DropMethod && p == Server, (now == DropRequest || now == DropIndication) && p == Client, now == DropIndication && p == Peer:
			return "class and method were looked at behind the check"
		case now == DropOrder && f.afterSHA:
			return "RFC 8489, section 14.6: nothing but FINGERPRINT counts behind MESSAGE-INTEGRITY-SHA256"
		case now == DropValue && f.badCode && p != Client:
			return "RFC 8489, section 14.8: the class MUST be between 3 and 6"
		case now == DropAttribute && p == Peer && len(f.list) > 64:
			return "the agent's check had no largest number of attributes"
		case now == DropUnknown && p == Server && f.header.Class == Indication && f.unknown(p):
			return "RFC 8489, section 6.3.2: pion answered such an indication, and the gate threw that away"
		case (now == DropValue || now == DropAddress) && f.misfit:
			return "a form that only one of the others looked at"
		}
		return ""
	}
	switch {
	case p == Peer && f.twice:
		return "RFC 8489, section 14: only the first occurrence needs to be processed"
	case p == Peer && f.unknown(p) && f.header.Class == Request:
		return "RFC 8489, section 6.3.1: it is answered with 420"
	case p != Server && f.emptied:
		return "an empty text is one; who needs more looks at it"
	case p == Client && f.sha:
		return "RFC 8489, section 14.5: MESSAGE-INTEGRITY-SHA256 may stand behind MESSAGE-INTEGRITY"
	case p == Client && len(f.list) > 32:
		return "one bound for all: 64 attributes"
	}
	return ""
}

// reasons counts the explanations.
var reasons = map[string]int{}

// compare checks one datagram. It returns how many differences were explained.
func compare(t testing.TB, b []byte) (explained int) {
	var m Message
	agent, why := agentValidate(b)
	relay, relayOK := relayCheckMessage(b)
	for p, before := range [...]bool{Client: turnCheck(b) == turnDropNone, Peer: why == agentDropNone, Server: relayOK} {
		p := Policy(p)
		now := m.Parse(b, p)
		if (now == DropNone) != before {
			why := explain(p, b, now, before)
			if why == "" {
				t.Fatalf("unexplained: policy %d, now %d, before %v: %x", p, now, before, b)
			}
			reasons[why]++
			explained++
			continue
		}
		if now != DropNone {
			continue
		}
		switch p {
		case Peer:
			if a := int(m.at[Integrity]); uint8(m.Class) != uint8(agent.class) || m.ID != ID(agent.id) || !bytes.Equal(m.Get(Username), agent.username) ||
				a != agent.integrity || m.Has(UseCandidate) != agent.nominate || m.Mapped() != agent.mapped || !bytes.Equal(m.Recipient(), agent.recipient()) {
				t.Fatalf("the agent reads %+v, now %+v: %x", agent, m, b)
			}
		case Client:
			sameAsTURN(t, &m, b)
		case Server:
			f := facts{}
			if !sameAsRelay(&m, &relay) {
				if f = look(b); !f.twice {
					t.Fatalf("the relay reads %+v, now %+v: %x", relay, m, b)
				}
				explained++ // only the first occurrence counts, as for pion
			}
		}
	}
	return explained + compareFrames(t, b)
}

func sameAsTURN(t testing.TB, m *Message, b []byte) {
	for _, k := range [...]Attr{Data, Nonce, Realm, ErrorCode, Lifetime, XORPeerAddress, XORRelayedAddress, XORMappedAddress, Integrity} {
		if v, w := m.Get(k), Find(b, k); !bytes.Equal(v, w) || (v == nil) != (w == nil) {
			t.Fatalf("%#x: %x, want %x: %x", k, v, w, b)
		}
	}
}

func sameAsRelay(m *Message, r *relayMessage) bool {
	transport, _ := m.Uint32(RequestedTransport)
	family, _ := m.Uint32(RequestedFamily)
	channel, _ := m.Uint32(ChannelNumber)
	even := m.Get(EvenPort)
	reserve := m.Has(ReservationToken) || len(even) > 0 && even[0]&0x80 != 0
	return int(m.Method) == r.method && int(m.Class) == r.class && m.ID == r.id && m.Has(Integrity) == r.integrity && m.Address(XORPeerAddress) == r.peer &&
		byte(transport>>24) == r.transport && byte(family>>24) == r.family && uint16(channel>>16) == r.channel && m.Has(EvenPort) == r.evenPort &&
		reserve == r.reserve && m.Has(DontFragment) == r.dontFragment && bytes.Equal(m.Get(Nonce), r.nonce)
}

// compareFrames does the same for ChannelData and Data indications.
func compareFrames(t testing.TB, b []byte) (explained int) {
	c1, p1, ok1 := laneParseChannelData(b)
	c2, p2, ok2 := frame.ParseChannelData(b, frame.LastChannel)
	if c1 != c2 || !bytes.Equal(p1, p2) || ok1 != ok2 {
		t.Fatalf("ChannelData on a lane: %#x %x %v, now %#x %x %v: %x", c1, p1, ok1, c2, p2, ok2, b)
	}
	if relayIsChannelData(b) {
		c1, p1, ok1 = relayParseChannelData(b)
		c2, p2, ok2 = frame.ParseChannelData(b, frame.LastOldChannel)
		if c1 != c2 || !bytes.Equal(p1, p2) || ok1 != ok2 {
			t.Fatalf("ChannelData at the relay: %#x %x %v, now %#x %x %v: %x", c1, p1, ok1, c2, p2, ok2, b)
		}
	} else if _, _, ok := frame.ParseChannelData(b, frame.LastOldChannel); ok {
		t.Fatalf("ChannelData that the relay did not take: %x", b)
	}
	was, d1, ok1 := laneParseDataIndication(b)
	is, d2, ok2 := frame.ParseDataIndication(b)
	if was == is && bytes.Equal(d1, d2) && ok1 == ok2 {
		return 0
	}
	f := look(b)
	first := netip.AddrPort{}
	for _, a := range f.list {
		if a.kind == XORPeerAddress && len(a.v) > 1 && a.v[0] != 0 {
			first = was // the first byte of an address was not looked at
		}
	}
	if ok1 && !f.ragged && first != was || !ok1 && ok2 && first != was {
		t.Fatalf("indication: %v %x %v, now %v %x %v: %x", was, d1, ok1, is, d2, ok2, b)
	}
	return 1
}

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
	list[3] = append(list[3], Integrity, IntegritySHA256, Fingerprint, ChangeRequest, 0x001D, 0x0026, 0x7ABC, 0xC057, 0x8001, 0xFFFF)
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

// FuzzDifferential lets the fuzzer look for an unexplained difference.
func FuzzDifferential(f *testing.F) {
	k := maker{Rand: rand.New(rand.NewPCG(1, 2))}
	for range 200 {
		f.Add(bytes.Clone(k.next()))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if len(b) < 4096 {
			compare(t, b)
		}
	})
}
