//go:build !amd64 || purego

package aead

func hasAVX512() bool { return false }

// newAVX512 is only here to be listed; hasAVX512 keeps it from being called.
func newAVX512(*[KeySize]byte) Cipher { panic("aead: AVX-512 is not in this build") }
