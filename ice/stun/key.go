package stun

import (
	"crypto/hmac"
	"crypto/md5"
	"crypto/sha1"
	"encoding/binary"
	"fmt"
	"hash"
	"io"
	"strings"
	"sync"

	"github.com/sluice-vpn/sluice/pipeline/frame"
)

// Key makes and checks MESSAGE-INTEGRITY. Its methods may be called by any goroutine, and allocate nothing in the long run.
type Key struct {
	secret []byte    // frozen
	macs   sync.Pool // of *mac
}

// mac is an HMAC-SHA1 with the key, and room for what goes into it and comes out.
type mac struct {
	hash.Hash
	header [frame.HeaderSize]byte
	sum    [sha1.Size]byte
}

// ShortTerm is the key of a short-term credential (RFC 8489, section 9.1.1): the password.
func ShortTerm(password string) *Key { return &Key{secret: []byte(password)} }

// LongTerm is that of a long-term credential (RFC 8489, section 9.2.2, without PASSWORD-ALGORITHM):
// "key = MD5(username ":" OpaqueString(realm) ":" OpaqueString(password))".
func LongTerm(username, realm, password string) *Key {
	sum := md5.Sum([]byte(strings.Join([]string{username, realm, password}, ":")))
	return &Key{secret: sum[:]}
}

// Secret is what a library that makes MESSAGE-INTEGRITY itself is given. Frozen.
func (k *Key) Secret() []byte { return k.secret }

// Format keeps it out of everything that fmt prints.
func (*Key) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[redacted]") }

// Authentic reports whether the message has MESSAGE-INTEGRITY that was made with this key. The comparison takes as long wherever the
// two differ.
func (k *Key) Authentic(m *Message) bool {
	at := int(m.at[Integrity.slot()])
	if at == 0 {
		return false
	}
	h := k.mac(m.raw, at)
	defer k.macs.Put(h)
	return hmac.Equal(h.sum[:], m.Get(Integrity))
}

// mac computes the integrity of what stands before an offset. "The text used as input to HMAC is the STUN message, up to and including
// the attribute preceding the MESSAGE-INTEGRITY attribute. The Length field of the STUN message header is adjusted to point to the end of
// the MESSAGE-INTEGRITY attribute" (RFC 8489, section 14.5).
func (k *Key) mac(b []byte, at int) *mac {
	h, ok := k.macs.Get().(*mac)
	if !ok {
		h = &mac{Hash: hmac.New(sha1.New, k.secret)}
	}
	h.Reset()
	copy(h.header[:], b)
	binary.BigEndian.PutUint16(h.header[2:], uint16(at+frame.AttributeSize+sizeIntegrity-frame.HeaderSize))
	h.Write(h.header[:])
	h.Write(b[frame.HeaderSize:at])
	h.Sum(h.sum[:0])
	return h
}
