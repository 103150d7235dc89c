package ip

import (
	"encoding/binary"
	"math/bits"
)

func fusedTry(dst, src []byte, initial uint16) uint16 {
	acc := uint64(bits.ReverseBytes16(initial))
	dst = dst[:len(src)]
	for len(src) >= 64 && len(dst) >= 64 {
		v0 := binary.LittleEndian.Uint64(src[0:8])
		v1 := binary.LittleEndian.Uint64(src[8:16])
		v2 := binary.LittleEndian.Uint64(src[16:24])
		v3 := binary.LittleEndian.Uint64(src[24:32])
		v4 := binary.LittleEndian.Uint64(src[32:40])
		v5 := binary.LittleEndian.Uint64(src[40:48])
		v6 := binary.LittleEndian.Uint64(src[48:56])
		v7 := binary.LittleEndian.Uint64(src[56:64])
		var carry uint64
		acc, carry = bits.Add64(acc, v0, 0)
		acc, carry = bits.Add64(acc, v1, carry)
		acc, carry = bits.Add64(acc, v2, carry)
		acc, carry = bits.Add64(acc, v3, carry)
		acc, carry = bits.Add64(acc, v4, carry)
		acc, carry = bits.Add64(acc, v5, carry)
		acc, carry = bits.Add64(acc, v6, carry)
		acc, carry = bits.Add64(acc, v7, carry)
		acc += carry
		binary.LittleEndian.PutUint64(dst[0:8], v0)
		binary.LittleEndian.PutUint64(dst[8:16], v1)
		binary.LittleEndian.PutUint64(dst[16:24], v2)
		binary.LittleEndian.PutUint64(dst[24:32], v3)
		binary.LittleEndian.PutUint64(dst[32:40], v4)
		binary.LittleEndian.PutUint64(dst[40:48], v5)
		binary.LittleEndian.PutUint64(dst[48:56], v6)
		binary.LittleEndian.PutUint64(dst[56:64], v7)
		src, dst = src[64:], dst[64:]
	}
	copy(dst, src)
	return sumTail(src, acc)
}
