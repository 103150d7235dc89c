package ip

import (
	"encoding/binary"
	"math/bits"
)

// The Internet checksum (RFC 1071) is the complement of the one's-complement sum of 16-bit big-endian words. All
// functions here return and take the sum folded to 16 bits and not inverted, so that sums may be added up with [Add];
// a checksum field holds the complement. A slice of odd length counts as if a zero byte followed, so only the last
// of several added slices may be odd.
//
// One's-complement sums do not depend on byte order except for a final swap (RFC 1071, section 2 B), so the fast code
// adds little-endian words: 64-bit ones with carry, or with AVX2 eight of 32 bit at a time.

// Add adds two folded sums.
func Add(a, b uint16) uint16 {
	s, carry := bits.Add32(uint32(a)<<16, uint32(b)<<16, 0)
	return uint16(s>>16) + uint16(carry)
}

// Sum adds the words of b to initial.
func Sum(b []byte, initial uint16) uint16 {
	if vectors && len(b) >= vectorsMin {
		n := len(b) &^ 63
		return sumTail(b[n:], uint64(bits.ReverseBytes16(initial))+sumVectors(b[:n]))
	}
	return sumWords(b, initial)
}

// vectorsMin is where the vector code begins to win, bytes.
const vectorsMin = 128

func sumWords(b []byte, initial uint16) uint16 {
	acc := uint64(bits.ReverseBytes16(initial))
	var carry uint64
	for len(b) >= 64 {
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b[0:8]), 0)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b[8:16]), carry)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b[16:24]), carry)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b[24:32]), carry)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b[32:40]), carry)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b[40:48]), carry)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b[48:56]), carry)
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b[56:64]), carry)
		acc += carry
		b = b[64:]
	}
	return sumTail(b, acc)
}

// sumTail adds fewer than 64 bytes and folds.
func sumTail(b []byte, acc uint64) uint16 {
	var carry uint64
	for len(b) >= 8 {
		acc, carry = bits.Add64(acc, binary.LittleEndian.Uint64(b), 0)
		acc += carry
		b = b[8:]
	}
	var last uint64
	if len(b) >= 4 {
		last = uint64(binary.LittleEndian.Uint32(b))
		b = b[4:]
	}
	if len(b) >= 2 {
		last += uint64(binary.LittleEndian.Uint16(b))
		b = b[2:]
	}
	if len(b) == 1 {
		last += uint64(b[0])
	}
	acc, carry = bits.Add64(acc, last, 0)
	return fold(acc + carry)
}

// fold reduces a sum of little-endian words to 16 bits, big-endian.
func fold(acc uint64) uint16 {
	acc = acc>>32 + acc&0xffffffff
	acc = acc>>32 + acc&0xffffffff
	s := uint32(acc>>16) + uint32(acc&0xffff)
	return bits.ReverseBytes16(uint16(s>>16 + s))
}

// CopySum copies src into dst, which must be at least as long, and returns the sum of src added to initial. dst and src
// must not overlap.
func CopySum(dst, src []byte, initial uint16) uint16 {
	dst = dst[:len(src)]
	if vectors && len(src) >= vectorsMin {
		n := len(src) &^ 63
		sum := copySumVectors(dst[:n], src[:n])
		copy(dst[n:], src[n:])
		return sumTail(src[n:], uint64(bits.ReverseBytes16(initial))+sum)
	}
	copy(dst, src)
	return sumWords(src, initial)
}

// PseudoSum is the sum of the pseudo-header of TCP and UDP (RFC 9293, section 3.1; RFC 8200, section 8.1) for a packet
// for which [Length] was ok. length is that of transport header and payload, in bytes.
func PseudoSum(p []byte, protocol uint8, length int) uint16 {
	return Sum(Addresses(p), Add(uint16(protocol), uint16(length)))
}
