// Package aead seals and opens WireGuard transport data in batches.
//
// WireGuard encrypts every packet with ChaCha20-Poly1305 (RFC 8439) under a key that one direction of one keypair owns,
// a 64-bit counter as nonce and no additional data (WireGuard paper, section 5.4.6). The packets of a superpacket
// therefore share a key, mostly share a length and have consecutive counters: a run. The shape of this API is a run, so
// that an implementation may work on several packets at once; a run of one is allowed and costs no more than a call of
// its own would.
//
// [New] picks the fastest implementation that the processor and [Features] allow. [NewGeneric] is the reference on
// golang.org/x/crypto; every other implementation is tested against it byte by byte.
package aead

const (
	// KeySize is the length of a key in bytes.
	KeySize = 32
	// Overhead is the length of the authentication tag, by which a sealed packet is longer than its plaintext.
	Overhead = 16
)

// Packet is one packet of a run.
//
// Dst and Src must overlap exactly (start at the same byte) or not at all, and no packet's Dst may overlap another
// packet's Dst or Src: the packets of a run are worked on side by side. The caller owns both before and after a call; an
// implementation keeps neither.
type Packet struct {
	// Dst receives the result. Seal: ciphertext and tag, so len(Dst) >= len(Src)+Overhead; where Dst is longer than
	// that, the plaintext counts as continued with zeros up to len(Dst)-Overhead (WireGuard's padding). At most 64 KiB.
	// Open: the plaintext, len(Dst) >= len(Src)-Overhead; bytes behind the plaintext are left alone.
	Dst []byte
	// Src is the plaintext (Seal) or ciphertext and tag (Open).
	Src []byte
	// Counter is the packet's nonce: 4 zero bytes, then Counter in little endian. A counter must never be sealed with
	// twice under one key; whoever assigns counters guarantees that.
	Counter uint64
	// OK is set by Open: the tag was right. Where it is false, Dst's content is unspecified and must not be used.
	OK bool
}

// Cipher seals and opens runs under one key. Seal and Open may be called by several goroutines at once; Wipe may not run
// beside them. No method allocates.
type Cipher interface {
	// Seal encrypts each packet of the run. Panics if a Dst is too short: that is the caller's bug, never a peer's input.
	Seal(run []Packet)
	// Open authenticates and decrypts each packet of the run, sets each OK, and returns how many are OK. A Src shorter
	// than Overhead is not OK. A forged packet does not affect the others.
	Open(run []Packet) int
	// Wipe overwrites the key. The Cipher must not be used afterwards.
	Wipe()
}
