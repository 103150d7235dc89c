package crypto

// Reason says what became of a handshake message: it was Accepted, or the name of why it was dropped. Each is a counter
// of its own; dropping is never an error and never answered, but for the cookie reply (paper, section 5.1).
type Reason uint8

// What may become of a message.
const (
	Accepted          Reason = iota
	BadType                  // the type word is none of the four, or is one that Handle does not take
	BadLength                // the length is not that of the type
	NoPrivateKey             // we have no private key
	Mac1Mismatch             // made for another public key than ours (section 5.4.4)
	CookieSent               // under load, and mac2 absent or wrong: answered by a cookie reply (section 5.3)
	RateLimited              // under load, mac2 right, but too many of its source (section 5.3)
	BadAEAD                  // a field of the handshake did not open; of a response: mostly that preshared keys differ
	LowOrder                 // a Diffie-Hellman result was zero
	UnknownStatic            // an initiation by a public key that is not a peer's
	ReplayedTimestamp        // an initiation not newer than the newest seen of this peer (section 5.1)
	BadTimestamp             // the TAI64N nanoseconds are 1e9 or more
	Flood                    // less than 20 ms after the peer's previous initiation
	UnknownIndex             // a response or cookie reply to an index that we do not hold
	WrongState               // a response to an index with no initiation under way
	BadCookie                // a cookie reply that does not open, or for which no mac1 is outstanding
	NoRandomness             // the random source failed
	ReasonCount              // how many reasons there are; not a reason
)

var reasonNames = [ReasonCount]string{
	Accepted: "accepted", BadType: "bad_type", BadLength: "bad_length", NoPrivateKey: "no_private_key",
	Mac1Mismatch: "mac1_mismatch", CookieSent: "cookie_sent", RateLimited: "rate_limited", BadAEAD: "bad_aead",
	LowOrder: "low_order", UnknownStatic: "unknown_static", ReplayedTimestamp: "ts_replay",
	BadTimestamp: "bad_timestamp", Flood: "flood", UnknownIndex: "unknown_index", WrongState: "wrong_state",
	BadCookie: "bad_cookie", NoRandomness: "no_randomness",
}

// String returns the reason's name as counters and logs show it.
func (r Reason) String() string {
	if r >= ReasonCount {
		return "unknown"
	}
	return reasonNames[r]
}
