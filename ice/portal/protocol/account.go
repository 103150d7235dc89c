package protocol

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"time"

	"github.com/sluice-vpn/sluice/ice/signal"
)

// Verbs of the questions about a token. They report nothing, and no program that runs with the token notices.
const (
	// WhoVerb asks whom the token stands for; the answer is Who.
	WhoVerb = "who"
	// LeaveVerb tells that the token was taken away from its machine; the answer is Who too.
	LeaveVerb = "sign-out"
)

// Who is whom a token stands for.
type Who struct {
	Name string `json:"name"`
	Role Role   `json:"role"`
}

// whoWait is how long the portal may take to answer such a question once there is a connection.
const whoWait = 3 * time.Second

// ErrOlder: the portal does not know the question.
var ErrOlder = errors.New("the portal is of an older version; update it")

// AskWho asks the portal of a token one of the verbs above over a connection of its own, which dial makes (nil: as net.Dialer does).
// It waits until ctx ends. Errors wrap signal.ErrRefused, signal.ErrFingerprint, ErrOlder or ErrAnswer where that is the reason; any
// other says why the portal was not reached.
func AskWho(ctx context.Context, t Token, verb string, dial func(context.Context, string, string) (net.Conn, error)) (Who, error) {
	cfg := t.SignalConfig()
	cfg.Dialer = dial
	bus, err := signal.Connect(cfg)
	if err != nil {
		return Who{}, err
	}
	defer bus.Close()
	if err := connected(ctx, bus); err != nil {
		return Who{}, err
	}
	ctx, cancel := context.WithTimeout(ctx, whoWait)
	defer cancel()
	answer, err := bus.Request(ctx, verb, nil)
	switch {
	case errors.Is(err, signal.ErrAbsent):
		return Who{}, ErrOlder
	case err != nil:
		return Who{}, err
	}
	var w Who
	if err := decode(answer, &w); err != nil || w.Name != t.Name || w.Role != Client && w.Role != Gateway {
		return Who{}, fmt.Errorf("protocol: %w; update the older of the two", ErrAnswer)
	}
	return w, nil
}

// connected waits for the connection, but for no second attempt where the first shows that none will do.
func connected(ctx context.Context, bus *signal.Bus) error {
	for {
		changed, state := bus.Changed(), bus.State()
		switch {
		case state.Up:
			return nil
		case errors.Is(state.Why, signal.ErrRefused), errors.Is(state.Why, signal.ErrFingerprint):
			return state.Why
		}
		select {
		case <-changed:
		case <-ctx.Done():
			return fmt.Errorf("the portal is not reachable: %w", state.Why)
		}
	}
}

// Encode is the answer's form.
func (w Who) Encode() []byte {
	text, err := json.Marshal(w)
	if err != nil {
		panic("protocol: " + err.Error()) // strings always encode
	}
	return text
}
