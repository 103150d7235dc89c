package member

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"log/slog"
	"strings"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/cmd/internal/logs"
	"github.com/sluice-vpn/sluice/ice/signal"
)

// What status says of a portal that is not there begins with what the log says, where the library's words tell nobody anything.
func TestPortalWords(t *testing.T) {
	refused, replaced := fmt.Errorf("%w: nats: authorization violation", signal.ErrRefused), fmt.Errorf("nats: tls error: %w", signal.ErrFingerprint)
	for name, test := range map[string]struct {
		why  error
		want string
	}{
		"the token was renewed":        {refused, refusedText + " (" + refused.Error() + ")"},
		"a portal of another identity": {replaced, fingerprintText + " (" + replaced.Error() + ")"},
		"what needs no words of ours":  {errors.New("connection refused"), "connection refused"},
		"nothing, since it is there":   {nil, ""},
	} {
		log := new(bytes.Buffer)
		p := &portalLink{
			state: func() signal.State {
				return signal.State{Up: test.why == nil, Attempts: 1, Since: time.Now(), Why: test.why}
			},
			changed: func() <-chan struct{} { return nil },
		}
		ctx, cancel := context.WithCancel(context.Background())
		cancel() // watch logs the present state, and ends
		p.watch(ctx, slog.New(logs.NewText(log, slog.LevelDebug)), func(string) {})
		told, got := p.told().Why, ""
		if told != nil {
			got = told.Error()
		}
		if got != test.want || !errors.Is(told, test.why) {
			t.Errorf("%s: %q, want %q", name, got, test.want)
		}
		if words, _, ours := strings.Cut(test.want, " ("); ours && !strings.Contains(log.String(), words) {
			t.Errorf("%s: the log says %q, want what status says: %q", name, log, words)
		}
	}
}
