package protocol

import (
	"crypto/ed25519"
	"crypto/hkdf"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/base64"
	"encoding/hex"
	"errors"
	"strings"
)

// This file is who a node is, whatever WireGuard key it has at present. The portal gives out the WireGuard keys, so it could give
// out others, and read what is sent to them. A node therefore signs its key with another one that the portal does not have, its
// identity, and peers remember the identities that they have met.
//
// All keys of a node are made from its token's secret (HKDF-SHA256, RFC 5869), each with a purpose of its own, so a node needs no
// disk, and none of them tells another:
//
//	secret --"sluice v1 sign-in"---> what the broker is told, of which the portal keeps a hash
//	       --"sluice v1 identity"--> the seed of the Ed25519 key (RFC 8032)
//
// The portal makes the secret when it makes the token, hands it out once and forgets it; it is never sent back. A portal that is
// broken into later cannot make the identity again. One that is broken into when it makes the token can.
const (
	purposeSignIn   = "sluice v1 sign-in"
	purposeIdentity = "sluice v1 identity"
	// purposeKey begins what is signed. Names hold no zero byte.
	purposeKey = "sluice v1 WireGuard key\x00"
)

// derive makes a key from the secret.
func (t Token) derive(purpose string) [32]byte {
	key, err := hkdf.Key(sha256.New, t.Secret[:], nil, purpose, 32)
	if err != nil {
		panic("protocol: " + err.Error()) // only for lengths of 255 hashes and more
	}
	return [32]byte(key)
}

// SignInKey is what proves to the portal that a node has the token.
func (t Token) SignInKey() [32]byte { return t.derive(purposeSignIn) }

// Identity is the node's identity key: the same at each start, another one with each token.
func (t Token) Identity() ed25519.PrivateKey {
	seed := t.derive(purposeIdentity)
	return ed25519.NewKeyFromSeed(seed[:])
}

// Identity is a node's public identity key, base64 in JSON. The zero value is none.
type Identity [ed25519.PublicKeySize]byte

// IdentityOf returns the public part.
func IdentityOf(key ed25519.PrivateKey) Identity { return Identity(key.Public().(ed25519.PublicKey)) }

// fingerprintSize is how much of the hash people compare: to find another key of the same fingerprint takes 2^96 attempts.
const fingerprintSize = 12

// Fingerprint is the identity for people: the first 96 bits of its SHA-256 in hexadecimal, in groups of four; "none" for the zero
// value.
func (i Identity) Fingerprint() string {
	if i == (Identity{}) {
		return "none"
	}
	sum := sha256.Sum256(i[:])
	var groups []string
	for b := sum[:fingerprintSize]; len(b) > 0; b = b[2:] {
		groups = append(groups, hex.EncodeToString(b[:2]))
	}
	return strings.Join(groups, "-")
}

// String is the fingerprint.
func (i Identity) String() string { return i.Fingerprint() }

// Equal compares in constant time.
func (i Identity) Equal(other Identity) bool { return subtle.ConstantTimeCompare(i[:], other[:]) == 1 }

// MarshalText returns standard base64.
func (i Identity) MarshalText() ([]byte, error) {
	return base64.StdEncoding.AppendEncode(nil, i[:]), nil
}

// UnmarshalText reads standard base64 of exactly 32 bytes.
func (i *Identity) UnmarshalText(text []byte) error { return exactly(i[:], text, errIdentity) }

// Signature is that of an identity, base64 in JSON.
type Signature [ed25519.SignatureSize]byte

// MarshalText returns standard base64.
func (s Signature) MarshalText() ([]byte, error) {
	return base64.StdEncoding.AppendEncode(nil, s[:]), nil
}

// UnmarshalText reads standard base64 of exactly 64 bytes.
func (s *Signature) UnmarshalText(text []byte) error { return exactly(s[:], text, errSignature) }

var (
	errIdentity  = errors.New("an identity is 32 bytes in base64")
	errSignature = errors.New("a signature is 64 bytes in base64")
)

// exactly decodes standard base64 that fills dst.
func exactly(dst, text []byte, wrong error) error {
	// The length first: the decoder skips line ends.
	if len(text) != base64.StdEncoding.EncodedLen(len(dst)) {
		return wrong
	}
	b, err := base64.StdEncoding.Strict().AppendDecode(nil, text)
	if err != nil || len(b) != len(dst) {
		return wrong
	}
	copy(dst, b)
	return nil
}

// SignKey says that the WireGuard key is the one of the node of that name. No time is in it: a key lives in the memory of one run,
// so an older one that is shown again with its signature opens nothing, since nobody has its private part any more.
func SignKey(identity ed25519.PrivateKey, name string, key Key) Signature {
	return Signature(ed25519.Sign(identity, keyMessage(name, key)))
}

// Signed reports whether the peer's identity says that PublicKey is its key.
func (p *Peer) Signed() bool {
	return p.Identity != Identity{} && ed25519.Verify(p.Identity[:], keyMessage(p.Name, p.PublicKey), p.Signature[:])
}

func keyMessage(name string, key Key) []byte {
	return append(append([]byte(purposeKey), name+"\x00"...), key[:]...)
}
