package portal

import (
	"encoding/hex"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/signal"
)

// What a node signs reaches its peers as it is, over a restart of the portal too, and goes with the token.
func TestIdentityIsPassed(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "state")
	p := open(t, folder)
	gateToken, laptop := add(t, p, "gate", protocol.Gateway), add(t, p, "laptop", protocol.Client)
	k := key(t)
	report := protocol.SyncRequest{
		PublicKey: k, Identity: protocol.IdentityOf(gateToken.Identity()), Signature: protocol.SignKey(gateToken.Identity(), "gate", k),
	}
	if s := ask(t, sign(t, gateToken), report); s.Refused != "" {
		t.Fatal(s.Refused)
	}
	see := func() protocol.Peer {
		t.Helper()
		laptop.Portals = p.token("laptop", laptop.Secret).Portals
		s := ask(t, sign(t, laptop), protocol.SyncRequest{PublicKey: protocol.Key{9}})
		if s.Refused != "" || len(s.Peers) != 1 {
			t.Fatalf("refused %q, %d peers", s.Refused, len(s.Peers))
		}
		return s.Peers[0]
	}
	if peer := see(); !peer.Signed() || peer.Identity != report.Identity {
		t.Errorf("the peer %+v is not signed", peer)
	}
	if got := p.Nodes()[0].Identity; got != report.Identity.Fingerprint() {
		t.Errorf("the operator is told %q, want %q", got, report.Identity)
	}
	p.Close()
	p = open(t, folder)
	if peer := see(); !peer.Signed() {
		t.Errorf("after a restart %+v is not signed", peer)
	}
	if _, err := p.RenewToken(t.Context(), "gate"); err != nil {
		t.Fatal(err)
	}
	if peer := see(); peer.Identity != (protocol.Identity{}) || peer.Signature != (protocol.Signature{}) {
		t.Errorf("after the token was renewed: %+v", peer)
	}
}

// The portal's memory and its folder hold nothing that an identity could be made of.
func TestSecretIsForgotten(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "state")
	p := open(t, folder)
	token := add(t, p, "gate", protocol.Gateway)
	ask(t, sign(t, token), protocol.SyncRequest{PublicKey: key(t)})
	signIn := token.SignInKey()
	if got := p.state.list()[0].KeyHash; got != hashKey(signIn) || got == hashKey(token.Secret) {
		t.Errorf("the hash that is kept is %s", got)
	}
	p.Close()
	err := filepath.WalkDir(folder, func(path string, d os.DirEntry, err error) error {
		if err != nil || !d.Type().IsRegular() {
			return err
		}
		data, err := os.ReadFile(path)
		for _, secret := range [][]byte{token.Secret[:], signIn[:], token.Identity().Seed()} {
			if text := string(data); strings.Contains(text, string(secret)) || strings.Contains(text, hex.EncodeToString(secret)) {
				t.Errorf("%s holds a secret of the node", path)
			}
		}
		return err
	})
	if err != nil {
		t.Error(err)
	}
}

// A folder of before there were identities: its tokens are not taken, nor do peers hear of keys that nobody has signed, and the
// operator is told what to do.
func TestFolderOfBefore(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "state")
	p := open(t, folder)
	token, other := add(t, p, "old", protocol.Gateway), add(t, p, "other", protocol.Client)
	text := `{"name":"old","role":"gateway","token_hash":"` + hashKey(token.Secret) + `","index":1,"public_key":"` +
		"AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=" + `"}`
	if _, err := p.state.kv.(*kvStore).kv.PutString(t.Context(), "node.old", text); err != nil {
		t.Fatal(err)
	}
	p.Close()
	p = open(t, folder)
	if n := p.Nodes(); len(n) != 2 || !n[0].Outdated || n[1].Outdated || n[0].PublicKey != "" {
		t.Fatalf("nodes %+v", n)
	}
	token.Portals, other.Portals = p.token("old", token.Secret).Portals, p.token("old", token.Secret).Portals
	if why := refusal(t, sign(t, token)); !errors.Is(why, signal.ErrRefused) {
		t.Errorf("the old token: %v", why)
	}
	if s := ask(t, sign(t, other), protocol.SyncRequest{PublicKey: key(t)}); s.Refused != "" || s.Peers[0].PublicKey != (protocol.Key{}) {
		t.Errorf("refused %q, peers %+v", s.Refused, s.Peers)
	}
	next, err := p.RenewToken(t.Context(), "old")
	if err != nil {
		t.Fatal(err)
	}
	if s := ask(t, sign(t, next), protocol.SyncRequest{PublicKey: key(t)}); s.Refused != "" {
		t.Error(s.Refused)
	}
	if p.Nodes()[0].Outdated {
		t.Error("the node with another token is still outdated")
	}
}
