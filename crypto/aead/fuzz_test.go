package aead

import (
	"bytes"
	"encoding/binary"
	"testing"
)

// FuzzDifferential makes a run out of the input and compares every implementation with the generic one, byte by byte:
// what Seal writes, what Open says of it, and what Open says of it with one bit flipped.
//
// Of plan, four bytes describe one packet: 14 bits of length, 4 bits of padding, in place or not, and two offsets.
func FuzzDifferential(f *testing.F) {
	f.Add([]byte("a key of any length"), uint64(1), []byte("\x40\x00\x00\x00"), uint16(0))
	f.Add([]byte(""), uint64(1<<32-2), bytes.Repeat([]byte("\x8c\x05\x10\x37"), 17), uint16(900))
	f.Add([]byte{0xff}, ^uint64(0)-3, []byte("\x00\x00\x00\x00\x0f\x00\xf0\x01\x3f\xc0\x08\x02\x41\x00\x00\x03"), uint16(77))
	f.Fuzz(func(t *testing.T, keyBytes []byte, counter uint64, plan []byte, flip uint16) {
		var key [KeySize]byte
		copy(key[:], keyBytes)
		want := fuzzRun(NewGeneric(&key), counter, plan, flip)
		for _, impl := range Implementations() {
			if !impl.Available {
				continue
			}
			if got := fuzzRun(impl.New(&key), counter, plan, flip); !bytes.Equal(got, want) {
				t.Errorf("%s differs from generic", impl.Name)
			}
		}
	})
}

// fuzzRun returns everything that sealing and opening the planned run gave, one after another.
func fuzzRun(c Cipher, counter uint64, plan []byte, flip uint16) []byte {
	var seal, open []Packet
	for ; len(plan) >= 4 && len(seal) < 70; plan = plan[4:] {
		n, pad := int(binary.LittleEndian.Uint16(plan))&0x3fff, int(plan[2]>>4)
		inPlace, at := plan[2]&1 == 1, int(plan[3]&63)
		_, dst := aligned(n+pad+Overhead, at, 0)
		src := dst[:n]
		if !inPlace {
			_, src = aligned(n, int(plan[3]>>2), 0)
		}
		for i := range src {
			src[i] = byte(i*7 + len(seal))
		}
		seal = append(seal, Packet{Dst: dst, Src: src, Counter: counter + uint64(len(seal))})
		open = append(open, Packet{Dst: dst, Src: dst, Counter: counter + uint64(len(open))})
		if !inPlace {
			open[len(open)-1].Dst = make([]byte, n+pad)
		}
	}
	c.Seal(seal)
	var seen []byte
	for i := range seal {
		seen = append(seen, seal[i].Dst...)
	}
	if len(open) > 0 {
		victim := open[int(flip)%len(open)].Src
		victim[int(flip)%len(victim)] ^= byte(flip >> 8)
	}
	seen = append(seen, byte(c.Open(open)))
	for i := range open {
		if open[i].OK {
			seen = append(seen, 1)
			seen = append(seen, open[i].Dst[:len(open[i].Src)-Overhead]...)
		} else {
			seen = append(seen, 0)
		}
	}
	return seen
}
