//go:build amd64 && !purego

package aead

import (
	"bytes"
	"fmt"
	"math/big"
	"math/rand/v2"
	"testing"
	"unsafe"

	"golang.org/x/crypto/chacha20"
)

func needAVX512(t *testing.T) {
	t.Helper()
	if !hasAVX512() {
		t.Skip("NOT TESTED: this processor has no avx512")
	}
}

// polyRun authenticates texts of one call, each in 2^ways ways, and opens what it sealed, with one text forged.
func polyRun(t *testing.T, keys [][32]byte, texts [][]byte, ways, aad, aadBlocks int) [][]byte {
	t.Helper()
	run, tags := make([]Packet, len(texts)), make([][]byte, len(texts))
	for i, text := range texts {
		sealed := append(bytes.Clone(text), make([]byte, Overhead)...)
		run[i] = Packet{Dst: sealed, Src: sealed, OK: true}
		tags[i] = sealed[len(text):]
	}
	call := func(field int) {
		var rows polyKeys
		copy(rows[:], keys)
		polyLanes((*[64]byte)(unsafe.Pointer(&run[0])), len(run), ways, field, &rows[0], aad, aadBlocks)
		if rows != (polyKeys{}) {
			t.Error("the keys were not wiped")
		}
	}
	call(fieldDst)
	forged := len(run) / 2
	tags[forged][ways*5] ^= 0x40
	call(fieldSrc)
	tags[forged][ways*5] ^= 0x40
	for i := range run {
		if run[i].OK != (i != forged) {
			t.Errorf("text %d of %d, %d ways: OK is %v", i, len(run), 1<<ways, run[i].OK)
		}
	}
	return tags
}

// forWays calls test with each number of packets and each number of ways that the kernel takes.
func forWays(test func(count, ways int)) {
	for ways := range 4 {
		for count := 1; count<<ways <= 8; count++ {
			test(count, ways)
		}
	}
}

func checkPoly(t *testing.T, keys [][32]byte, texts [][]byte, ways int) {
	t.Helper()
	for i, tag := range polyRun(t, keys, texts, ways, 0, 0) {
		if want := polyByHand(keys[i], texts[i]); !bytes.Equal(tag, want[:]) {
			t.Fatalf("text %d of %d, %d ways: key %x text %x:\n got %x\nwant %x", i, len(texts), 1<<ways, keys[i], texts[i], tag, want)
		}
	}
}

// Keys and texts full of ones and zeros make the limbs as long as they get.
func TestPolyLanesExtremes(t *testing.T) {
	needAVX512(t)
	rng := rand.New(rand.NewPCG(31, 32))
	fills := []byte{0x00, 0xff, 0x01, 0x80, 0xfc}
	forWays(func(count, ways int) {
		for n := 0; n <= 400; n += 1 + n/40 {
			keys, texts := make([][32]byte, count), make([][]byte, count)
			for i := range texts {
				copy(keys[i][:16], bytes.Repeat(fills[rng.IntN(5):][:1], 16))
				copy(keys[i][16:], bytes.Repeat(fills[rng.IntN(5):][:1], 16))
				texts[i] = bytes.Repeat(fills[rng.IntN(5):][:1], max(0, n-rng.IntN(3)*rng.IntN(60)))
			}
			checkPoly(t, keys, texts, ways)
		}
	})
}

// With r = 1 a tag is the sum of the blocks. Sums on both sides of 2^130 - 5 and of 2^130 show the last reduction.
func TestPolyLanesReduction(t *testing.T) {
	needAVX512(t)
	forWays(func(count, ways int) {
		for d := int64(-9); d <= 9; d++ {
			keys, texts := make([][32]byte, count), make([][]byte, count)
			for i := range texts {
				keys[i][0] = 1
				// Two blocks of text and one of lengths, each with 2^128 more: 3 * 2^128 + first + 32 * 2^64.
				first := new(big.Int).Lsh(big.NewInt(1), 128)
				first.Sub(first, big.NewInt(5-d-int64(i)%2))
				first.Sub(first, new(big.Int).Lsh(big.NewInt(32), 64))
				texts[i] = make([]byte, 32)
				for k := range 16 {
					texts[i][k] = byte(new(big.Int).Rsh(first, uint(8*k)).Uint64())
				}
			}
			checkPoly(t, keys, texts, ways)
		}
	})
}

// TestWycheproofPolyLanes runs each vector through the Poly1305 kernel, additional data and all; the key of the vector's
// nonce comes from x/crypto's ChaCha20. A vector that must fail has a tag that must not be the kernel's.
func TestWycheproofPolyLanes(t *testing.T) {
	needAVX512(t)
	tested := 0
	for _, v := range wycheproofVectors(t) {
		if len(v.nonce) != chacha20.NonceSize {
			continue
		}
		stream, err := chacha20.NewUnauthenticatedCipher(v.key, v.nonce)
		if err != nil {
			t.Fatal(err)
		}
		var key [32]byte
		stream.XORKeyStream(key[:], key[:])
		front := append(bytes.Clone(v.aad), make([]byte, -len(v.aad)&15)...)
		text := append(bytes.Clone(front), v.ct...)
		forWays(func(count, ways int) {
			keys, texts := make([][32]byte, count), make([][]byte, count)
			for i := range texts {
				keys[i], texts[i] = key, text
			}
			for _, tag := range polyRun(t, keys, texts, ways, len(v.aad), len(front)) {
				if bytes.Equal(tag, v.mac) != (v.Result == "valid") {
					t.Errorf("%d %s, %d packets in %d ways: tag %x, vector %x is %s", v.ID, v.Comment, count, 1<<ways, tag, v.mac, v.Result)
				}
			}
		})
		tested++
	}
	if tested < 250 {
		t.Errorf("only %d vectors were tested", tested)
	}
}

// chachaLanes writes nothing but keys, text and the row behind the keys, also for packets that are not OK.
func TestChachaLanesSkipsForged(t *testing.T) {
	needAVX512(t)
	for count := 1; count <= chunkPackets; count++ {
		t.Run(fmt.Sprint(count), func(t *testing.T) {
			run := make([]Packet, count)
			for i := range run {
				b := bytes.Repeat([]byte{byte(i)}, 100+16*i)
				run[i] = Packet{Dst: b, Src: b, OK: i%3 == 1}
			}
			var keys polyKeys
			chachaLanes(testKey(), (*[64]byte)(unsafe.Pointer(&run[0])), count, fieldSrcLen, 1, allBlocks, &keys[0])
			for i := range run {
				same := bytes.Equal(run[i].Dst, bytes.Repeat([]byte{byte(i)}, len(run[i].Dst)))
				if same == run[i].OK {
					t.Errorf("packet %d: OK is %v, text left alone is %v", i, run[i].OK, same)
				}
			}
			if keys != (polyKeys{}) {
				t.Error("keys were written though block 0 was not asked for")
			}
		})
	}
}
