package node

import "github.com/sluice-vpn/sluice/crypto/aead"

// nullCipher copies. It shows what a tunnel would do if encryption cost nothing; it must never carry real traffic.
type nullCipher struct{}

func newNullCipher(*[aead.KeySize]byte) aead.Cipher { return nullCipher{} }

func (nullCipher) Seal(run []aead.Packet) {
	for i := range run {
		p := &run[i]
		clear(p.Dst[copy(p.Dst, p.Src):])
	}
}

func (nullCipher) Open(run []aead.Packet) int {
	opened := 0
	for i := range run {
		p := &run[i]
		p.OK = len(p.Src) >= aead.Overhead
		if p.OK {
			copy(p.Dst, p.Src[:len(p.Src)-aead.Overhead])
			opened++
		}
	}
	return opened
}

func (nullCipher) Wipe() {}
