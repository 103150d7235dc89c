package crypto

import (
	"golang.org/x/crypto/blake2s"

	"github.com/sluice-vpn/sluice/crypto/aead"
)

// The names that go into the hash of every handshake (paper, section 5.4; kernel noise.c).
const (
	construction = "Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"
	identifier   = "WireGuard v1 zx2c4 Jason@zx2c4.com"
)

// initialChain and initialHash are the state before the responder's public key is mixed in.
var initialChain, initialHash = func() (chain, hash [blake2s.Size]byte) {
	chain = blake2s.Sum256([]byte(construction))
	hash = blake2s.Sum256(append(chain[:], identifier...))
	return chain, hash
}()

// symmetric is the Noise symmetric state: the chaining key and the hash of the transcript. It is secret; wipe it.
type symmetric struct {
	chain, hash [blake2s.Size]byte
}

// begin sets the state to that of a handshake towards responder.
func (s *symmetric) begin(responder *PublicKey) {
	s.chain, s.hash = initialChain, initialHash
	s.mixHash(responder[:])
}

// mixHash appends data to the transcript. At most 48 bytes: a static key and its tag.
func (s *symmetric) mixHash(data []byte) {
	var b [blake2s.Size + keySize + tagSize]byte
	n := copy(b[:], s.hash[:])
	n += copy(b[n:], data)
	s.hash = blake2s.Sum256(b[:n])
}

// mixEphemeral takes an ephemeral public key into transcript and chain: the token "e" with a preshared key.
func (s *symmetric) mixEphemeral(e []byte) {
	s.mixHash(e)
	kdf(s.chain[:], e, &s.chain, nil, nil)
}

// mixDH takes a Diffie-Hellman result into the chain, and sets key unless it is nil.
func (s *symmetric) mixDH(shared *[keySize]byte, key *[keySize]byte) {
	kdf(s.chain[:], shared[:], &s.chain, key, nil)
}

// mixPSK is the token "psk".
func (s *symmetric) mixPSK(psk *PresharedKey, key *[keySize]byte) {
	var t [blake2s.Size]byte
	kdf(s.chain[:], psk[:], &s.chain, &t, key)
	s.mixHash(t[:])
	clear(t[:])
}

// seal encrypts plaintext into dst, which is a tag longer, and takes the ciphertext into the transcript. The nonce is
// zero: a key of the handshake seals once.
func (s *symmetric) seal(dst []byte, key *[keySize]byte, plaintext []byte) {
	aead.SealOnce(dst, key, plaintext, s.hash[:])
	s.mixHash(dst[:len(plaintext)+tagSize])
}

// open decrypts ciphertext into dst, which is a tag shorter, and takes the ciphertext into the transcript.
func (s *symmetric) open(dst []byte, key *[keySize]byte, ciphertext []byte) bool {
	if !aead.OpenOnce(dst, key, ciphertext, s.hash[:]) {
		return false
	}
	s.mixHash(ciphertext)
	return true
}

// split derives the transport keys: the initiator sends with first and receives with second (section 5.4.5).
func (s *symmetric) split(first, second *[keySize]byte) {
	kdf(s.chain[:], nil, first, second, nil)
}

func (s *symmetric) wipe() {
	clear(s.chain[:])
	clear(s.hash[:])
}

// kdf is HKDF (RFC 5869) on HMAC-BLAKE2s: it fills as many of the outputs as are not nil, from the first on. An output
// may be the memory of chain.
func kdf(chain, input []byte, first, second, third *[blake2s.Size]byte) {
	var secret [blake2s.Size]byte
	var block [blake2s.Size + 1]byte // the previous output and a counter
	hmacBLAKE2s(&secret, chain, input)
	have := 0
	for i, out := range [...]*[blake2s.Size]byte{first, second, third} {
		if out == nil {
			break
		}
		block[have] = byte(i + 1)
		hmacBLAKE2s(out, secret[:], block[:have+1])
		have = copy(block[:], out[:])
	}
	clear(secret[:])
	clear(block[:])
}

// hmacBLAKE2s is HMAC (RFC 2104) with BLAKE2s-256. Key at most 64, input at most 33 bytes; on the stack, so that nothing
// secret is left on the heap.
func hmacBLAKE2s(out *[blake2s.Size]byte, key, input []byte) {
	var inner [blake2s.BlockSize + blake2s.Size + 1]byte
	var outer [blake2s.BlockSize + blake2s.Size]byte
	copy(inner[:], key)
	copy(outer[:], key)
	for i := range blake2s.BlockSize {
		inner[i] ^= 0x36
		outer[i] ^= 0x5c
	}
	n := blake2s.BlockSize + copy(inner[blake2s.BlockSize:], input)
	digest := blake2s.Sum256(inner[:n])
	copy(outer[blake2s.BlockSize:], digest[:])
	*out = blake2s.Sum256(outer[:])
	clear(inner[:])
	clear(outer[:])
	clear(digest[:])
}
