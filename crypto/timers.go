package crypto

import (
	"math"
	"time"

	"github.com/sluice-vpn/sluice/crypto/replay"
)

// The constants of the paper, section 6.1, and of the kernel's messages.h.
const (
	RekeyAfterMessages  = 1 << 60
	RejectAfterMessages = replay.Limit // 2^64 - 2^13 - 1: no counter from here on is sent or accepted
	RekeyAfterTime      = 120 * time.Second
	RejectAfterTime     = 180 * time.Second
	RekeyAttemptTime    = 90 * time.Second // the default of PeerConfig.HandshakeLifetime
	RekeyTimeout        = 5 * time.Second
	KeepaliveTimeout    = 10 * time.Second

	// ZeroAfterTime after the last new session all key material of the peer is forgotten (section 6.3).
	ZeroAfterTime = 3 * RejectAfterTime
	// MaxStagedPackets is how many packets the data plane keeps per peer while there is no session.
	MaxStagedPackets = 128
)

const (
	// unansweredAfter: data was sent and nothing came back, not even the keepalive that should have (section 6.5).
	unansweredAfter = KeepaliveTimeout + RekeyTimeout
	// rekeyOnReceiveAfter leaves time for a handshake before the session is rejected (section 6.2).
	rekeyOnReceiveAfter = RejectAfterTime - KeepaliveTimeout - RekeyTimeout
	// retryJitter is the width of the random delay of retries (kernel timers.c, a third of a second).
	retryJitter = time.Second / 3
	// minInitiationInterval is the least time between two initiations that we accept of one peer: 50 a second.
	minInitiationInterval = time.Second / 50
	// fastGap is the least time between our handshake messages to a peer under FastRetry, while there is no session.
	fastGap = time.Second
)

// fastRetries are the times of the initiations of a FastRetry series, from its beginning. Later ones follow
// RekeyTimeout apart. Three tries in 15 s survive loss poorly: at 30 % loss each way 13 % of the series fail, with five 3 %.
var fastRetries = [...]time.Duration{0, 1 * time.Second, 3 * time.Second, 6 * time.Second, 10 * time.Second}

// later adds d, which is not negative, to t. A sum that no clock reaches becomes the greatest time: never due, where one
// that wraps round would be due for ever.
func later(t, d time.Duration) time.Duration {
	if t > math.MaxInt64-d {
		return math.MaxInt64
	}
	return t + d
}

// Why names what a peer's next timeout is for.
type Why uint8

// The timeouts of a peer.
const (
	WhyNothing             Why = iota
	WhyExpire                  // the handshake lifetime of the running series ends
	WhyRetry                   // the next initiation of the running series
	WhyWanted                  // a series that was wanted too early may begin
	WhyUnanswered              // data sent, nothing received: new handshake (section 6.5)
	WhyKeepalive               // data received, nothing sent: passive keepalive (section 6.5)
	WhyPersistentKeepalive     // no authenticated packet either way for the configured time
	WhyZero                    // no new session for ZeroAfterTime: forget all keys (section 6.3)
)

var whyNames = [...]string{
	WhyNothing: "nothing", WhyExpire: "handshake_lifetime", WhyRetry: "retry", WhyWanted: "wanted",
	WhyUnanswered: "unanswered", WhyKeepalive: "keepalive", WhyPersistentKeepalive: "persistent_keepalive",
	WhyZero: "zero_keys",
}

// String returns the timeout's name as logs show it.
func (w Why) String() string {
	if int(w) >= len(whyNames) {
		return "unknown"
	}
	return whyNames[w]
}

// Activity is what the data plane has stamped about one peer, read by control at the moment of the call. All are times on
// the clock of now; 0 means never. Keepalives are authenticated packets, but they are not data.
type Activity struct {
	// FirstUnanswered is the first data sent since anything authenticated was received. One value of it starts one
	// handshake: after HandshakeExpired the data plane resets it, so that the next data sent sets it anew.
	FirstUnanswered time.Duration
	// FirstUnkept is the first data received since anything authenticated was sent.
	FirstUnkept time.Duration
	// LastDataReceived is the last data received.
	LastDataReceived time.Duration
	// LastSent and LastReceived are the last authenticated packet of any kind, handshake messages included if the
	// data plane likes (the peer counts those itself).
	LastSent, LastReceived time.Duration
}
