package aead

import (
	"bytes"
	"math/rand/v2"
	"syscall"
	"testing"
)

// guarded returns size bytes between two pages that no one may touch; a stray read or write is a crash.
func guarded(t testing.TB, size int) []byte {
	t.Helper()
	page := syscall.Getpagesize()
	inner := (size + page - 1) / page * page
	mem, err := syscall.Mmap(-1, 0, inner+2*page, syscall.PROT_READ|syscall.PROT_WRITE, syscall.MAP_ANON|syscall.MAP_PRIVATE)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		if err := syscall.Munmap(mem); err != nil {
			t.Error(err)
		}
	})
	for _, guard := range [][]byte{mem[:page], mem[page+inner:]} {
		if err := syscall.Mprotect(guard, syscall.PROT_NONE); err != nil {
			t.Fatal(err)
		}
	}
	return mem[page : page+inner]
}

// TestGuardPages lays Src and Dst right behind an unmapped page and right before one.
func TestGuardPages(t *testing.T) {
	forEach(t, func(t *testing.T, impl Implementation) {
		key := testKey()
		c := impl.New(key)
		rng := rand.New(rand.NewPCG(21, 22))
		var srcs, dsts [9][]byte
		for i := range srcs {
			srcs[i], dsts[i] = guarded(t, 2048), guarded(t, 2048)
		}
		for n := 0; n <= 1500; n++ {
			if n > 300 && n%7 != 0 {
				continue
			}
			guardedRun(t, c, key, rng, n, srcs[:1+n%9], dsts[:], n%4 < 2)
		}
	})
}

func guardedRun(t *testing.T, c Cipher, key *[KeySize]byte, rng *rand.Rand, n int, srcs, dsts [][]byte, atEnd bool) {
	t.Helper()
	place := func(mem []byte, n int) []byte {
		if atEnd {
			return mem[len(mem)-n:]
		}
		return mem[:n:n]
	}
	run, samples := make([]Packet, len(srcs)), make([]*sample, len(srcs))
	for i := range run {
		s := newSample(t, key, rng, n, uint64(i), layout{})
		samples[i] = s
		run[i] = Packet{Dst: place(dsts[i], n+Overhead), Src: place(srcs[i], n), Counter: s.counter}
		copy(run[i].Src, s.text)
	}
	c.Seal(run)
	for i, s := range samples {
		if !bytes.Equal(run[i].Dst, s.sealed) {
			t.Fatalf("Seal, length %d: wrong from byte %d on", n, firstDifference(run[i].Dst, s.sealed))
		}
		sealed := run[i].Dst
		run[i] = Packet{Dst: place(srcs[i], n), Src: sealed, Counter: s.counter}
		if i%2 == 0 {
			run[i].Dst = sealed[:n:n]
		}
	}
	if got := c.Open(run); got != len(run) {
		t.Fatalf("Open, length %d: %d of %d OK", n, got, len(run))
	}
	for i, s := range samples {
		if !bytes.Equal(run[i].Dst, s.text) {
			t.Fatalf("Open, length %d: wrong from byte %d on", n, firstDifference(run[i].Dst, s.text))
		}
	}
}
