package protocol

import (
	"bytes"
	"crypto/ed25519"
	"encoding/hex"
	"strings"
	"testing"
)

// The keys of a token, made by another program (HMAC-SHA256 twice, RFC 5869; the curve of RFC 8032 in plain integers): they are for
// ever, since peers pin them.
func TestKeysOfToken(t *testing.T) {
	token := validToken()
	key := token.SignInKey()
	if got, want := hex.EncodeToString(key[:]), "9da0fbcaf7bbc4552ad7cba41caec817d49b760ccf5b9051794d88b3fbc031e9"; got != want {
		t.Errorf("sign-in key %s, want %s", got, want)
	}
	id := IdentityOf(token.Identity())
	if got, want := hex.EncodeToString(id[:]), "4d1da98e070aacb69ac89958dc25dbff1d81d23f0e751728b964ef0a2bd38dc3"; got != want {
		t.Errorf("identity %s, want %s", got, want)
	}
	if got, want := id.Fingerprint(), "f15e-ad5a-2bd0-5f77-ba8a-783b"; got != want || id.String() != want {
		t.Errorf("fingerprint %s, want %s", got, want)
	}
	if got := (Identity{}).Fingerprint(); got != "none" {
		t.Errorf("fingerprint of none: %s", got)
	}
}

// What is sent to sign in holds nothing of the secret, and makes no identity.
func TestCredentialDoesNotTellSecret(t *testing.T) {
	token := validToken()
	credential := token.Credential()
	_, key, ok := ParseCredential(credential)
	if !ok || strings.Contains(credential, hex.EncodeToString(token.Secret[:])) || strings.Contains(credential, hex.EncodeToString(token.Secret[:8])) {
		t.Fatal("the credential is wrong, or holds the secret")
	}
	if (Token{Name: token.Name, Secret: key}).Identity().Equal(token.Identity()) {
		t.Error("the identity is made of what is sent")
	}
	if bytes.Equal(key[:], token.Identity().Seed()) {
		t.Error("the identity's seed is sent")
	}
	other := token
	other.Secret[31] ^= 1
	if other.SignInKey() == key || other.Identity().Equal(token.Identity()) {
		t.Error("two secrets have one key")
	}
}

// A signature is for one name, one key and one identity.
func TestSigned(t *testing.T) {
	token := validToken()
	good := Peer{Name: "gate", PublicKey: sequence(2), Identity: IdentityOf(token.Identity())}
	good.Signature = SignKey(token.Identity(), "gate", good.PublicKey)
	other := token
	other.Secret[0] ^= 1
	for name, tt := range map[string]struct {
		change func(*Peer)
		want   bool
	}{
		"as it is":                   {func(*Peer) {}, true},
		"another's key":              {func(p *Peer) { p.PublicKey[0] ^= 1 }, false},
		"another name":               {func(p *Peer) { p.Name = "gat" }, false},
		"another identity":           {func(p *Peer) { p.Identity = IdentityOf(other.Identity()) }, false},
		"signed by another":          {func(p *Peer) { p.Signature = SignKey(other.Identity(), p.Name, p.PublicKey) }, false},
		"signed for another name":    {func(p *Peer) { p.Signature = SignKey(token.Identity(), "gate2", p.PublicKey) }, false},
		"no identity":                {func(p *Peer) { p.Identity = Identity{} }, false},
		"no signature":               {func(p *Peer) { p.Signature = Signature{} }, false},
		"nothing":                    {func(p *Peer) { p.Identity, p.Signature = Identity{}, Signature{} }, false},
		"one bit of the signature":   {func(p *Peer) { p.Signature[63] ^= 0x80 }, false},
		"signed without the purpose": {func(p *Peer) { p.Signature = Signature(ed25519.Sign(token.Identity(), p.PublicKey[:])) }, false},
	} {
		p := good
		tt.change(&p)
		if got := p.Signed(); got != tt.want {
			t.Errorf("%s: %v, want %v", name, got, tt.want)
		}
	}
	if good.Identity.Equal(IdentityOf(other.Identity())) || !good.Identity.Equal(good.Identity) {
		t.Error("Equal")
	}
}

func TestIdentityText(t *testing.T) {
	id, s := Identity(sequence(3)), Signature(bytes.Repeat([]byte{7}, 64))
	idText, _ := id.MarshalText()
	sText, _ := s.MarshalText()
	var gotID Identity
	var gotS Signature
	if err := gotID.UnmarshalText(idText); err != nil || gotID != id {
		t.Errorf("identity %v: %v", gotID, err)
	}
	if err := gotS.UnmarshalText(sText); err != nil || gotS != s {
		t.Errorf("signature %v: %v", gotS, err)
	}
	for _, bad := range []string{"", string(idText[:43]), string(idText) + "\n", strings.Repeat("=", 44), string(sText)} {
		if err := new(Identity).UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q is taken for an identity", bad)
		}
	}
	for _, bad := range []string{"", string(sText[:87]), string(sText[:86]) + "\n\n", strings.Repeat("=", 88), string(idText)} {
		if err := new(Signature).UnmarshalText([]byte(bad)); err == nil {
			t.Errorf("%q is taken for a signature", bad)
		}
	}
}
