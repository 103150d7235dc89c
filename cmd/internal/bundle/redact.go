package bundle

import (
	"bytes"
	"crypto/hmac"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"net"
	"net/netip"
	"regexp"
	"slices"
	"strings"
	"unicode"
)

// Redactor takes out of texts what is nobody else's business. What it puts in a place is made with a key that is forgotten with it, so
// it can be compared within the texts of one Redactor, and with nothing else.
type Redactor struct {
	key   []byte
	plain bool // addresses and names stay
	inner []netip.Prefix
	names *regexp.Regexp // nil: none
}

// ordinary are names that are words of ours, and tell nothing.
var ordinary = []string{"gateway", "client", "portal", "relay", "localhost", "root", "none", "all"}

// NewRedactor makes one with a random key. inner are networks of which addresses are replaced, beside private and shared ones. names are
// replaced wherever they are a word. plain: neither is; secrets are taken out all the same.
func NewRedactor(key []byte, plain bool, inner []netip.Prefix, names []string) *Redactor {
	r := &Redactor{key: key, plain: plain}
	for _, p := range inner {
		if p.Bits() > 0 {
			r.inner = append(r.inner, p)
		}
	}
	names = slices.Clone(names)
	slices.SortFunc(names, func(a, b string) int { return len(b) - len(a) }) // the longer first, which may begin with another
	var words []string
	for _, n := range slices.Compact(names) {
		if n != "" && !slices.Contains(ordinary, n) {
			words = append(words, regexp.QuoteMeta(n))
		}
	}
	if len(words) > 0 {
		r.names = regexp.MustCompile(`(?:` + strings.Join(words, "|") + `)`)
	}
	return r
}

// namers are the attributes of log lines that hold names, or addresses by name.
var namers = []string{"peer", "name", "node", "relay", "portal", "portals", "server"}

// Names are those that the lines of logs tell.
func Names(log []byte) (names []string) {
	for line := range bytes.Lines(log) {
		var attrs map[string]any
		if json.Unmarshal(line, &attrs) != nil {
			continue
		}
		for _, key := range namers {
			text, _ := attrs[key].(string)
			for _, word := range strings.Fields(text) {
				if at, _, err := net.SplitHostPort(word); err == nil {
					word = at
				}
				if _, err := netip.ParseAddr(word); err != nil && !slices.Contains(names, word) {
					names = append(names, word)
				}
			}
		}
	}
	return names
}

var (
	token = regexp.MustCompile(`sluice[0-9]+-[A-Za-z0-9_+/=.-]{8,}`)
	// encoded is what may be a key: 32 bytes in hexadecimal, or 20 and more in base64 of either kind.
	encoded = regexp.MustCompile(`\b[0-9A-Fa-f]{64,}\b|[A-Za-z0-9+/]{27,}=+|[A-Za-z0-9+/_-]{43,}`)
	private = regexp.MustCompile(`(?s)-----BEGIN [A-Z ]*-----.*?-----END [A-Z ]*-----`)
	address = regexp.MustCompile(`[0-9A-Fa-f]*:[0-9A-Fa-f:.]*:[0-9A-Fa-f:.]*|\b\d{1,3}\.\d{1,3}\.\d{1,3}\.\d{1,3}\b`)
)

// Redact returns a text without secrets and, unless plain, with addresses and names replaced.
func (r *Redactor) Redact(text []byte) []byte {
	text = private.ReplaceAll(text, []byte("(taken out)"))
	text = token.ReplaceAll(text, []byte("(token taken out)"))
	text = encoded.ReplaceAllFunc(text, func(b []byte) []byte {
		if !looksRandom(b) {
			return b
		}
		return r.alias("key", b)
	})
	if r.plain {
		return text
	}
	text = address.ReplaceAllFunc(text, r.addressAlias)
	if r.names != nil {
		text = r.replaceNames(text)
	}
	return text
}

// looksRandom tells keys from long words and paths: these have no capitals, small letters and digits all at once.
func looksRandom(b []byte) bool {
	hexadecimal, s := true, string(b)
	for _, c := range b {
		hexadecimal = hexadecimal && strings.ContainsRune("0123456789abcdefABCDEF", rune(c))
	}
	return hexadecimal || strings.ContainsFunc(s, unicode.IsUpper) && strings.ContainsFunc(s, unicode.IsLower) && strings.ContainsFunc(s, unicode.IsDigit)
}

// alias stands for b.
func (r *Redactor) alias(kind string, b []byte) []byte {
	mac := hmac.New(sha256.New, r.key)
	mac.Write([]byte(kind))
	mac.Write(b)
	return []byte(kind + "-" + hex.EncodeToString(mac.Sum(nil)[:4]))
}

// shared is the range of carriers' NATs (RFC 6598), which overlays are in.
var shared = netip.MustParsePrefix("100.64.0.0/10")

func (r *Redactor) addressAlias(b []byte) []byte {
	a, err := netip.ParseAddr(string(b))
	if err != nil {
		return b
	}
	a = a.Unmap()
	hidden := a.IsPrivate() || shared.Contains(a)
	for _, p := range r.inner {
		hidden = hidden || p.Contains(a)
	}
	if !hidden || a.IsUnspecified() || a.IsLoopback() {
		return b
	}
	kind := "ip6"
	if a.Is4() {
		kind = "ip4"
	}
	return r.alias(kind, a.AsSlice())
}

// replaceNames replaces names that stand for themselves: what is a part of a longer word is another word.
func (r *Redactor) replaceNames(text []byte) []byte {
	var out []byte
	at := 0
	for _, m := range r.names.FindAllIndex(text, -1) {
		if m[0] > 0 && inWord(text[m[0]-1]) || m[1] < len(text) && (inWord(text[m[1]]) || isKey(text[m[1]:])) {
			continue
		}
		out = append(append(out, text[at:m[0]]...), r.alias("name", text[m[0]:m[1]])...)
		at = m[1]
	}
	return append(out, text[at:]...)
}

func inWord(c byte) bool {
	return c == '_' || c >= '0' && c <= '9' || c >= 'a' && c <= 'z' || c >= 'A' && c <= 'Z'
}

// isKey tells whether what stands before rest was a key of JSON.
func isKey(rest []byte) bool { return bytes.HasPrefix(rest, []byte(`":`)) }
