package tun

import (
	"bytes"
	"encoding/binary"
	"math/rand/v2"
	"slices"
	"testing"

	"github.com/sluice-vpn/sluice/tun/ip"
)

// extension stands between the IP header and the transport header: an IPv6 extension header of a protocol, or one IPv4 option.
type extension struct {
	name     string
	protocol uint8  // IPv6
	body     []byte // whole; of IPv6 the first byte is overwritten with the next header's number
	routed   bool   // the IP header has not the final destination
}

// padded is a hop-by-hop or destination options header with nothing but padding (RFC 8200, section 4.2).
func padded(name string, protocol uint8, words int) extension {
	n := 8 + 8*words
	body := make([]byte, n)
	body[1], body[2], body[3] = uint8(words), 1, uint8(n-4)
	return extension{name, protocol, body, false}
}

// routing is a routing header with two addresses, of which left are still to be visited.
func routing(name string, kind, left uint8) extension {
	body := make([]byte, 8+2*16)
	body[1], body[2], body[3] = 4, kind, left
	body[8], body[39] = 0xfd, 7
	return extension{name, ip.ProtocolRouting, body, left > 0}
}

var extensions6 = []extension{
	padded("hop-by-hop", ip.ProtocolHopByHop, 0),
	padded("destination options", ip.ProtocolDestOptions, 2),
	routing("source route", 0, 2),
	routing("mobile IPv6", 2, 1),
	routing("RPL", 3, 1),
	routing("segment routing", 4, 1),
	routing("unknown routing", 253, 7),
	routing("segment routing at its end", 4, 0),
	{"atomic fragment", ip.ProtocolFragment, []byte{0, 0, 0, 0, 1, 2, 3, 4}, false},
}

var extensions4 = []extension{
	{name: "no operation", body: []byte{1, 1, 1, 1}},
	{name: "router alert", body: []byte{148, 4, 0, 0}},
	{name: "record route", body: []byte{7, 11, 4, 0, 0, 0, 0, 0, 0, 0, 0, 0}},
	{name: "timestamp", body: []byte{68, 8, 5, 0, 0, 0, 0, 0}},
	{name: "loose source route", body: []byte{131, 7, 4, 10, 255, 255, 254, 0}, routed: true},
	{name: "strict source route", body: []byte{137, 7, 4, 10, 255, 255, 254, 0}, routed: true},
}

// extend returns the packet with extensions; where one is routed, the IP header's destination is another than the one that the
// transport checksum was made with.
func extend(packet []byte, list []extension) []byte {
	six := packet[0]>>4 == 6
	var between []byte
	routed := false
	for i, e := range list {
		body := bytes.Clone(e.body)
		if six {
			body[0] = packet[6]
			if i+1 < len(list) {
				body[0] = list[i+1].protocol
			}
		}
		between = append(between, body...)
		routed = routed || e.routed
	}
	if len(list) == 0 {
		return bytes.Clone(packet)
	}
	if six {
		p := slices.Concat(packet[:ip.IPv6HeaderLen], between, packet[ip.IPv6HeaderLen:])
		p[6] = list[0].protocol
		binary.BigEndian.PutUint16(p[4:], uint16(len(p)-ip.IPv6HeaderLen))
		if routed {
			p[39] ^= 0x5a
		}
		return p
	}
	p := slices.Concat(packet[:ip.IPv4HeaderLen], between, packet[ip.IPv4HeaderLen:])
	p[0] = 0x40 | uint8(ip.IPv4HeaderLen+len(between))/4
	if routed {
		p[19] ^= 0x5a
	}
	ip.IPv4(p).SetTotalLen(len(p))
	ip.IPv4(p).SetChecksum()
	return p
}

// extendSuper is extend for a superpacket.
func extendSuper(p *Superpacket, list []extension) *Superpacket {
	more := &Superpacket{Data: extend(p.Data, list), Offload: p.Offload}
	more.ChecksumStart += uint16(len(more.Data) - len(p.Data))
	more.HeaderLen += uint16(len(more.Data) - len(p.Data))
	return more
}

// wantTwin compares what is cut with what gopacket makes of the same description, and the same by way of the virtio-net header.
func wantTwin(t *testing.T, s spec, size int, list []extension) {
	t.Helper()
	p := extendSuper(s.superpacket(size), list)
	var header [virtioHeaderLen]byte
	encodeVirtio(header[:], &p.Offload)
	data, o, f := decodeVirtio(header[:], p.Data)
	o.HeaderLen = p.HeaderLen // which a single packet's does not tell
	if f != faultNone || !bytes.Equal(data, p.Data) || o != p.Offload {
		t.Fatalf("offload %+v decodes as %+v, fault %d", p.Offload, o, f)
	}
	want := [][]byte{s.bytes()}
	if size > 0 {
		want = s.segments(size)
	}
	got := cutAll(t, p)
	if len(got) != len(want) {
		t.Fatalf("%d segments, want %d", len(got), len(want))
	}
	for k := range got {
		if w := extend(want[k], list); !same(got[k], w) {
			t.Fatalf("segment %d of %d\ngot  %x\nwant %x", k, len(got), got[k], w)
		}
	}
}

// Every extension alone, and every pair: superpackets, and single packets whose checksum is to be completed.
func TestSegmenterExtensions(t *testing.T) {
	random := rand.New(rand.NewPCG(21, 22))
	for _, six := range []bool{false, true} {
		all := extensions4
		if six {
			all = extensions6
		}
		for _, a := range all {
			for _, b := range all {
				t.Run(a.name+", "+b.name, func(t *testing.T) {
					for _, udp := range []bool{false, true} {
						s := spec{six: six, udp: udp, id: 0xfffe, seq: 0xfffffff0, flags: ip.TCPCwr | ip.TCPPsh, payload: randomBytes(random, 700)}
						for _, size := range []int{0, 200, 333} {
							wantTwin(t, s, size, []extension{a, b})
							wantTwin(t, s, size, []extension{a})
						}
					}
				})
			}
		}
	}
}

// "If the IPv6 packet contains a Routing header, the Destination Address used in the pseudo-header is that of the final
// destination" (RFC 8200, section 8.1): without a sum to go on from nothing tells which that is.
func TestSegmenterRoutedComplete(t *testing.T) {
	for _, e := range extensions6 {
		p := extendSuper(spec{six: true, payload: make([]byte, 300)}.superpacket(100), []extension{e})
		p.NeedsChecksum = false
		var header [virtioHeaderLen]byte
		encodeVirtio(header[:], &p.Offload)
		wantErr, wantFault := error(nil), faultNone
		if e.routed {
			wantErr, wantFault = ErrMalformed, faultUnserved
		}
		var g Segmenter
		if err := g.Init(p); err != wantErr {
			t.Errorf("%s: %v, want %v", e.name, err, wantErr)
		}
		if _, _, f := decodeVirtio(header[:], p.Data); f != wantFault {
			t.Errorf("%s: fault %d, want %d", e.name, f, wantFault)
		}
	}
}

// What stands alone on its way up stays as it is, and holds up nothing that comes after it.
func TestCoalescerLeavesExtensions(t *testing.T) {
	c := NewCoalescer(allOffloads)
	for _, six := range []bool{false, true} {
		all := extensions4
		if six {
			all = extensions6
		}
		for _, e := range all {
			for _, udp := range []bool{false, true} {
				s := spec{six: six, udp: udp, payload: make([]byte, 300)}
				var packets [][]byte
				for _, p := range s.segments(100) {
					packets = append(packets, extend(p, []extension{e}))
				}
				runs := coalesce(c, packets)
				if len(runs) != len(packets) {
					t.Fatalf("%s: %d runs, want %d", e.name, len(runs), len(packets))
				}
				for i := range runs {
					if got := slices.Concat(runs[i].Pieces...); !bytes.Equal(got, packets[i]) || runs[i].Type != GSONone {
						t.Errorf("%s, packet %d: %+v\ngot  %x\nwant %x", e.name, i, runs[i].Offload, got, packets[i])
					}
				}
			}
		}
	}
}

// FuzzSegmenterTwin compares with gopacket what is cut of any superpacket that the kernel may make; each byte of chain chooses an
// extension.
func FuzzSegmenterTwin(f *testing.F) {
	f.Add(true, false, uint8(ip.TCPPsh), uint16(200), []byte{5}, []byte("segment routing over TCP"))
	f.Add(false, true, uint8(0), uint16(7), []byte{4, 0}, []byte("a source route over UDP"))
	f.Fuzz(func(t *testing.T, six, udp bool, flags uint8, size uint16, chain, payload []byte) {
		all, most := extensions4, 3 // 40 bytes of options
		if six {
			all, most = extensions6, 8
		}
		var list []extension
		for _, b := range chain[:min(len(chain), most)] {
			list = append(list, all[int(b)%len(all)])
		}
		if len(payload) == 0 || len(payload) > 20000 || len(payload)/max(int(size), 1) > 500 {
			return
		}
		flags &^= ip.TCPSyn | ip.TCPRst
		wantTwin(t, spec{six: six, udp: udp, flags: flags, payload: payload, seq: uint32(size) << 17, id: size}, int(size), list)
	})
}
