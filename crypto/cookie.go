package crypto

import (
	"crypto/subtle"
	"encoding/binary"
	"hash"
	"io"
	"time"

	"golang.org/x/crypto/blake2s"
	"golang.org/x/crypto/chacha20poly1305"
)

// The labels and times of section 5.4.4 and 5.4.7, and of the kernel's messages.h.
const (
	labelMac1   = "mac1----"
	labelCookie = "cookie--"

	cookieSecretMaxAge = 120 * time.Second
	// cookieLatency is how much earlier the initiator stops using a cookie: it was under way for a while.
	cookieLatency = 5 * time.Second
	// underLoadFor is how long we remain under load after the queue was last full (kernel receive.c).
	underLoadFor = time.Second
	// underLoadShare: under load is when an eighth of the handshake queue waits (kernel receive.c).
	underLoadShare = 8
	// garbageAll is everything, as a share; garbageSpan is how many messages the share is taken of, about.
	garbageAll, garbageSpan = 1 << 16, 128
)

const cookieSize = blake2s.Size128

// labelledKey is a key that everyone who knows the public key can compute.
func labelledKey(label string, public *PublicKey) [blake2s.Size]byte {
	return blake2s.Sum256(append([]byte(label), public[:]...))
}

// mac is the keyed BLAKE2s of 16 bytes.
func mac(key []byte, parts ...[]byte) (sum [macSize]byte) {
	h := newMac(key)
	for _, part := range parts {
		h.Write(part)
	}
	h.Sum(sum[:0])
	return sum
}

func newMac(key []byte) hash.Hash {
	h, err := blake2s.New128(key)
	if err != nil {
		panic(err) // impossible: keys have 16 or 32 bytes
	}
	return h
}

func equal(a *[macSize]byte, b []byte) bool { return subtle.ConstantTimeCompare(a[:], b) == 1 }

// cookieChecker is our side as the one who is addressed: it checks mac1 and mac2 of what arrives and makes cookies.
type cookieChecker struct {
	mac1     hash.Hash // keyed; reused like sum, so that garbage costs no allocation
	sum      [macSize]byte
	sealKey  [blake2s.Size]byte
	secret   [blake2s.Size]byte
	secretAt time.Duration // 0: no secret yet
	loadAt   time.Duration // when the queue was last too full
	garbage  int           // how much of what came last was garbage, of garbageAll
	limiter  rateLimiter
	reply    [SizeCookieReply]byte
}

// rekey sets the keys that depend on our public key.
func (c *cookieChecker) rekey(public *PublicKey) {
	key := labelledKey(labelMac1, public)
	c.mac1 = newMac(key[:])
	c.sealKey = labelledKey(labelCookie, public)
}

// noteQueue is told how many handshake messages wait. Of them, as many will be garbage as were lately, which do not count: they cost
// less than a cookie reply, and who does not even know our public key shall not make those wait for a retry who do.
func (c *cookieChecker) noteQueue(now time.Duration, waiting, capacity int) {
	if waiting*(garbageAll-c.garbage)/garbageAll >= max(1, capacity/underLoadShare) {
		c.loadAt = now
	}
}

// noteMessage is told of each message whether it had the right mac1, or was a cookie reply that we waited for.
func (c *cookieChecker) noteMessage(right bool) {
	c.garbage -= c.garbage / garbageSpan
	if !right {
		c.garbage = min(garbageAll, c.garbage+garbageAll/garbageSpan)
	}
}

func (c *cookieChecker) underLoad(now time.Duration) bool {
	return c.loadAt != 0 && now-c.loadAt < underLoadFor
}

// checkMac1 reports whether whoever made msg knew our public key.
func (c *cookieChecker) checkMac1(msg []byte) bool {
	at := len(msg) - 2*macSize
	c.mac1.Reset()
	c.mac1.Write(msg[:at])
	c.mac1.Sum(c.sum[:0])
	return equal(&c.sum, msg[at:at+macSize])
}

// checkMac2 reports whether whoever made msg has received a cookie of ours at src.
func (c *cookieChecker) checkMac2(now time.Duration, rand io.Reader, src Source, msg []byte) bool {
	cookie, ok := c.cookie(now, rand, src)
	if !ok {
		return false
	}
	at := len(msg) - macSize
	sum := mac(cookie[:], msg[:at])
	return equal(&sum, msg[at:])
}

// cookie is a MAC of the address *and port*, under a secret that lives two minutes (section 5.4.7; kernel cookie.c,
// make_cookie), and of the channel if the message came over one. Not ok: the random source failed.
func (c *cookieChecker) cookie(now time.Duration, rand io.Reader, src Source) (cookie [cookieSize]byte, ok bool) {
	if c.secretAt == 0 || now-c.secretAt >= cookieSecretMaxAge {
		if _, err := io.ReadFull(rand, c.secret[:]); err != nil {
			c.secretAt = 0
			return cookie, false
		}
		c.secretAt = now
	}
	place := binary.BigEndian.AppendUint16(make([]byte, 0, 4), src.Addr.Port())
	if src.Channel != 0 {
		place = binary.BigEndian.AppendUint16(place, src.Channel)
	}
	addr := src.Addr.Addr().Unmap()
	if addr.Is4() {
		a := addr.As4()
		return mac(c.secret[:], a[:], place), true
	}
	a := addr.As16()
	return mac(c.secret[:], a[:], place), true
}

// makeReply answers msg with a cookie, which only who can receive at src and sent msg can open. The result is valid until
// the next call; nil: the random source failed. It is shorter than what it answers.
func (c *cookieChecker) makeReply(now time.Duration, rand io.Reader, src Source, msg []byte) []byte {
	cookie, ok := c.cookie(now, rand, src)
	if !ok {
		return nil
	}
	reply := c.reply[:]
	nonce := reply[cookieReplyNonce:cookieReplySealed]
	if _, err := io.ReadFull(rand, nonce); err != nil {
		return nil
	}
	binary.LittleEndian.PutUint32(reply, uint32(MessageCookieReply))
	copy(reply[offsetReceiver:], msg[offsetSender:offsetSender+4])
	aead, err := chacha20poly1305.NewX(c.sealKey[:])
	if err != nil {
		panic(err) // impossible: the key has its length
	}
	at := len(msg) - 2*macSize
	aead.Seal(reply[:cookieReplySealed], nonce, cookie[:], msg[at:at+macSize])
	return reply
}

// latestCookie is our side as the one who addresses a peer: it puts mac1 and mac2 on what leaves.
type latestCookie struct {
	mac1Key, openKey [blake2s.Size]byte
	cookie           [cookieSize]byte
	receivedAt       time.Duration // 0: no cookie
	sentMac1         [macSize]byte
	outstanding      bool // sentMac1 may be answered by one cookie reply
}

func newLatestCookie(peer *PublicKey) latestCookie {
	return latestCookie{mac1Key: labelledKey(labelMac1, peer), openKey: labelledKey(labelCookie, peer)}
}

// addMacs fills the last 32 bytes of msg. Mac2 is zero without a fresh cookie (section 5.4.4).
func (c *latestCookie) addMacs(now time.Duration, msg []byte) {
	at := len(msg) - 2*macSize
	c.sentMac1 = mac(c.mac1Key[:], msg[:at])
	c.outstanding = true
	copy(msg[at:], c.sentMac1[:])
	mac2 := msg[at+macSize:]
	clear(mac2)
	if c.receivedAt != 0 && now-c.receivedAt < cookieSecretMaxAge-cookieLatency {
		sum := mac(c.cookie[:], msg[:at+macSize])
		copy(mac2, sum[:])
	}
}

// consume takes the cookie out of a reply. It is accepted only for the last mac1 we sent, and once (kernel cookie.c,
// wg_cookie_message_consume). It triggers nothing: the next retry uses it (section 6.6).
func (c *latestCookie) consume(now time.Duration, msg []byte) bool {
	if !c.outstanding {
		return false
	}
	aead, err := chacha20poly1305.NewX(c.openKey[:])
	if err != nil {
		panic(err) // impossible: the key has its length
	}
	var cookie [cookieSize]byte
	nonce := msg[cookieReplyNonce:cookieReplySealed]
	if _, err := aead.Open(cookie[:0], nonce, msg[cookieReplySealed:], c.sentMac1[:]); err != nil {
		return false
	}
	c.cookie, c.receivedAt, c.outstanding = cookie, now, false
	return true
}
