package member

import (
	"encoding/base64"
	"encoding/hex"
	"strings"
	"testing"
)

// TestHolds: a key is found in every form that it may be written in.
func TestHolds(t *testing.T) {
	key := []byte("\xfb\xff\xfe0123456789abcdefghijklmnopqrs")
	for name, text := range map[string]string{
		"as it is": string(key), "hex": hex.EncodeToString(key), "upper hex": strings.ToUpper(hex.EncodeToString(key)),
		"base64": base64.StdEncoding.EncodeToString(key), "URL base64": base64.URLEncoding.EncodeToString(key),
	} {
		if !holds([]byte("before "+text+" after"), key) {
			t.Errorf("%s: not found", name)
		}
		if holds([]byte("before "+text[:len(text)-4]+" after"), key) {
			t.Errorf("%s: found although its end is missing", name)
		}
	}
}
