//go:build linux && !sluice_portable

package tun

import (
	"bytes"
	"encoding/binary"
	"encoding/hex"
	"net/netip"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluice-vpn/sluice/tun/ip"
)

// The question is for the answers' tuple: addresses and ports exchanged, the ICMP type that of the answer.
func TestConntrackRequest(t *testing.T) {
	packet4 := func(protocol uint8, body ...byte) []byte {
		b := append([]byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, protocol, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2}, body...)
		return append(b, make([]byte, max(0, 28-len(b)))...)
	}
	udp := packet4(ip.ProtocolUDP, 0x12, 0x34, 0, 53)
	echo := packet4(ip.ProtocolICMP, 8, 0, 0, 0, 0xab, 0xcd)
	six := append([]byte{0x60, 0, 0, 0, 0, 8, ip.ProtocolICMPv6, 64}, make([]byte, 40)...)
	six[8], six[23], six[24], six[39], six[40], six[44] = 0xfd, 1, 0xfd, 2, 128, 7
	later := bytes.Clone(udp)
	later[7] = 1
	for name, c := range map[string]struct {
		packet []byte
		want   []byte // protocol attributes' values in their order; nil: no question
	}{
		"UDP": {udp, []byte{17, 0, 53, 0x12, 0x34}}, "echo": {echo, []byte{1, 0xab, 0xcd, 0, 0}}, "IPv6 echo": {six, []byte{58, 7, 0, 129, 0}},
		"another protocol": {packet4(47), []byte{47}}, "a later fragment": {later, nil}, "cut": {udp[:24], nil},
	} {
		request, ok := appendConntrackRequest(nil, c.packet)
		if ok != (c.want != nil) {
			t.Errorf("%s: asked: %v, want %v", name, ok, c.want != nil)
			continue
		}
		if !ok {
			continue
		}
		if got := int(binary.NativeEndian.Uint32(request)); got != len(request) {
			t.Errorf("%s: length %d, want %d", name, got, len(request))
		}
		tuple := findAttr(request[netlinkHeaderLen+netfilterLen:], attrTupleReply)
		both, size, kind := ip.Addresses(c.packet), 4, uint16(attrSource4)
		if c.packet[0]>>4 == 6 {
			size, kind = 16, attrSource6
		}
		addresses := findAttr(tuple, attrTupleIP)
		if src, dst := findAttr(addresses, kind), findAttr(addresses, kind+1); !bytes.Equal(src, both[size:]) || !bytes.Equal(dst, both[:size]) {
			t.Errorf("%s: from %x to %x, want %x exchanged", name, src, dst, both)
		}
		var got []byte
		for kind := uint16(1); kind < 10; kind++ {
			got = append(got, findAttr(findAttr(tuple, attrTupleProtocol), kind)...)
		}
		if !bytes.Equal(got, c.want) {
			t.Errorf("%s: %s, want %s", name, hex.EncodeToString(got), hex.EncodeToString(c.want))
		}
	}
}

// Whatever the answer is, nothing is read outside of it, and only a whole address counts.
func TestConntrackAnswer(t *testing.T) {
	for _, want := range []netip.Addr{netip.MustParseAddr("10.0.0.1"), netip.MustParseAddr("fd00::1")} {
		kind := uint16(attrSource4)
		if want.Is6() {
			kind = attrSource6
		}
		answer := make([]byte, netlinkHeaderLen+netfilterLen)
		answer = appendAttr(answer, attrTupleOriginal, appendAttr(nil, attrTupleIP|unix.NLA_F_NESTED, appendAttr(nil, kind, want.AsSlice())))
		whole := len(answer)
		answer = appendAttr(answer, attrTupleReply, []byte("whatever"))
		binary.NativeEndian.PutUint32(answer, uint32(len(answer)))
		binary.NativeEndian.PutUint16(answer[4:], conntrackGet)
		for n := range len(answer) + 1 {
			got, ok := parseConntrackAnswer(answer[:n:n])
			if ok != (n >= whole) || ok && got != want {
				t.Errorf("%d of %d bytes: %v, %v, want %v from %d on", n, len(answer), got, ok, want, whole)
			}
		}
		binary.NativeEndian.PutUint16(answer[4:], unix.NLMSG_ERROR)
		if _, ok := parseConntrackAnswer(answer); ok {
			t.Error("an error was taken for an answer")
		}
	}
}
