package portal

import (
	"context"
	"errors"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/signal"
)

// TestWho: a token tells whose it is without disturbing the program that runs with it, and that it was signed out; neither a wrong nor a
// removed one does.
func TestWho(t *testing.T) {
	p := open(t, t.TempDir())
	token := add(t, p, "laptop", protocol.Client)
	bus := sign(t, token)
	k := key(t)
	first := ask(t, bus, protocol.SyncRequest{PublicKey: k})
	who := func(token protocol.Token, verb string) (protocol.Who, error) {
		ctx, cancel := context.WithTimeout(context.Background(), 30*time.Second)
		defer cancel()
		return protocol.AskWho(ctx, token, verb, nil)
	}
	if w, err := who(token, protocol.WhoVerb); err != nil || w != (protocol.Who{Name: "laptop", Role: protocol.Client}) {
		t.Errorf("%+v, %v", w, err)
	}
	if again := ask(t, bus, protocol.SyncRequest{PublicKey: k}); again.Displaced || again.Revision != first.Revision {
		t.Errorf("the program that runs was told %+v", again)
	}
	if s := p.Nodes()[0]; !s.SignedOut.IsZero() {
		t.Errorf("signed out at %v", s.SignedOut)
	}
	if _, err := who(token, protocol.LeaveVerb); err != nil {
		t.Error(err)
	}
	if s := p.Nodes()[0]; time.Since(s.SignedOut) > time.Minute {
		t.Errorf("signed out at %v", s.SignedOut)
	}
	bus.Close()
	until(t, "it is away", func() bool { return !p.isOnline("laptop") })
	back := sign(t, token)
	ask(t, back, protocol.SyncRequest{PublicKey: k})
	if s := p.Nodes()[0]; !s.SignedOut.IsZero() || !s.Online {
		t.Errorf("it has come back: %+v", s)
	}
	wrong := token
	wrong.Secret[0] ^= 1
	if w, err := who(wrong, protocol.WhoVerb); !errors.Is(err, signal.ErrRefused) {
		t.Errorf("a wrong token: %+v, %v", w, err)
	}
	other := token
	other.Fingerprint[0] ^= 1
	if w, err := who(other, protocol.WhoVerb); !errors.Is(err, signal.ErrFingerprint) {
		t.Errorf("a token of another portal: %+v, %v", w, err)
	}
	if err := p.RemoveNode(context.Background(), "laptop"); err != nil {
		t.Fatal(err)
	}
	if w, err := who(token, protocol.WhoVerb); !errors.Is(err, signal.ErrRefused) {
		t.Errorf("a removed node: %+v, %v", w, err)
	}
}
