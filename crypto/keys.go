package crypto

import (
	"crypto/subtle"
	"encoding/base64"
	"errors"
	"fmt"
	"io"
	"log/slog"
)

// keySize is the length of every key: Curve25519 private and public keys and the preshared key (paper, section 5.4).
const keySize = 32

// hidden is what secret keys print as, under every verb and in every log.
const hidden = "(hidden)"

// errKey says that a text is not a key. It does not repeat the text, which may be a secret.
var errKey = errors.New("crypto: a key is 32 bytes in base64 or hexadecimal")

// PrivateKey is a Curve25519 private key. The zero value means: none. It prints as "(hidden)".
type PrivateKey [keySize]byte

// PublicKey is a Curve25519 public key; it names a peer. It prints in base64.
type PublicKey [keySize]byte

// PresharedKey is the symmetric key that two peers may share in addition to their key pairs (paper, section 5.2). The
// zero value means none, and takes part in the handshake as 32 zero bytes. It prints as "(hidden)".
type PresharedKey [keySize]byte

// GeneratePrivateKey draws a private key from rand and clamps it. The error is that of rand.
func GeneratePrivateKey(rand io.Reader) (PrivateKey, error) {
	var k PrivateKey
	if _, err := io.ReadFull(rand, k[:]); err != nil {
		return PrivateKey{}, fmt.Errorf("crypto: generate private key: %w", err)
	}
	k.clamp()
	return k, nil
}

// GeneratePresharedKey draws a preshared key from rand. The error is that of rand.
func GeneratePresharedKey(rand io.Reader) (PresharedKey, error) {
	var k PresharedKey
	if _, err := io.ReadFull(rand, k[:]); err != nil {
		return PresharedKey{}, fmt.Errorf("crypto: generate preshared key: %w", err)
	}
	return k, nil
}

// ParsePrivateKey reads a key in base64, as the wg tool writes it.
func ParsePrivateKey(s string) (k PrivateKey, err error) {
	err = parseBase64(k[:], s)
	return k, err
}

// ParsePublicKey reads a key in base64, as the wg tool writes it.
func ParsePublicKey(s string) (k PublicKey, err error) {
	err = parseBase64(k[:], s)
	return k, err
}

// ParsePresharedKey reads a key in base64, as the wg tool writes it.
func ParsePresharedKey(s string) (k PresharedKey, err error) {
	err = parseBase64(k[:], s)
	return k, err
}

// Public returns the public key of k, or the zero key if k is zero.
func (k PrivateKey) Public() PublicKey {
	return publicOf((*[keySize]byte)(&k))
}

// publicOf is Public without a copy of the key.
func publicOf(k *[keySize]byte) (public PublicKey) {
	if !isZero(k) {
		x25519((*[keySize]byte)(&public), k, basePoint[:])
	}
	return public
}

// clamp sets the bits that Curve25519 fixes (RFC 7748, section 5), so that one key has one form.
func (k *PrivateKey) clamp() {
	k[0] &= 248
	k[31] = k[31]&127 | 64
}

// IsZero reports whether k is absent.
func (k PrivateKey) IsZero() bool { return k.Equal(PrivateKey{}) }

// IsZero reports whether k is the zero key.
func (k PublicKey) IsZero() bool { return k == PublicKey{} }

// IsZero reports whether k is absent.
func (k PresharedKey) IsZero() bool { return k.Equal(PresharedKey{}) }

// Equal compares in constant time.
func (k PrivateKey) Equal(o PrivateKey) bool { return subtle.ConstantTimeCompare(k[:], o[:]) == 1 }

// Equal compares in constant time.
func (k PublicKey) Equal(o PublicKey) bool { return subtle.ConstantTimeCompare(k[:], o[:]) == 1 }

// Equal compares in constant time.
func (k PresharedKey) Equal(o PresharedKey) bool { return subtle.ConstantTimeCompare(k[:], o[:]) == 1 }

// isZero compares a secret with zero in constant time.
func isZero(k *[keySize]byte) bool {
	var sum byte
	for _, b := range k {
		sum |= b
	}
	return sum == 0
}

// Encode returns k in base64. This is the one way to print the secret.
func (k PrivateKey) Encode() string { return base64.StdEncoding.EncodeToString(k[:]) }

// Encode returns k in base64.
func (k PublicKey) Encode() string { return base64.StdEncoding.EncodeToString(k[:]) }

// Encode returns k in base64. This is the one way to print the secret.
func (k PresharedKey) Encode() string { return base64.StdEncoding.EncodeToString(k[:]) }

// String returns k in base64.
func (k PublicKey) String() string { return k.Encode() }

// MarshalText writes k in base64.
func (k PublicKey) MarshalText() ([]byte, error) { return []byte(k.Encode()), nil }

// UnmarshalText reads k in base64.
func (k *PublicKey) UnmarshalText(b []byte) error { return parseBase64(k[:], string(b)) }

// String returns "(hidden)".
func (PrivateKey) String() string { return hidden }

// Format writes "(hidden)" whatever the verb.
func (PrivateKey) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, hidden) }

// LogValue returns "(hidden)".
func (PrivateKey) LogValue() slog.Value { return slog.StringValue(hidden) }

// MarshalText writes "(hidden)", so that no encoder prints the key by accident.
func (PrivateKey) MarshalText() ([]byte, error) { return []byte(hidden), nil }

// String returns "(hidden)".
func (PresharedKey) String() string { return hidden }

// Format writes "(hidden)" whatever the verb.
func (PresharedKey) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, hidden) }

// LogValue returns "(hidden)".
func (PresharedKey) LogValue() slog.Value { return slog.StringValue(hidden) }

// MarshalText writes "(hidden)", so that no encoder prints the key by accident.
func (PresharedKey) MarshalText() ([]byte, error) { return []byte(hidden), nil }

func parseBase64(dst []byte, s string) error {
	b, err := base64.StdEncoding.Strict().DecodeString(s)
	if err != nil || len(b) != keySize {
		return errKey
	}
	copy(dst, b)
	clear(b)
	return nil
}
