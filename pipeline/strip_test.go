package pipeline

import (
	"bytes"
	"encoding/binary"
	"net/netip"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/pipeline/frame"
	"github.com/sluice-vpn/sluice/pipeline/udp"
	"github.com/sluice-vpn/sluice/tun/tuntest"
)

// sieve is the inbound lane of a pipeline that does not run, and what became of the datagrams it was given.
type sieve struct {
	*Pipeline
	strays []Stray
}

var (
	sieveRelay    = netip.MustParseAddrPort("198.51.100.1:3478")
	sieveStranger = netip.MustParseAddrPort("198.51.100.1:3479")
)

func newSieve(tb testing.TB) *sieve {
	s := new(sieve)
	var err error
	s.Pipeline, err = New(Config{
		Device: tuntest.New(tuntest.Config{}),
		Stray:  func(stray Stray) { s.strays = append(s.strays, stray) },
	})
	if err != nil {
		tb.Fatal(err)
	}
	s.SetRelays([]netip.AddrPort{sieveRelay})
	return s
}

// pass gives the lane one message of one datagram.
func (s *sieve) pass(src netip.AddrPort, b []byte) {
	s.strays = s.strays[:0]
	in := s.shards[0].inbound
	in.messages[0] = udp.Datagrams{Buf: in.messages[0].Buf, Data: b, SegmentSize: max(1, len(b)), Src: src}
	in.message(time.Hour, 0)
	in.deliver(time.Hour)
}

// counts is how many datagrams went each way; mail empties the mailbox.
func (s *sieve) counts() (mail []letter, dropped [dropReasons]uint64, received uint64) {
	for len(s.mailbox) > 0 {
		mail = append(mail, <-s.mailbox)
	}
	for i := range dropped {
		dropped[i] = s.shards[0].stats.drops[i].Swap(0)
	}
	return mail, dropped, s.shards[0].stats.ChannelReceived.Swap(0)
}

// What ChannelData is, and what its payload is, is judged by source and first bytes alone.
func TestStripChannelData(t *testing.T) {
	frame := func(payload []byte, padding int) []byte {
		b := make([]byte, frame.ChannelHeaderSize, frame.ChannelHeaderSize+len(payload)+padding)
		frame.PutChannelHeader(b, 0x4001, uint16(len(payload)))
		return append(append(b, payload...), make([]byte, padding)...)
	}
	message := func(kind byte, length int) []byte {
		b := make([]byte, length)
		b[0] = kind
		return b
	}
	const none = dropReasons
	cases := []struct {
		name  string
		src   netip.AddrPort
		b     []byte
		mail  bool
		stray string // its data
		drop  dropReason
	}{
		{"initiation", sieveRelay, frame(message(1, 148), 0), true, "", none},
		{"initiation, padded", sieveRelay, frame(message(1, 148), 3), true, "", none},
		{"data", sieveRelay, frame(message(4, 64), 0), false, "", dropUnknownIndex},
		{"data that is too short", sieveRelay, frame(message(4, 31), 0), false, "", dropMalformed},
		{"other", sieveRelay, frame([]byte("other"), 3), false, "other", none},
		{"ChannelData in ChannelData", sieveRelay, frame([]byte("\x40\x01\x00\x00"), 0), false, "\x40\x01\x00\x00", none},
		{"one byte", sieveRelay, []byte{0x40}, false, "", dropChannelData},
		{"three bytes", sieveRelay, []byte{0x4F, 0xFF, 0}, false, "", dropChannelData},
		{"one byte missing", sieveRelay, frame(message(4, 64), 0)[:67], false, "", dropChannelData},
		{"of a stranger", sieveStranger, frame(message(4, 64), 0), false, string(frame(message(4, 64), 0)), none},
		{"one byte of a stranger", sieveStranger, []byte{0x40}, false, "\x40", none},
	}
	s := newSieve(t)
	for _, c := range cases {
		s.pass(c.src, c.b)
		mail, dropped, received := s.counts()
		var want [dropReasons]uint64
		if c.drop != none {
			want[c.drop] = 1
		}
		relayed := c.src == sieveRelay && c.drop != dropChannelData
		channel := uint16(0)
		if relayed {
			channel = 0x4001
		}
		if dropped != want || (received == 1) != relayed {
			t.Errorf("%s: dropped %v, %d received", c.name, dropped, received)
		}
		if len(mail) == 1 != c.mail || c.mail && (mail[0].src != Path{Dst: sieveRelay, Channel: channel, Relayed: channel != 0} || mail[0].length != 148) {
			t.Errorf("%s: mail %+v", c.name, mail)
		}
		if len(s.strays) == 1 != (c.stray != "") || c.stray != "" &&
			(string(s.strays[0].Data) != c.stray || s.strays[0].Channel != channel || s.strays[0].Src != c.src) {
			t.Errorf("%s: strays %+v", c.name, s.strays)
		}
	}
}

// A run of equal ChannelData is taken apart at its segment size, headers included; the odd one at its end too. A bad one in the
// middle is lost alone.
func TestStripChannelDataRun(t *testing.T) {
	s := newSieve(t)
	var run []byte
	for i := range 5 {
		b := []byte("\x40\x00\x00\x03abc")
		binary.BigEndian.PutUint16(b, 0x4001+uint16(i%2))
		if i == 2 {
			b[3] = 4
		}
		run = append(run, b...)
	}
	run = append(run, "\x40\x01\x00\x01z"...)
	in := s.shards[0].inbound
	in.messages[0] = udp.Datagrams{Data: run, SegmentSize: 7, Src: sieveRelay}
	in.message(time.Hour, 0)
	_, dropped, received := s.counts()
	if len(s.strays) != 5 || received != 5 || dropped[dropChannelData] != 1 {
		t.Fatalf("%d strays, %d received, %d dropped", len(s.strays), received, dropped[dropChannelData])
	}
	for i, want := range []struct {
		channel uint16
		data    string
	}{{0x4001, "abc"}, {0x4002, "abc"}, {0x4002, "abc"}, {0x4001, "abc"}, {0x4001, "z"}} {
		if got := s.strays[i]; got.Channel != want.channel || string(got.Data) != want.data {
			t.Errorf("stray %d is %+v", i, got)
		}
	}
}

// Whatever comes, from a relay or not, goes one way and is counted there once.
func FuzzStripChannelData(f *testing.F) {
	data := append([]byte{0x40, 1, 0, 32, 4}, make([]byte, 31)...)
	f.Add(data, true)
	f.Add(data, false)
	f.Add(data[4:], true)
	f.Add(append([]byte{0x40, 1, 0, 148, 1}, make([]byte, 147)...), true)
	f.Add([]byte{0x4F, 1, 0}, true)
	f.Add([]byte("\x40\x01\x00\x04\x40\x01\x00\x09"), true)
	s := newSieve(f)
	f.Fuzz(func(t *testing.T, b []byte, relayed bool) {
		if len(b) == 0 || len(b) > udp.MaxDatagram {
			return
		}
		src := sieveStranger
		if relayed {
			src = sieveRelay
		}
		s.pass(src, b)
		mail, dropped, received := s.counts()
		outcomes := len(mail) + len(s.strays)
		for _, n := range dropped {
			outcomes += int(n)
		}
		framed := relayed && b[0]>>4 == 4
		fits := framed && len(b) >= 4 && 4+int(b[2])<<8+int(b[3]) <= len(b)
		if outcomes != 1 || (received == 1) != fits || (dropped[dropChannelData] == 1) != (framed && !fits) {
			t.Fatalf("%d outcomes, %d received, dropped %v", outcomes, received, dropped)
		}
		if len(s.strays) == 1 && fits && !bytes.Equal(s.strays[0].Data, b[4:4+int(b[2])<<8+int(b[3])]) {
			t.Fatalf("%x was stripped to %x", b, s.strays[0].Data)
		}
		if len(mail) == 1 && (mail[0].src.Channel != 0) != fits {
			t.Fatalf("mail over channel %#x", mail[0].src.Channel)
		}
		if dropped[dropUnknownIndex] == 1 && len(b) < crypto.SizeKeepalive {
			t.Fatalf("%d bytes were taken as data", len(b))
		}
	})
}

// indication makes a Data indication as a TURN server does (RFC 8656, section 11.3), its attributes in that order.
func indication(peer netip.AddrPort, data []byte) []byte {
	b := []byte{0, 0x17, 0, 0, 0x21, 0x12, 0xA4, 0x42, 1, 2, 3, 4, 5, 6, 7, 8, 9, 10, 11, 12, 0, 0x12, 0, 8}
	if peer.Addr().Is6() {
		b[23] = 20
	}
	b = frame.AppendXORAddress(b, peer, b)
	b = binary.BigEndian.AppendUint16(append(b, 0, 0x13), uint16(len(data)))
	b = append(b, data...)
	b = append(b, make([]byte, -len(b)&3)...)
	binary.BigEndian.PutUint16(b[2:], uint16(len(b)-frame.HeaderSize))
	return b
}
