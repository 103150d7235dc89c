package protocol

import (
	"encoding/base64"
	"encoding/hex"
	"net/url"
	"reflect"
	"strings"
	"testing"

	"github.com/sluice-vpn/sluice/ice/signal"
)

func validToken() Token {
	return Token{Name: "laptop", Portals: []string{"203.0.113.7:4430", "[2001:db8::1]:4430"}, Fingerprint: sequence(1), Secret: sequence(40)}
}

// raw makes a token's text of any JSON.
func raw(text string) string { return TokenPrefix + base64.RawURLEncoding.EncodeToString([]byte(text)) }

func TestToken(t *testing.T) {
	for _, change := range []func(*Token){
		func(*Token) {},
		func(t *Token) { t.Portals = []string{"portal.example.org:1"} },
		func(t *Token) { t.Portals = []string{"a_b-c.:65535", "LOCALHOST:4430"} },
		func(t *Token) { t.Name = strings.Repeat("x", signal.MaxName) },
	} {
		token := validToken()
		change(&token)
		text := token.Encode()
		if strings.ContainsFunc(text, func(r rune) bool { return r <= ' ' || r > '~' }) || !strings.HasPrefix(text, TokenPrefix) {
			t.Fatalf("not a word: %q", text)
		}
		for _, space := range []string{"", "\n", "\r\n", " \t"} {
			got, err := ParseToken(space + text + space)
			if err != nil || !reflect.DeepEqual(got, token) {
				t.Errorf("%q: %v", token.Portals, err)
			}
		}
		cfg := token.SignalConfig()
		if cfg.Self != token.Name || len(cfg.URLs) != len(token.Portals) || cfg.TLS == nil {
			t.Errorf("%q, %q", cfg.Self, cfg.URLs)
		}
		for i, at := range cfg.URLs {
			if u, err := url.Parse(at); err != nil || u.Host != token.Portals[i] || u.Scheme != "tls" {
				t.Errorf("%q: %v", at, err)
			}
		}
		name, key, ok := ParseCredential(cfg.Token)
		if !ok || name != token.Name || key != token.SignInKey() {
			t.Errorf("the credential of %s is not understood", token.Name)
		}
	}
}

func TestTokenRefused(t *testing.T) {
	text := validToken().Encode()
	secret := base64.StdEncoding.EncodeToString(make([]byte, 32))
	with := func(name, portals, fingerprint, secret string) string {
		return raw(`{"n":"` + name + `","p":` + portals + `,"f":"` + fingerprint + `","s":"` + secret + `"}`)
	}
	if _, err := ParseToken(with("a", `["h:1"]`, secret, secret)); err != nil {
		t.Fatal(err)
	}
	for name, bad := range map[string]string{
		"empty":              " \n",
		"another word":       "hello",
		"two words":          text + " " + text,
		"twice":              text + text,
		"no prefix":          text[len(TokenPrefix):],
		"prefix":             TokenPrefix,
		"padded":             text + "=",
		"long":               TokenPrefix + strings.Repeat("A", maxToken),
		"no JSON":            raw("x"),
		"null":               raw("null"),
		"more JSON":          raw(`{"n":"a","p":["h:1"],"f":"` + secret + `","s":"` + secret + `"}{}`),
		"name":               with("A", `["h:1"]`, secret, secret),
		"name with a dot":    with("a.b", `["h:1"]`, secret, secret),
		"no portal":          with("a", `[]`, secret, secret),
		"many portals":       with("a", `["h:1"`+strings.Repeat(`,"h:1"`, maxPortals)+`]`, secret, secret),
		"no port":            with("a", `["h"]`, secret, secret),
		"port 0":             with("a", `["h:0"]`, secret, secret),
		"port 65536":         with("a", `["h:65536"]`, secret, secret),
		"port +1":            with("a", `["h:+1"]`, secret, secret),
		"no host":            with("a", `[":1"]`, secret, secret),
		"host with a path":   with("a", `["h/x:1"]`, secret, secret),
		"host with a user":   with("a", `["u@h:1"]`, secret, secret),
		"host with a space":  with("a", `["h h:1"]`, secret, secret),
		"host with a query":  with("a", `["h?x:1"]`, secret, secret),
		"host with a comma":  with("a", `["h,i:1"]`, secret, secret),
		"host of two lines":  with("a", `["h\ni:1"]`, secret, secret),
		"host with a zone":   with("a", `["[fe80::1%eth0]:1"]`, secret, secret),
		"host too long":      with("a", `["`+strings.Repeat("h", 300)+`:1"]`, secret, secret),
		"brackets for name":  with("a", `["[h]:1"]`, secret, secret),
		"short fingerprint":  with("a", `["h:1"]`, secret[:40], secret),
		"secret of 31 bytes": with("a", `["h:1"]`, secret, base64.StdEncoding.EncodeToString(make([]byte, 31))),
		"no secret":          with("a", `["h:1"]`, secret, ""),
	} {
		got, err := ParseToken(bad)
		if err == nil || !reflect.DeepEqual(got, Token{}) {
			t.Errorf("%s: %v", name, err)
			continue
		}
		oneLine(t, err)
		if len(bad) > 40 && strings.Contains(err.Error(), bad[10:30]) {
			t.Errorf("%s: the error repeats what may be a secret: %v", name, err)
		}
	}
	for n := range text {
		if _, err := ParseToken(text[:n]); err == nil {
			t.Errorf("the first %d characters of a token", n)
		}
		if n > 0 {
			if _, err := ParseToken(text[n:]); err == nil {
				t.Errorf("a token without its first %d characters", n)
			}
		}
	}
}

func TestCredentialRefused(t *testing.T) {
	good := validToken().Credential()
	digits := hex.EncodeToString(make([]byte, 32))
	for n := range good {
		if _, _, ok := ParseCredential(good[:n]); ok {
			t.Errorf("the first %d characters of a credential", n)
		}
	}
	for _, bad := range []string{
		"", ":", "a", "a:", ":" + digits, "a:" + digits + "00", "a:" + digits[2:], "a:" + digits[1:] + "g", "A:" + digits, "a b:" + digits,
		"a.b:" + digits, "*:" + digits, "a::" + digits, "a:" + digits + "\n", strings.Repeat("a", 64) + ":" + digits, "$portal:" + digits,
	} {
		name, secret, ok := ParseCredential(bad)
		if ok || name != "" || secret != [32]byte{} {
			t.Errorf("%q is taken", bad)
		}
	}
}

func FuzzParseToken(f *testing.F) {
	f.Add(validToken().Encode())
	f.Add(raw(`{"n":"a","p":["h:1"],"f":"","s":""}`))
	f.Add("sluice1-e30")
	f.Fuzz(func(t *testing.T, text string) {
		token, err := ParseToken(text)
		if err != nil {
			oneLine(t, err)
			return
		}
		again, err := ParseToken(token.Encode())
		if err != nil || !reflect.DeepEqual(again, token) {
			t.Errorf("does not survive: %v", err)
		}
		for i, at := range token.SignalConfig().URLs {
			if u, err := url.Parse(at); err != nil || u.Host != token.Portals[i] || u.Path != "" || u.User != nil {
				t.Errorf("%q: %v", at, err)
			}
		}
	})
}

func FuzzParseCredential(f *testing.F) {
	f.Add(validToken().Credential())
	f.Add("a:00")
	f.Fuzz(func(t *testing.T, text string) {
		name, key, ok := ParseCredential(text)
		if ok != (name != "") || ok && !strings.EqualFold(text, name+":"+hex.EncodeToString(key[:])) {
			t.Errorf("%q: %q, %v", text, name, ok)
		}
	})
}
