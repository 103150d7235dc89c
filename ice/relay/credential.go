package relay

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"strconv"
	"strings"
	"time"
)

// maxUsername is the longest USERNAME in bytes (RFC 8489 section 14.3: "a UTF-8-encoded sequence of fewer than 509 bytes").
const maxUsername = 508

// Credential issues a credential for a relay that knows secret. It is valid until expiry, whole seconds. salt must not be
// empty. It is the user: quotas count by it, and a later credential with the same salt renews an earlier one.
//
// This is the TURN REST convention (draft-uberti-behave-turn-rest-00 section 2.2), which coturn calls use-auth-secret: the
// username is "expiry:salt", expiry in seconds since 1970, and the password is base64(HMAC-SHA1(secret, username)).
func Credential(secret string, expiry time.Time, salt string) (username, password string) {
	username = strconv.FormatInt(expiry.Unix(), 10) + ":" + salt
	return username, passwordOf(secret, username)
}

func passwordOf(secret, username string) string {
	mac := hmac.New(sha1.New, []byte(secret))
	mac.Write([]byte(username))
	return base64.StdEncoding.EncodeToString(mac.Sum(nil))
}

// userOf returns the user that a username stands for, which is what follows the expiry. Not ok: the username is malformed, or
// expired at now. Whether it was issued by one who knows the secret is told by MESSAGE-INTEGRITY, which pion/stun compares in
// constant time (hmac.Equal).
func userOf(username string, now time.Time) (user string, ok bool) {
	stamp, user, _ := strings.Cut(username, ":")
	if user == "" || len(username) > maxUsername || stamp == "" {
		return "", false
	}
	for _, c := range []byte(stamp) {
		if c < '0' || c > '9' {
			return "", false
		}
	}
	expiry, err := strconv.ParseInt(stamp, 10, 64)
	return user, err == nil && now.Unix() < expiry
}
