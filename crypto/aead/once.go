package aead

import "golang.org/x/crypto/chacha20poly1305"

// SealOnce encrypts plaintext into dst, which is Overhead longer, and authenticates data with it, under a key that seals
// nothing else: the nonce is zero. No copy of the key is left on the heap; what the stack holds is the caller's to overwrite.
func SealOnce(dst []byte, key *[KeySize]byte, plaintext, data []byte) {
	var nonce [chacha20poly1305.NonceSize]byte
	var g generic
	g.init(key)
	g.aead.Seal(dst[:0], nonce[:], plaintext, data)
	g.Wipe()
}

// OpenOnce is the reverse: it decrypts ciphertext into dst, which is Overhead shorter. False: it is not authentic.
func OpenOnce(dst []byte, key *[KeySize]byte, ciphertext, data []byte) bool {
	var nonce [chacha20poly1305.NonceSize]byte
	var g generic
	g.init(key)
	_, err := g.aead.Open(dst[:0], nonce[:], ciphertext, data)
	g.Wipe()
	return err == nil
}
