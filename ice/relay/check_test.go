package relay

import (
	"bytes"
	"slices"
	"testing"

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

// FuzzRewrite: what pion may answer stays a message when it is edited.
func FuzzRewrite(f *testing.F) {
	f.Add(plain(stun.Allocate, stun.Error, stun.ID{1}, attr{stun.ErrorCode, []byte("\x00\x00\x04\x01why")}, attr{stun.Realm, []byte("r")}))
	f.Add(plain(stun.Allocate, stun.Success, stun.ID{1}, attr{stun.ReservationToken, make([]byte, 8)}, attr{stun.Integrity, make([]byte, 20)}))
	f.Fuzz(func(t *testing.T, b []byte) {
		var m stun.Message
		if m.Parse(b, stun.Client) != stun.DropNone {
			return
		}
		code := m.Code()
		clean := bytes.Clone(b)
		zeroPadding(clean)
		for _, edit := range []func(stun.Attr, []byte) ([]byte, bool){withoutReason, withoutToken} {
			after := rewrite(nil, clean, edit)
			if stun.CodeOf(after) != code || len(after) > len(b) || len(after)%4 != 0 {
				t.Fatalf("%x became %x", b, after)
			}
		}
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
