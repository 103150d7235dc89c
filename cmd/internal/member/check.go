package member

import (
	"context"
	"crypto/subtle"
	"time"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
)

// checks has one token after the other checked by its portal. Owned by one goroutine.
type checks struct {
	mark     uint32
	verdicts chan verdict
	again    *time.Timer // for who wants another check later
	token    protocol.Token
	cancel   context.CancelFunc // nil: no check is under way
}

// verdict is what has become of a check.
type verdict struct {
	token protocol.Token
	who   protocol.Who
	err   error
}

// begin has a token checked, in place of another one.
func (c *checks) begin(ctx context.Context, t protocol.Token) {
	c.stop()
	ctx, c.cancel = context.WithCancel(ctx)
	c.token = t
	go func() {
		who, err := askPortal(ctx, t, protocol.WhoVerb, c.mark)
		select {
		case c.verdicts <- verdict{t, who, err}:
		case <-ctx.Done():
		}
	}()
}

// stop ends the check that is under way, and the wait for another one. There is no verdict then.
func (c *checks) stop() {
	c.again.Stop()
	if c.cancel != nil {
		c.cancel()
		c.cancel = nil
	}
}

// against is why the token is not good for a node of that role, nil if it is.
func (v *verdict) against(role protocol.Role) error {
	if v.err == nil && v.who.Role != role {
		return &roleError{v.who.Role}
	}
	return v.err
}

// final: the portal has spoken.
func (v *verdict) final() bool { return v.err == nil || refused(v.err) }

func sameToken(a, b protocol.Token) bool {
	return subtle.ConstantTimeCompare([]byte(a.Encode()), []byte(b.Encode())) == 1
}
