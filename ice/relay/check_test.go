package relay

import (
	"bytes"
	"net/netip"
	"slices"
	"testing"

	witness "github.com/pion/stun/v4"

	"github.com/sluice-vpn/sluice/ice/stun"
)

func TestZeroPadding(t *testing.T) {
	b := plain(stun.DataMethod, stun.Indication, newID(), attr{stun.Data, []byte("12345")}, attr{stun.Software, []byte("x")})
	dirty := append([]byte{}, b...)
	copy(dirty[29:], "\xaa\xaa\xaa")
	copy(dirty[37:], "\xbb\xbb\xbb")
	zeroPadding(dirty)
	if !bytes.Equal(b, dirty) {
		t.Errorf("%x, want %x", dirty, b)
	}
}

// FuzzPion: what passes the strict check is a message for pion too, and none of pion's decoders panics on it or disagrees
// about what is in it.
func FuzzPion(f *testing.F) {
	id := stun.ID{1, 2, 3}
	f.Add(plain(stun.Allocate, stun.Request, id, udpTransport))
	f.Add(plain(stun.Send, stun.Indication, id, peerAttr(netip.MustParseAddrPort("192.0.2.1:9"), &id), attr{stun.Data, []byte("x")}))
	f.Add(plain(stun.ChannelBind, stun.Request, id, channelAttr(0x4000), peerAttr(netip.MustParseAddrPort("[2001:db8::1]:9"), &id)))
	f.Add(plain(stun.Allocate, stun.Error, id, attr{stun.ErrorCode, []byte{0, 0, 4, 1}}, attr{stun.UnknownAttributes, []byte{1, 2}}))
	f.Add(plain(stun.Binding, stun.Success, id, attr{stun.XORMappedAddress, nil}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var m stun.Message
		if m.Parse(b, stun.Server) != stun.DropNone {
			return
		}
		p := &witness.Message{Raw: append([]byte{}, b...)}
		if err := p.Decode(); err != nil {
			t.Fatalf("pion does not decode what passes: %v", err)
		}
		if uint16(p.Type.Method) != uint16(m.Method) || byte(p.Type.Class) != byte(m.Class) || p.TransactionID != m.ID ||
			p.Contains(witness.AttrMessageIntegrity) != m.Has(stun.Integrity) {
			t.Fatalf("pion reads %v, we %+v", p, m)
		}
		var a witness.XORMappedAddress
		if err := a.GetFromAs(p, witness.AttrXORPeerAddress); (err == nil) != m.Address(stun.XORPeerAddress).IsValid() {
			t.Fatalf("pion's peer %v %v, ours %v", a, err, m.Address(stun.XORPeerAddress))
		} else if err == nil {
			ip, _ := netip.AddrFromSlice(a.IP)
			if netip.AddrPortFrom(ip, uint16(a.Port)) != m.Address(stun.XORPeerAddress) {
				t.Fatalf("pion's peer %v, ours %v", a, m.Address(stun.XORPeerAddress))
			}
		}
		var (
			mapped    witness.MappedAddress
			alternate witness.AlternateServer
			other     witness.OtherAddress
			origin    witness.ResponseOrigin
			code      witness.ErrorCodeAttribute
			unknown   witness.UnknownAttributes
			user      witness.Username
			nonce     witness.Nonce
			realm     witness.Realm
			software  witness.Software
		)
		for _, g := range []witness.Getter{&a, &mapped, &alternate, &other, &origin, &code, &unknown, &user, &nonce, &realm, &software} {
			_ = g.GetFrom(p) // no panic is all that is asked
		}
		_ = witness.MessageIntegrity("key").Check(p)
		_ = witness.Fingerprint.Check(p)
		zeroPadding(append([]byte{}, b...))
		_, _, _ = parseChannelData(b)
		rewrite(nil, b, withoutReason)
	})
}

// FuzzCloseUp: whatever comes in a train of datagrams, what leaves is what each of them would have been by itself, in their order.
func FuzzCloseUp(f *testing.F) {
	var train []byte
	for _, text := range []string{"abc", "def", "gh", "ijk", "lmn", ""} {
		train = append(train, channelData(0x4001, []byte(text))...)
	}
	f.Add(train, uint16(7))
	f.Add(append(train, channelData(0x4002, []byte("opq"))...), uint16(7))
	f.Add(bytes.Repeat(append(channelData(0x4001, []byte("xy")), 0, 0), 3), uint16(8))
	f.Add([]byte{0x40, 1, 0, 0, 0x40, 1, 0, 0}, uint16(4))
	f.Add([]byte{0x40, 1, 0xff, 0xff, 0x40}, uint16(3))
	f.Fuzz(func(t *testing.T, b []byte, segment uint16) {
		step := max(int(segment), 1)
		type message struct {
			number uint16
			text   string
			bad    bool
		}
		var want, got []message
		for rest := b; len(rest) > 0; rest = rest[min(step, len(rest)):] {
			number, data, ok := parseChannelData(rest[:min(step, len(rest))])
			want = append(want, message{number, string(data), !ok})
		}
		for rest := append([]byte{}, b...); len(rest) > 0; {
			var r channelRun
			r, rest = closeUp(rest, step)
			if r.data == nil {
				got = append(got, message{bad: true})
				continue
			}
			for first := true; first || len(r.data) > 0; first = false {
				one := r.data[:min(r.size, len(r.data))]
				r.data = r.data[len(one):]
				got = append(got, message{number: r.number, text: string(one)})
			}
		}
		if !slices.Equal(got, want) {
			t.Fatalf("%v, want %v", got, want)
		}
	})
}
