package ip

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// RFC 6040, section 4.2, figure 4; rows are inner marks, columns Not-ECT, ECT(0), ECT(1), CE. -1 is drop.
func TestDecapsulateECN(t *testing.T) {
	outer := []ECN{NotECT, ECT0, ECT1, CE}
	for inner, row := range map[ECN][4]int{
		NotECT: {int(NotECT), int(NotECT), int(NotECT), -1},
		ECT0:   {int(ECT0), int(ECT0), int(ECT1), int(CE)},
		ECT1:   {int(ECT1), int(ECT1), int(ECT1), int(CE)},
		CE:     {int(CE), int(CE), int(CE), int(CE)},
	} {
		for i, want := range row {
			mark, drop := DecapsulateECN(inner, outer[i])
			if drop != (want < 0) || !drop && int(mark) != want {
				t.Errorf("inner %d, outer %d: %d, drop %v, want %d", inner, outer[i], mark, drop, want)
			}
		}
	}
}

func TestSetMark(t *testing.T) {
	for _, p := range [][]byte{packet4(t, 10), packet6(t, 10)} {
		original := bytes.Clone(p)
		for _, mark := range []ECN{CE, ECT0, NotECT, ECT1} {
			SetMark(p, mark)
			if Mark(p) != mark {
				t.Errorf("version %d: mark %d, want %d", Version(p), Mark(p), mark)
			}
			if Version(p) == 4 && (!IPv4(p).ChecksumOK() || p[1]>>2 != 0xb9>>2) {
				t.Errorf("mark %d: header %x", mark, p[:20])
			}
			if Version(p) == 6 && binary.BigEndian.Uint32(p)&^(3<<20) != 0x6b8abcde {
				t.Errorf("mark %d: header %x", mark, p[:40])
			}
		}
		if !bytes.Equal(p, original) { // the packets are built with ECT(1)
			t.Errorf("version %d: not restored\n%x\n%x", Version(p), p, original)
		}
	}
}

// Every TOS and mark, with IDs that bring the checksum near its ends.
func TestSetMarkChecksum(t *testing.T) {
	p := packet4(t, 0)
	for id := range 0x10000 {
		h := IPv4(p)
		h[1] = uint8(id * 7)
		binary.BigEndian.PutUint16(h[4:], uint16(id))
		h.SetChecksum()
		SetMark(p, CE)
		if !h.ChecksumOK() {
			t.Fatalf("ID %d: checksum %#x", id, h[10:12])
		}
	}
}
