package ice

import (
	"bytes"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha1"
	"encoding/binary"
	"hash/crc32"
)

// bindingRequest builds a plain request for a STUN server: header and FINGERPRINT.
func bindingRequest(id transactionID) []byte {
	b := make([]byte, stunHeader+8)
	binary.BigEndian.PutUint16(b, 0x0001)
	binary.BigEndian.PutUint16(b[2:], 8)
	binary.BigEndian.PutUint32(b[4:], stunCookie)
	copy(b[8:], id[:])
	binary.BigEndian.PutUint16(b[20:], attrFingerprint)
	binary.BigEndian.PutUint16(b[22:], 4)
	binary.BigEndian.PutUint32(b[24:], crc32.ChecksumIEEE(b[:20])^fingerprintXOR)
	return b
}

func newTransactionID() (id transactionID) {
	rand.Read(id[:]) // never fails
	return id
}

// authentic tells whether MESSAGE-INTEGRITY was made with the short-term credential password (RFC 8489, section 14.5):
// HMAC-SHA1 over what precedes it, the length field reaching to its end.
func (m *message) authentic(password string) bool {
	if m.integrity == 0 {
		return false
	}
	var header [stunHeader]byte
	copy(header[:], m.raw)
	binary.BigEndian.PutUint16(header[2:], uint16(m.integrity+24-stunHeader))
	mac := hmac.New(sha1.New, []byte(password))
	mac.Write(header[:])
	mac.Write(m.raw[stunHeader:m.integrity])
	var sum [sha1.Size]byte
	return hmac.Equal(mac.Sum(sum[:0]), m.raw[m.integrity+4:m.integrity+24])
}

// recipient is the part of USERNAME that names whom a request is for (RFC 8445, section 7.2.2); nil if there is none.
func (m *message) recipient() []byte {
	before, _, found := bytes.Cut(m.username, []byte{':'})
	if !found || len(before) == 0 {
		return nil
	}
	return before
}
