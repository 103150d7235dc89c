package turn

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"net/netip"
	"testing"
	"time"

	witness "github.com/pion/stun/v4"

	"github.com/sluice-vpn/sluice/ice/stun"
	"github.com/sluice-vpn/sluice/pipeline/frame"
)

// dataIndication is what a server makes of a peer's datagram.
func dataIndication(peer netip.AddrPort, data []byte) []byte {
	return indication(stun.DataMethod, stun.ID{1, 2, 3}, peer, data)
}

func channelData(number uint16, data []byte) []byte {
	b := make([]byte, frame.ChannelHeaderSize, frame.ChannelHeaderSize+len(data))
	frame.PutChannelHeader(b, number, uint16(len(data)))
	return append(b, data...)
}

func TestPayloads(t *testing.T) {
	w := up(t)
	bindBoth(w)
	got, ok := w.c.Handle(w.now, testServer, channelData(FirstChannel+1, []byte("hello")))
	if !ok || got.Peer != peerB || got.Channel != FirstChannel+1 || string(got.Data) != "hello" {
		t.Error(got, ok)
	}
	padded := append(channelData(FirstChannel, []byte("hello")), 0, 0, 0)
	if got, ok = w.c.Handle(w.now, testServer, padded); !ok || got.Peer != peerA || string(got.Data) != "hello" || cap(got.Data) != 5 {
		t.Error(got, ok)
	}
	if got, ok = w.c.Handle(w.now, testServer, channelData(FirstChannel, nil)); !ok || got.Peer != peerA || len(got.Data) != 0 {
		t.Error(got, ok)
	}
	raw := dataIndication(netip.AddrPortFrom(peerA.Addr(), 7), []byte("indicated"))
	if got, ok = w.c.Handle(w.now, testServer, raw); !ok || got.Peer.Port() != 7 || got.Channel != 0 || string(got.Data) != "indicated" {
		t.Error(got, ok)
	}
	if got.Data[0] = 'X'; !bytes.Contains(raw, []byte("Xndicated")) || cap(got.Data) != len(got.Data) {
		t.Error("the payload is a copy, or reaches further")
	}
	packet := channelData(FirstChannel, make([]byte, 1200))
	if n := testing.AllocsPerRun(100, func() { w.c.Handle(w.now, testServer, packet) }); n != 0 {
		t.Errorf("%v allocations for ChannelData", n)
	}
	if n := testing.AllocsPerRun(100, func() { w.c.Handle(w.now, testServer, raw) }); n != 0 {
		t.Errorf("%v allocations for a Data indication", n)
	}
	noise := []byte("noise")
	if n := testing.AllocsPerRun(100, func() { w.c.Handle(w.now, testServer, noise) }); n != 0 {
		t.Errorf("%v allocations for noise", n)
	}
}

// TestDrops: each kind of hostile datagram is counted under its name and changes nothing.
func TestDrops(t *testing.T) {
	request := newRequest(witness.MethodBinding, stun.ID{1}).Raw
	kind := func(method witness.Method, class witness.MessageClass, fill func(m *witness.Message)) []byte {
		m := &witness.Message{Type: witness.NewType(method, class)}
		m.WriteHeader()
		if fill != nil {
			fill(m)
		}
		return m.Raw
	}
	attribute := func(a witness.AttrType, v ...byte) []byte {
		return kind(witness.MethodData, witness.ClassIndication, func(m *witness.Message) { m.Add(a, v) })
	}
	for name, c := range map[string]struct {
		raw  []byte
		want Drop
	}{
		"empty":            {nil, DropNotSTUN},
		"noise":            {[]byte("GET / HTTP/1.1\r\n\r\n........"), DropChannelLength},
		"wireguard":        {append([]byte{4, 0, 0, 0}, make([]byte, 28)...), DropNotSTUN},
		"no cookie":        {make([]byte, 20), DropNotSTUN},
		"top bits":         {append([]byte{0x81}, request[1:]...), DropNotSTUN},
		"trailing":         {append(bytes.Clone(request), 0, 0, 0, 0), DropLength},
		"odd length":       {append([]byte{0, 1, 0, 2}, append(bytes.Clone(request[4:]), 0, 0)...), DropLength},
		"value outside":    {append([]byte{0, 0x17, 0, 4}, append(bytes.Clone(request[4:]), 0, 0x13, 0, 1)...), DropAttribute},
		"short address":    {attribute(witness.AttrXORMappedAddress), DropAddress},
		"short v4":         {attribute(witness.AttrXORPeerAddress, 0, 1, 0, 1, 1, 2, 3), DropAddress},
		"v6 of v4 size":    {attribute(witness.AttrXORRelayedAddress, 0, 2, 0, 1, 1, 2, 3, 4), DropAddress},
		"unknown family":   {attribute(witness.AttrMappedAddress, 0, 3, 0, 1, 1, 2, 3, 4), DropAddress},
		"old xor address":  {attribute(0x8020, 0, 1), DropAddress},
		"alternate server": {attribute(witness.AttrAlternateServer, 0, 1), DropAddress},
		"lifetime":         {attribute(witness.AttrLifetime, 1), DropValue},
		"channel number":   {attribute(witness.AttrChannelNumber, 1, 2, 3, 4, 5), DropValue},
		"reservation":      {attribute(witness.AttrReservationToken, 1), DropValue},
		"nonce":            {attribute(witness.AttrNonce, make([]byte, 764)...), DropValue},
		"realm":            {attribute(witness.AttrRealm, make([]byte, 764)...), DropValue},
		"error code":       {attribute(witness.AttrErrorCode, 0, 0, 4), DropValue},
		"error class 7":    {attribute(witness.AttrErrorCode, 0, 0, 7, 0), DropValue},
		"error number":     {attribute(witness.AttrErrorCode, 0, 0, 4, 100), DropValue},
		"integrity":        {attribute(witness.AttrMessageIntegrity, make([]byte, 19)...), DropValue},
		"fingerprint size": {attribute(witness.AttrFingerprint, 1, 2), DropValue},
		"fingerprint":      {attribute(witness.AttrFingerprint, 1, 2, 3, 4), DropFingerprint},
		"must be known":    {attribute(0x7001, 1), DropUnknown},
		"after integrity": {kind(witness.MethodData, witness.ClassIndication, func(m *witness.Message) {
			m.Add(witness.AttrMessageIntegrity, make([]byte, 20))
			m.Add(witness.AttrData, nil)
		}), DropOrder},
		"after fingerprint": {kind(witness.MethodData, witness.ClassIndication, func(m *witness.Message) { witness.Fingerprint.AddTo(m); m.Add(witness.AttrData, nil) }), DropOrder},
		"many attributes": {kind(witness.MethodData, witness.ClassIndication, func(m *witness.Message) {
			for range 64 + 1 {
				m.Add(witness.AttrSoftware, nil)
			}
		}), DropAttribute},
		"request":          {request, DropRequest},
		"indication":       {kind(witness.MethodBinding, witness.ClassIndication, nil), DropIndication},
		"no peer":          {attribute(witness.AttrData, 1), DropIncomplete},
		"no data":          {kind(witness.MethodData, witness.ClassIndication, func(m *witness.Message) { m.Add(witness.AttrXORPeerAddress, pionAddressOf(&m.TransactionID, peerA)) }), DropIncomplete},
		"port 0":           {dataIndication(netip.AddrPortFrom(peerA.Addr(), 0), []byte("x")), DropIncomplete},
		"not permitted":    {dataIndication(netip.MustParseAddrPort("9.9.9.9:9"), []byte("x")), DropPermission},
		"never asked":      {kind(witness.MethodAllocate, witness.ClassSuccessResponse, nil), DropTransaction},
		"channel short":    {[]byte{0x40, 0, 0}, DropChannelLength},
		"channel too long": {[]byte{0x40, 0, 0, 2, 1}, DropChannelLength},
		"channel unbound":  {channelData(LastChannel, []byte("x")), DropChannel},
		"channel reserved": {channelData(0x5000, []byte("x")), DropNotSTUN},
	} {
		w := up(t)
		bindBoth(w)
		at, why := w.c.NextTimeout()
		before := w.c.Dropped(c.want)
		if got, ok := w.c.Handle(w.now, testServer, c.raw); ok || got.Data != nil {
			t.Errorf("%s: taken", name)
		}
		if w.c.Dropped(c.want) != before+1 {
			for d := DropNone; d < DropCount; d++ {
				if w.c.Dropped(d) != 0 {
					t.Errorf("%s: dropped as %v, want %v", name, d, c.want)
				}
			}
		}
		if at2, why2 := w.c.NextTimeout(); at2 != at || why2 != why || len(w.c.outputs) != 0 {
			t.Errorf("%s: something changed", name)
		}
		// The same from elsewhere is dropped unread.
		if w.c.Handle(w.now, peerA, c.raw); w.c.Dropped(DropStranger) != 1 {
			t.Errorf("%s: a stranger was not counted", name)
		}
	}
}

// capture makes a client whose signed request is in flight and returns it with the right answer to that request.
func capture(t *testing.T) (w *world, answer []byte) {
	t.Helper()
	w = newWorld(t)
	w.c.Start(w.now)
	w.s.tamper = func(m *witness.Message) []byte {
		if m.Type == witness.NewType(witness.MethodAllocate, witness.ClassSuccessResponse) {
			must(witness.Fingerprint.AddTo(m))
			answer = m.Raw
			return nil
		}
		return m.Raw
	}
	w.run(100 * time.Millisecond)
	if answer == nil {
		t.Fatal("no answer was made")
	}
	return w, answer
}

// rebuilt is the answer with another class and content, signed with key unless that is nil.
func rebuilt(w *world, class witness.MessageClass, key witness.MessageIntegrity, fill func(m *witness.Message)) []byte {
	m := &witness.Message{TransactionID: w.c.allocation.id, Type: witness.NewType(witness.MethodAllocate, class)}
	m.WriteHeader()
	fill(m)
	if key != nil {
		must(key.AddTo(m))
	}
	return m.Raw
}

// TestIntegrity: "If the value does not match, or if MESSAGE-INTEGRITY [is] absent, then the response MUST be discarded, as if it
// had never been received" (after RFC 8489, section 9.2.5).
func TestIntegrity(t *testing.T) {
	full := func(s *scripted) func(m *witness.Message) {
		return func(m *witness.Message) {
			s.address(m, witness.AttrXORRelayedAddress, testRelayed)
			s.address(m, witness.AttrXORMappedAddress, testMapped)
			addUint32(m, witness.AttrLifetime, 600)
		}
	}
	wrong := witness.NewLongTermIntegrity(goodLogin.Username, "example.org", "guessed")
	w, answer := capture(t)
	for _, raw := range [][]byte{
		rebuilt(w, witness.ClassSuccessResponse, nil, full(w.s)),
		rebuilt(w, witness.ClassSuccessResponse, wrong, full(w.s)),
		rebuilt(w, witness.ClassErrorResponse, wrong, func(m *witness.Message) { must(witness.CodeForbidden.AddTo(m)) }),
	} {
		w.c.Handle(w.now, testServer, raw)
	}
	if n := w.c.Dropped(DropIntegrity); n != 3 {
		t.Errorf("%d dropped", n)
	}
	for _, spoil := range []int{0, 1, 2} { // each of the attributes that an allocation needs is missing once
		w.c.Handle(w.now, testServer, rebuilt(w, witness.ClassSuccessResponse, witness.MessageIntegrity(w.c.key.Secret()), func(m *witness.Message) {
			if spoil != 0 {
				w.s.address(m, witness.AttrXORRelayedAddress, testRelayed)
			}
			if spoil != 1 {
				w.s.address(m, witness.AttrXORMappedAddress, testMapped)
			}
			if spoil != 2 {
				addUint32(m, witness.AttrLifetime, 600)
			}
		}))
	}
	w.c.Handle(w.now, testServer, rebuilt(w, witness.ClassErrorResponse, witness.MessageIntegrity(w.c.key.Secret()), func(*witness.Message) {}))
	if n := w.c.Dropped(DropIncomplete); n != 4 {
		t.Errorf("%d dropped", n)
	}
	other := bytes.Clone(answer)
	binary.BigEndian.PutUint16(other, witness.NewType(witness.MethodRefresh, witness.ClassSuccessResponse).Value())
	other = other[:len(other)-8]
	binary.BigEndian.PutUint16(other[2:], uint16(len(other)-20))
	if w.c.Handle(w.now, testServer, other); w.c.Dropped(DropTransaction) != 1 {
		t.Error("an answer of another method was taken")
	}
	w.drain()
	w.expect()
	if w.c.Handle(w.now, testServer, answer); len(w.c.outputs) != 1 {
		t.Error("the right answer was not taken")
	}
	w.drain()
	w.expect("allocated")
	if w.c.Handle(w.now, testServer, answer); w.c.Dropped(DropTransaction) != 2 {
		t.Error("the answer was taken twice")
	}
}

// TestUnsignedSuccess: before there is a key a server may refuse us, but not give us an allocation.
func TestUnsignedSuccess(t *testing.T) {
	w := newWorld(t)
	w.s.dead = true
	w.c.Start(w.now)
	w.run(100 * time.Millisecond)
	w.c.Handle(w.now, testServer, rebuilt(w, witness.ClassSuccessResponse, nil, func(m *witness.Message) {
		w.s.address(m, witness.AttrXORRelayedAddress, testRelayed)
		w.s.address(m, witness.AttrXORMappedAddress, testMapped)
		addUint32(m, witness.AttrLifetime, 600)
	}))
	w.drain()
	w.expect()
	// A 401 without a nonce or realm leads nowhere.
	w.c.Handle(w.now, testServer, rebuilt(w, witness.ClassErrorResponse, nil, func(m *witness.Message) { must(witness.CodeUnauthorized.AddTo(m)) }))
	w.drain()
	w.expect("failed:credentials")
	if w.c.Dropped(DropIntegrity) != 1 {
		t.Error("not counted")
	}
}

// TestTruncations: every beginning of every kind of message, and each with every bit of it flipped, leaves the client as it was, or
// is what the client may believe.
func TestTruncations(t *testing.T) {
	w, answer := capture(t)
	for i := range answer {
		w.c.Handle(w.now, testServer, answer[:i])
	}
	for i := range len(answer) * 8 {
		flipped := bytes.Clone(answer)
		flipped[i/8] ^= 1 << (i % 8)
		w.c.Handle(w.now, testServer, flipped)
	}
	if w.drain(); w.c.State() != "allocating" {
		t.Error(w.c, w.events)
	}
	w.c.Handle(w.now, testServer, answer)
	w.drain()
	w.expect("allocated")
	bindBoth(w)
	for _, whole := range [][]byte{channelData(FirstChannel, []byte("payload")), dataIndication(peerA, []byte("payload"))} {
		for i := range whole {
			if _, ok := w.c.Handle(w.now, testServer, whole[:i]); ok {
				t.Errorf("the first %d of %d bytes were taken", i, len(whole))
			}
		}
	}
}

// TestMutations: a long series of mutated messages neither stops the client nor makes it send or tell without bound.
func TestMutations(t *testing.T) {
	w, answer := capture(t)
	random := rand.New(rand.NewPCG(1, 2))
	seeds := [][]byte{answer, dataIndication(peerA, []byte("payload")), channelData(FirstChannel, []byte("payload"))}
	for range 50_000 {
		b := bytes.Clone(seeds[random.IntN(len(seeds))])
		for range 1 + random.IntN(4) {
			b[random.IntN(len(b))] = byte(random.Uint32())
		}
		w.c.Handle(w.now, testServer, b[:random.IntN(len(b)+1)])
	}
	if len(w.c.outputs) > 2 {
		t.Errorf("%d outputs", len(w.c.outputs))
	}
	w.drain()
	w.run(5 * time.Second)
	if w.c.Handle(w.now, testServer, answer); w.c.State() == "refused" {
		t.Error(w.c)
	}
}
