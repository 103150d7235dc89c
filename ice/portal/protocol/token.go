package protocol

import (
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"strings"

	"github.com/sluice-vpn/sluice/ice/signal"
)

// TokenPrefix is what every token begins with.
const TokenPrefix = "sluice1-"

const (
	maxToken   = 4 << 10
	maxPortals = 8
	maxHost    = 254 // a DNS name in text, with the dot at its end (RFC 1035, section 2.3.4)
)

// Token is a node's one secret: who it is, where the portal is, and how to know it.
type Token struct {
	Name        string
	Portals     []string // host:port, one at least
	Fingerprint [32]byte // SHA-256 of the portal's certificate
	Secret      [32]byte
}

// tokenJSON is what a token's text encodes.
type tokenJSON struct {
	Name        string   `json:"n"`
	Portals     []string `json:"p"`
	Fingerprint []byte   `json:"f"`
	Secret      []byte   `json:"s"`
}

// Format keeps tokens out of everything that fmt prints.
func (t Token) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("[token]")) }

// Encode returns the token as one word of printable ASCII that begins with TokenPrefix.
func (t Token) Encode() string {
	text, err := json.Marshal(tokenJSON{t.Name, t.Portals, t.Fingerprint[:], t.Secret[:]})
	if err != nil {
		panic("protocol: " + err.Error()) // strings and bytes always encode
	}
	return TokenPrefix + base64.RawURLEncoding.EncodeToString(text)
}

// ParseToken reads a token; surrounding white space is ignored. Errors say what is wrong without quoting the token.
func ParseToken(text string) (Token, error) {
	text = strings.TrimSpace(text)
	switch {
	case text == "":
		return Token{}, errors.New("the token is empty")
	case len(text) > maxToken:
		return Token{}, errors.New("this is no token: too long")
	case !strings.HasPrefix(text, TokenPrefix):
		return Token{}, fmt.Errorf("this is no token: it does not begin with %s", TokenPrefix)
	}
	raw, err := base64.RawURLEncoding.Strict().DecodeString(text[len(TokenPrefix):])
	if err != nil {
		return Token{}, errDamaged
	}
	var j tokenJSON
	if err := json.Unmarshal(raw, &j); err != nil || len(j.Fingerprint) != 32 || len(j.Secret) != 32 {
		return Token{}, errDamaged
	}
	t := Token{Name: j.Name, Portals: j.Portals, Fingerprint: [32]byte(j.Fingerprint), Secret: [32]byte(j.Secret)}
	if !signal.ValidName(t.Name) || len(t.Portals) == 0 || len(t.Portals) > maxPortals {
		return Token{}, errDamaged
	}
	for _, p := range t.Portals {
		if !ValidAddress(p) {
			return Token{}, errDamaged
		}
	}
	return t, nil
}

var errDamaged = errors.New("the token is damaged: copy the whole line")

// ValidAddress reports whether text can be a portal's: host:port, the host being a DNS name or an address without zone.
func ValidAddress(text string) bool {
	host, port, err := net.SplitHostPort(text)
	n, err2 := strconv.ParseUint(port, 10, 16)
	if err != nil || err2 != nil || n == 0 {
		return false
	}
	if addr, err := netip.ParseAddr(host); err == nil {
		return addr.Zone() == ""
	}
	// Brackets are for addresses of IPv6.
	return host != "" && len(host) <= maxHost && text[0] != '[' && !strings.ContainsFunc(host, func(r rune) bool {
		return !(r >= 'a' && r <= 'z' || r >= 'A' && r <= 'Z' || r >= '0' && r <= '9' || r == '-' || r == '.' || r == '_')
	})
}

// Credential is what the broker knows the node by: its name and its SignInKey. It does not tell the secret.
func (t Token) Credential() string {
	key := t.SignInKey()
	return t.Name + ":" + hex.EncodeToString(key[:])
}

// ParseCredential is the portal's side of Credential. Not ok: it has another form.
func ParseCredential(text string) (name string, signInKey [32]byte, ok bool) {
	name, digits, found := strings.Cut(text, ":")
	b, err := hex.DecodeString(digits)
	if !found || !signal.ValidName(name) || err != nil || len(b) != len(signInKey) {
		return "", signInKey, false
	}
	return name, [32]byte(b), true
}

// SignalConfig is how a node with this token reaches the portal.
func (t Token) SignalConfig() signal.Config {
	cfg := signal.Config{
		Self: t.Name, Token: t.Credential(), TLS: signal.Fingerprint(t.Fingerprint).TLSConfig(), Fallback: t.onThisMachine,
	}
	for _, p := range t.Portals {
		cfg.URLs = append(cfg.URLs, "tls://"+p)
	}
	return cfg
}

// maxOwn is at how many addresses of this machine the portal is looked for.
const maxOwn = 32

// onThisMachine is where the portal is if it runs here. Its public address need not lead back from here, behind a 1:1 NAT for
// example. Nobody else can pass for it: it is known by its certificate, and the token's secret is sent to none but that.
func (t Token) onThisMachine() (urls []string) {
	own, _ := net.InterfaceAddrs() // none if the system does not tell
	for _, portal := range t.Portals {
		_, port, _ := net.SplitHostPort(portal) // ParseToken has checked it
		for _, a := range own {
			prefix, ok := a.(*net.IPNet)
			if ok && !prefix.IP.IsLinkLocalUnicast() && len(urls) < maxOwn {
				urls = append(urls, "tls://"+net.JoinHostPort(prefix.IP.String(), port))
			}
		}
	}
	return urls
}
