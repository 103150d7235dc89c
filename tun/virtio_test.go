package tun

import (
	"bytes"
	"encoding/binary"
	"testing"

	"github.com/sluice-vpn/sluice/tun/ip"
)

// virtioBytes lays a header out by hand, in the order of include/uapi/linux/virtio_net.h.
func virtioBytes(flags, kind uint8, headerLen, size, start, offset uint16) []byte {
	b := []byte{flags, kind}
	for _, v := range []uint16{headerLen, size, start, offset} {
		b = binary.NativeEndian.AppendUint16(b, v)
	}
	return b
}

func TestDecodeVirtio(t *testing.T) {
	tcp := spec{payload: make([]byte, 300), options: []byte{254, 4, 0, 0}}.bytes()
	tcp6 := spec{payload: make([]byte, 300), six: true}.bytes()
	udp := spec{payload: make([]byte, 300), udp: true}.bytes()
	udp6 := spec{payload: make([]byte, 300), udp: true, six: true}.bytes()
	fragment := spec{payload: make([]byte, 300), fragment: true}.bytes()
	for _, c := range []struct {
		name   string
		header []byte
		packet []byte
		want   Offload
		fault  fault
	}{
		{"plain", virtioBytes(0, 0, 0, 0, 0, 0), tcp, Offload{}, faultNone},
		{"valid", virtioBytes(2, 0, 0, 0, 0, 0), tcp, Offload{}, faultNone},
		{"checksum", virtioBytes(1, 0, 0, 0, 20, 16), tcp, Offload{NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 16}, faultNone},
		{"checksum in IP header", virtioBytes(1, 0, 0, 0, 10, 0), tcp, Offload{}, faultMalformed},
		{"checksum behind the end", virtioBytes(1, 0, 0, 0, 20, 323), tcp, Offload{}, faultMalformed},
		{"TCPv4, wrong hdr_len", virtioBytes(1, 1, 9999, 100, 20, 16), tcp, Offload{
			Type: GSOTCPv4, NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 16, HeaderLen: 44, SegmentSize: 100}, faultNone},
		{"TCPv4 with ECN", virtioBytes(1, 0x81, 44, 100, 20, 16), tcp, Offload{
			Type: GSOTCPv4, NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 16, HeaderLen: 44, SegmentSize: 100}, faultNone},
		{"TCPv6", virtioBytes(1, 4, 60, 100, 40, 16), tcp6, Offload{
			Type: GSOTCPv6, NeedsChecksum: true, ChecksumStart: 40, ChecksumOffset: 16, HeaderLen: 60, SegmentSize: 100}, faultNone},
		{"UDPv4", virtioBytes(1, 5, 28, 100, 20, 6), udp, Offload{
			Type: GSOUDPv4, NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 6, HeaderLen: 28, SegmentSize: 100}, faultNone},
		{"UDPv6", virtioBytes(1, 5, 48, 100, 40, 6), udp6, Offload{
			Type: GSOUDPv6, NeedsChecksum: true, ChecksumStart: 40, ChecksumOffset: 6, HeaderLen: 48, SegmentSize: 100}, faultNone},
		{"TCPv6 says v4", virtioBytes(1, 1, 60, 100, 40, 16), tcp6, Offload{}, faultUnserved},
		{"TCPv4 says v6", virtioBytes(1, 4, 60, 100, 20, 16), tcp, Offload{}, faultUnserved},
		{"UDP says TCP", virtioBytes(1, 1, 60, 100, 20, 16), udp, Offload{}, faultUnserved},
		{"TCP says UDP", virtioBytes(1, 5, 60, 100, 20, 6), tcp, Offload{}, faultUnserved},
		{"UFO", virtioBytes(1, 3, 28, 100, 20, 6), udp, Offload{}, faultUnserved},
		{"size 0", virtioBytes(1, 1, 44, 0, 20, 16), tcp, Offload{}, faultUnserved},
		{"wrong start", virtioBytes(1, 1, 44, 100, 24, 16), tcp, Offload{}, faultMalformed},
		{"wrong offset", virtioBytes(1, 1, 44, 100, 20, 6), tcp, Offload{}, faultMalformed},
		{"fragment", virtioBytes(1, 1, 40, 100, 20, 16), fragment, Offload{}, faultUnserved},
		{"not IP", virtioBytes(0, 0, 0, 0, 0, 0), []byte{0x50, 1, 2, 3}, Offload{}, faultMalformed},
	} {
		t.Run(c.name, func(t *testing.T) {
			data, o, f := decodeVirtio(c.header, append(bytes.Clone(c.packet), 0, 0, 0))
			if f != c.fault || f == faultNone && o != c.want {
				t.Fatalf("%+v, fault %d, want %+v, %d", o, f, c.want, c.fault)
			}
			if f == faultNone && !bytes.Equal(data, c.packet) {
				t.Error("not trimmed to the IP length")
			}
		})
	}
}

func TestEncodeVirtio(t *testing.T) {
	for _, c := range []struct {
		o    Offload
		want []byte
	}{
		{Offload{}, virtioBytes(0, 0, 0, 0, 0, 0)},
		{Offload{ChecksumValid: true}, virtioBytes(2, 0, 0, 0, 0, 0)},
		{Offload{NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 6}, virtioBytes(1, 0, 0, 0, 20, 6)},
		{Offload{Type: GSOTCPv4, NeedsChecksum: true, ChecksumStart: 20, ChecksumOffset: 16, HeaderLen: 52, SegmentSize: 1368},
			virtioBytes(1, 1, 52, 1368, 20, 16)},
		{Offload{Type: GSOTCPv6, NeedsChecksum: true, ChecksumStart: 40, ChecksumOffset: 16, HeaderLen: 72, SegmentSize: 1348},
			virtioBytes(1, 4, 72, 1348, 40, 16)},
		{Offload{Type: GSOUDPv4, HeaderLen: 28, SegmentSize: 9}, virtioBytes(0, 5, 28, 9, 0, 0)},
		{Offload{Type: GSOUDPv6, HeaderLen: 48, SegmentSize: 9}, virtioBytes(0, 5, 48, 9, 0, 0)},
	} {
		got := bytes.Repeat([]byte{0xaa}, virtioHeaderLen)
		encodeVirtio(got, &c.o)
		if !bytes.Equal(got, c.want) {
			t.Errorf("%+v: %x, want %x", c.o, got, c.want)
		}
	}
}

func TestDecodeVirtioTruncated(t *testing.T) {
	for _, s := range []spec{{payload: make([]byte, 30)}, {six: true, udp: true, payload: make([]byte, 30)}} {
		p := s.superpacket(10)
		var header [virtioHeaderLen]byte
		encodeVirtio(header[:], &p.Offload)
		for n := range p.Data {
			if _, _, f := decodeVirtio(header[:], p.Data[:n]); f == faultNone {
				t.Errorf("%+v cut to %d bytes accepted", s, n)
			}
		}
	}
}

// FuzzDecodeVirtio: whatever is accepted can be segmented.
func FuzzDecodeVirtio(f *testing.F) {
	for i := range 4 {
		p := spec{six: i&1 != 0, udp: i&2 != 0, payload: make([]byte, 100)}.superpacket(40)
		header := make([]byte, virtioHeaderLen)
		encodeVirtio(header, &p.Offload)
		f.Add(header, p.Data)
	}
	f.Fuzz(func(t *testing.T, header, packet []byte) {
		if len(header) < virtioHeaderLen {
			return
		}
		data, o, f := decodeVirtio(header, packet)
		if f != faultNone {
			return
		}
		if n, valid := ip.Length(data); !valid || n != len(data) {
			t.Fatal("not an IP packet")
		}
		if int(o.HeaderLen) > len(data) || int(o.ChecksumStart)+int(o.ChecksumOffset) > len(data) {
			t.Fatalf("%+v outside of %d bytes", o, len(data))
		}
		var s Segmenter
		if err := s.Init(&Superpacket{Data: data, Offload: o}); err != nil {
			t.Fatal(err)
		}
	})
}
