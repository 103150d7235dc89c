package aead

import (
	"crypto/cipher"
	"encoding/binary"
	"reflect"
	"unsafe"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/sluice-vpn/sluice/crypto/secret"
)

// maxDst bounds Packet.Dst. No transport packet is longer than a UDP datagram, and a longer Dst would silently be filled
// with padding.
const maxDst = 1 << 16

// generic seals and opens one packet a call through golang.org/x/crypto.
type generic struct {
	aead cipher.AEAD
	key  *[KeySize]byte // the copy inside aead, for Wipe
}

// NewGeneric returns the reference implementation. It copies the key, which stays the caller's. Where x/crypto has no
// assembly (all but amd64, and everything with the tag purego) x/crypto allocates once a packet.
func NewGeneric(key *[KeySize]byte) Cipher {
	g := new(generic)
	g.init(key)
	return g
}

func (g *generic) init(key *[KeySize]byte) {
	aead, err := chacha20poly1305.New(key[:])
	if err != nil {
		// The length is right, so this is FIPS 140-only mode, in which there is no WireGuard.
		panic("aead: " + err.Error())
	}
	g.aead, g.key = aead, keyInside(aead)
}

// keyInside finds the key that x/crypto copied, since its type has no way to overwrite it. Reflection names the field and
// checks its type, so a change there fails here and not in memory.
func keyInside(aead cipher.AEAD) *[KeySize]byte {
	field := reflect.ValueOf(aead).Elem().FieldByName("key")
	if !field.IsValid() || field.Type() != reflect.TypeFor[[KeySize]byte]() {
		panic("aead: x/crypto no longer keeps its key as a field [32]byte, Wipe cannot reach it")
	}
	return (*[KeySize]byte)(unsafe.Pointer(field.UnsafeAddr()))
}

func (g *generic) Seal(run []Packet) {
	secret.ReservePacket()
	var nonce [chacha20poly1305.NonceSize]byte
	for i := range run {
		p := &run[i]
		n := textLen(p)
		text := p.Src
		if n > len(text) {
			copy(p.Dst, text)
			clear(p.Dst[len(text):n])
			text = p.Dst[:n]
		}
		binary.LittleEndian.PutUint64(nonce[4:], p.Counter)
		g.aead.Seal(p.Dst[:0], borrow(&nonce), text, nil)
	}
	secret.ScrubPacket() // x/crypto lays the key out there
}

func (g *generic) Open(run []Packet) int {
	secret.ReservePacket()
	var nonce [chacha20poly1305.NonceSize]byte
	opened := 0
	for i := range run {
		p := &run[i]
		p.OK = false
		if len(p.Src) < Overhead {
			continue
		}
		checkOpen(p)
		binary.LittleEndian.PutUint64(nonce[4:], p.Counter)
		_, err := g.aead.Open(p.Dst[:0], borrow(&nonce), p.Src, nil)
		if p.OK = err == nil; p.OK {
			opened++
		}
	}
	secret.ScrubPacket()
	return opened
}

func (g *generic) Wipe() { clear(g.key[:]) }

// textLen returns the length of a packet's plaintext with its padding, and panics where the caller broke the contract.
func textLen(p *Packet) int {
	n := len(p.Dst) - Overhead
	if n < len(p.Src) {
		panic("aead: Seal: Dst is shorter than Src and the tag")
	}
	if len(p.Dst) > maxDst {
		panic("aead: Seal: Dst is longer than 64 KiB")
	}
	checkOverlap(p)
	return n
}

// checkOpen panics where the caller broke the contract. A Src shorter than Overhead is a peer's input and never gets here.
func checkOpen(p *Packet) {
	if len(p.Dst) < len(p.Src)-Overhead {
		panic("aead: Open: Dst is shorter than the plaintext")
	}
	checkOverlap(p)
}

// checkOverlap panics if Dst and Src share bytes but not their first.
func checkOverlap(p *Packet) {
	dst, src := uintptr(unsafe.Pointer(unsafe.SliceData(p.Dst))), uintptr(unsafe.Pointer(unsafe.SliceData(p.Src)))
	if dst != src && dst < src+uintptr(len(p.Src)) && src < dst+uintptr(len(p.Dst)) {
		panic("aead: Dst and Src overlap without starting at the same byte")
	}
}

// borrow returns the nonce as a slice that escape analysis does not follow into the interface call, where it would cost
// an allocation a call. x/crypto reads a nonce during the call and does not keep it.
func borrow(nonce *[chacha20poly1305.NonceSize]byte) []byte {
	hidden := uintptr(unsafe.Pointer(nonce))
	return unsafe.Slice((*byte)(*(*unsafe.Pointer)(unsafe.Pointer(&hidden))), len(nonce))
}
