package member

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os/signal"
	"runtime"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-vpn/sluice/cmd/internal/environment"
	"github.com/sluice-vpn/sluice/cmd/internal/ops"
	"github.com/sluice-vpn/sluice/cmd/internal/service"
	"github.com/sluice-vpn/sluice/cmd/internal/status"
	"github.com/sluice-vpn/sluice/ice/edge"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
)

const (
	// refusedAgain is when a token that its portal has refused is tried again: the portal may have met with a mishap, and a gateway far
	// away has nobody to sign it in.
	refusedAgain = 5 * time.Minute
	// unreachedAgain is when a token that is to take the place of another one is tried again whose portal was not reached.
	unreachedAgain = 5 * time.Second
)

// presence is what lives from start to end: the status socket, and a node while it is signed in. Its methods belong to the goroutine of
// live, unless they say otherwise.
type presence struct {
	// frozen
	options  Options
	settings environment.Settings
	logger   *slog.Logger
	started  time.Time
	tokens   *tokenFile // nil: the token was given to this start alone
	hangUps  chan struct{}
	notes    []string // of the status, signed in or out

	// read by any goroutine
	node     atomic.Pointer[node]              // nil while signed out
	barrier  atomic.Pointer[barrier]           // nil while signed in, and where the machine does not fail closed
	state    atomic.Pointer[edge.SignInStatus] // frozen
	released atomic.Bool                       // the machine does not fail closed any more

	checks checks
}

// Run runs a gateway or a client until ctx ends, a signal comes, or something fails. Without a token, and when the portal does not take it
// (any more), it waits for one. Errors are one line that says what to do.
func Run(ctx context.Context, o Options) error {
	if o.Userspace == nil && !(runtime.GOOS == "linux" || runtime.GOOS == "windows" && o.Role == protocol.Client) {
		return fmt.Errorf("a %s needs Linux for its routes; on this system there is sluice client -userspace, and sluice-wg", o.Role)
	}
	if o.FailClosed && runtime.GOOS == "windows" && o.Userspace == nil {
		return errors.New("a machine cannot be kept from leaving the tunnel on Windows yet; start without -fail-closed")
	}
	o = o.withDefaults()
	s := environment.Read(o.Getenv)
	if s.Err != nil {
		return s.Err
	}
	environment.Harden()
	ctx, stop := signal.NotifyContext(ctx, environment.EndSignals...)
	defer stop()
	p := newPresence(o, s, o.Log.Logger)
	listener, err := status.Listen(o.Socket)
	if err != nil {
		return err
	}
	if o.Ops != "" { // at once, so that a port that is in use is told before anything else
		l, err := ops.Listen(o.Ops)
		if err != nil {
			return errors.Join(err, listener.Close())
		}
		defer ops.Serve(l, p.opsConfig()).Close()
	}
	if o.Userspace != nil {
		proxies, err := p.listen()
		if err != nil {
			return errors.Join(err, listener.Close())
		}
		defer proxies.Close()
	}
	return p.run(ctx, listener)
}

func newPresence(o Options, s environment.Settings, logger *slog.Logger) *presence {
	p := &presence{options: o, settings: s, logger: logger, started: time.Now(), hangUps: make(chan struct{}, 1)}
	if o.TokenSource == "" {
		p.tokens = newTokenFile(TokenPath(o.State))
	}
	p.checks = checks{mark: o.Mark, verdicts: make(chan verdict), again: time.NewTimer(time.Hour)}
	p.checks.again.Stop()
	p.state.Store(&edge.SignInStatus{})
	return p
}

// run serves the status socket while the program lives.
func (p *presence) run(ctx context.Context, listener net.Listener) error {
	server := p.serve(listener)
	stopStats := environment.OnStatsSignal(p.writeStats)
	defer stopStats()
	stopHangUp := onHangUp(p.hangUp)
	defer stopHangUp()
	following, end := context.WithCancel(ctx)
	var tasks sync.WaitGroup
	tasks.Go(func() { service.Follow(following, p.logger, p.serviceState) })
	if p.tokens != nil {
		tasks.Go(func() { p.tokens.run(following) })
	}
	err := p.live(ctx)
	end()
	tasks.Wait()
	return errors.Join(err, server.Close())
}

// live is signed in or out, in turn.
func (p *presence) live(ctx context.Context) error {
	token, out := p.options.Token, (*signOut)(nil)
	if p.tokens != nil {
		var err error
		if token, err = readStored(p.tokens.path); err != nil {
			out = notStored(err)
			if out.reason == edge.SignedOutNoToken {
				p.logger.Info("No token on disk, starting in signed-out state", "file", p.tokens.path)
			} else {
				p.logger.Warn("starting in signed-out state", "reason", out.reason, "why", out.why)
			}
		}
	}
	for ctx.Err() == nil {
		if out != nil {
			if err := p.wait(ctx, &token, out); err != nil || ctx.Err() != nil {
				return err
			}
		}
		var err error
		if out, err = p.signedIn(ctx, token); err != nil {
			return err
		}
		switch {
		case out == nil:
		case out.next != nil:
			p.logger.Info("another token was given", "name", token.Name, "next", out.next.Name)
			token, out = *out.next, nil
		case out.reason == edge.SignedOutNoToken:
			p.logger.Info("signed out", "name", token.Name, "reason", out.reason, "why", "its token was removed")
			token = protocol.Token{}
		default:
			p.logger.Warn("signed out", "name", token.Name, "reason", out.reason, "why", out.why)
		}
	}
	return nil
}

// signOut is why a node ends while the program goes on. It is the cause of the end of the node's context.
type signOut struct {
	reason string // of edge.SignInStatus
	why    string
	next   *protocol.Token // to sign in with now; nil: none
}

func (s *signOut) Error() string { return s.why }

// notStored is that a token could not be read.
func notStored(err error) *signOut {
	if errors.Is(err, errNoToken) {
		return &signOut{reason: edge.SignedOutNoToken, why: err.Error()}
	}
	return &signOut{reason: edge.SignedOutBadToken, why: err.Error()}
}

// roleError: a token is for another command.
type roleError struct{ role protocol.Role }

func (e *roleError) Error() string {
	return fmt.Sprintf("the token is that of a %s: run sluice %[1]s", e.role)
}

// changes tells that the stored token may be another one; nil: there is none.
func (p *presence) changes() <-chan struct{} {
	if p.tokens == nil {
		return nil
	}
	return p.tokens.changed
}

// wait is the signed-out state. It returns with a token that is worth an attempt, when ctx ends, or with an error. What it begins with
// is a token that was refused, or the zero one.
func (p *presence) wait(ctx context.Context, token *protocol.Token, out *signOut) error {
	defer p.checks.stop()
	if token.Name != "" {
		out.why += fmt.Sprintf("; it is tried again every %.0f min and on SIGHUP", refusedAgain.Minutes())
	}
	tell := func() {
		p.state.Store(&edge.SignInStatus{Since: time.Now(), Token: p.source(), Reason: out.reason, Why: out.why})
	}
	tell()
	if p.failsClosed() {
		b, err := p.newBarrier()
		if err != nil {
			return err
		}
		p.barrier.Store(b)
		p.releaseLate(b.keeper)
		defer func() { p.barrier.Store(nil); b.close(p.logger) }()
	}
	retry := time.NewTicker(refusedAgain)
	defer retry.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case <-p.changes():
			t, err := readStored(p.tokens.path)
			switch {
			case err == nil:
				*token = t
				p.checks.begin(ctx, t)
			case errors.Is(err, errNoToken) && out.reason != edge.SignedOutNoToken:
				p.checks.stop()
				*token, out = protocol.Token{}, notStored(err)
				p.logger.Info("signed out", "reason", out.reason, "why", "the token was removed")
				tell()
			case !errors.Is(err, errNoToken):
				p.checks.stop()
				p.trouble(err)
			}
		case <-retry.C:
			p.retry(ctx, *token)
		case <-p.hangUps:
			p.retry(ctx, *token)
		case v := <-p.checks.verdicts:
			if err := v.against(p.options.Role); err == nil || !v.final() { // a node waits for its portal by itself
				*token = v.token
				return nil
			}
			p.trouble(v.against(p.options.Role))
		}
	}
}

// retry has a token that was refused tried once more.
func (p *presence) retry(ctx context.Context, t protocol.Token) {
	if t.Name != "" {
		p.checks.begin(ctx, t)
	}
}

// signedIn runs a node with a token to its end. Its result is why that was, nil with ctx.
func (p *presence) signedIn(ctx context.Context, token protocol.Token) (*signOut, error) {
	defer p.checks.stop()
	ctx, failed := context.WithCancelCause(ctx)
	defer failed(nil)
	n, err := p.newNode(token, failed)
	if err != nil {
		return nil, err
	}
	p.state.Store(&edge.SignInStatus{SignedIn: true, Since: time.Now(), Token: p.source()})
	p.node.Store(n)
	defer p.node.Store(nil)
	ended := make(chan error, 1)
	go func() { ended <- n.live(ctx) }()
	if n.options.FailClosed {
		p.releaseLate(n.keeper)
	}
	for {
		select {
		case err := <-ended:
			return p.whySignedOut(context.Cause(ctx), err)
		case <-p.changes():
			p.checks.stop()
			next, err := readStored(p.tokens.path)
			switch {
			case errors.Is(err, errNoToken):
				failed(notStored(err))
			case err != nil:
				p.trouble(err)
			case sameToken(next, token):
				p.trouble(nil)
			default:
				p.checks.begin(ctx, next)
			}
		case <-p.checks.again.C:
			p.checks.begin(ctx, p.checks.token)
		case <-p.hangUps:
			n.networkChanged()
		case v := <-p.checks.verdicts:
			err := v.against(p.options.Role)
			switch {
			case err == nil:
				failed(&signOut{next: &v.token, why: "another token was given"})
			case !v.final():
				p.checks.again.Reset(unreachedAgain)
				fallthrough
			default:
				p.trouble(err)
			}
		}
	}
}

// newNode makes a node, with all but what runs.
func (p *presence) newNode(token protocol.Token, failed context.CancelCauseFunc) (*node, error) {
	o := p.options
	o.Token, o.FailClosed = token, p.failsClosed()
	if o.Pins == "" {
		o.Pins = defaultPins(o.State, token.Name)
	}
	n := &node{options: o, settings: p.settings, logger: p.logger, failed: failed, signIn: p.state.Load, notes: p.notes}
	var err error
	if n.portal, err = newPortal(token, o.Mark, o.DNS); err != nil {
		return nil, err
	}
	return n, n.build()
}

// whySignedOut tells apart what ends a node and what ends the program: the cause of the node's end, and its error.
func (p *presence) whySignedOut(cause, err error) (*signOut, error) {
	var out *signOut
	if errors.As(cause, &out) {
		if err != nil {
			p.logger.Warn("signing out has left something behind", "error", oneLine(err))
		}
		return out, nil
	}
	var other *roleError
	if p.tokens != nil && errors.As(cause, &other) {
		return &signOut{reason: edge.SignedOutOtherRole, why: other.Error() + ", or give this one a token of its own with -state FOLDER"}, nil
	}
	return nil, err
}

// trouble tells why a token that has come is not taken; nil: there is none, or it is in use.
func (p *presence) trouble(err error) {
	now := *p.state.Load()
	was := now.Problem
	now.Problem = ""
	if err != nil {
		now.Problem = oneLine(err)
	}
	p.state.Store(&now)
	if now.Problem == "" || now.Problem == was {
		return
	}
	stays := "this node stays signed out"
	if n := p.node.Load(); n != nil {
		stays = "this node stays signed in as " + n.options.Token.Name
	}
	p.logger.Warn("the token is not taken", "why", now.Problem, "state", stays)
}

// source says where the token comes from, or is to.
func (p *presence) source() string {
	if p.tokens != nil {
		return p.tokens.path
	}
	return p.options.TokenSource
}

// failsClosed: nothing is to leave the machine past the tunnel. Any goroutine.
func (p *presence) failsClosed() bool { return p.options.FailClosed && !p.released.Load() }

// hangUp says that the network has changed, or that a refused token is to be tried once more. Any goroutine.
func (p *presence) hangUp() {
	select {
	case p.hangUps <- struct{}{}:
	default:
	}
}

// writeStats writes the node's counters. Any goroutine.
func (p *presence) writeStats() {
	if n := p.node.Load(); n != nil {
		n.writeStats()
		return
	}
	p.logger.Info("SIGUSR1: there are no counters in signed-out state")
}
