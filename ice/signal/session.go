package signal

import (
	"context"
	"crypto/tls"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

const (
	// Half a minute of silence is the end of a connection.
	pingInterval, pingsOut = 10 * time.Second, 2
	// maxBacklog are the messages that may wait to be decoded, in the NATS client.
	maxBacklog = 1024
)

var (
	errEnded = errors.New("connection to the portal ended")
	// errStale ends a connection, or an attempt to make one, that Check has found to lead nowhere. The next attempt follows at once.
	errStale = errors.New("the connection to the portal led nowhere")
)

// keep is the goroutine of a Bus: one session after the other.
func (b *Bus) keep() {
	defer close(b.done)
	retry := b.cfg.MinRetry
	for {
		began := b.cfg.Now()
		why := b.session()
		if b.ctx.Err() != nil {
			b.leave(ErrClosed)
			return
		}
		b.leave(why)
		// A session that lasted starts the doubling anew. One that is ended at once, again and again, does not.
		if errors.Is(why, errStale) || b.cfg.Now().Sub(began) > b.cfg.MaxRetry {
			retry = b.cfg.MinRetry
		}
		if errors.Is(why, errStale) {
			continue
		}
		pause := time.NewTimer(retry + rand.N(retry/2+1))
		retry = min(2*retry, b.cfg.MaxRetry)
		select {
		case <-pause.C:
		case <-b.checks:
			retry = b.cfg.MinRetry
		case <-b.ctx.Done():
		}
		pause.Stop()
	}
}

// session connects, serves until the connection ends and says why it did.
func (b *Bus) session() error {
	ctx, cancel := context.WithCancelCause(b.ctx)
	defer cancel(nil)
	d := &dialer{ctx: ctx, timeout: b.cfg.Dial, dial: b.cfg.Dialer}
	b.attempt(func() { cancel(errStale) })
	conn, ended, err := b.connect(d, b.cfg.URLs)
	if conn == nil && b.cfg.Fallback != nil && ctx.Err() == nil && !errors.Is(err, ErrRefused) {
		if other, over, failed := b.connect(d, b.cfg.Fallback()); failed == nil {
			conn, ended, err = other, over, nil
		} else if other != nil {
			other.Close()
		}
	}
	b.attempt(nil)
	if cause := context.Cause(ctx); errors.Is(cause, errStale) {
		err = cause
	}
	if conn != nil {
		defer conn.Close()
	}
	if err != nil {
		return err
	}
	select {
	case err := <-ended: // the broker refused a subscription
		return err
	default:
	}
	b.enter(conn)
	for {
		select {
		case err := <-ended:
			return err
		case <-b.checks:
			if !d.current() || conn.FlushTimeout(checkWait) != nil {
				return errStale
			}
		case <-b.ctx.Done():
			return ErrClosed
		}
	}
}

// connect makes a connection with subscriptions; ended gets why it is over. With an error there may be a connection all the same.
func (b *Bus) connect(d *dialer, urls []string) (conn *nats.Conn, ended chan error, err error) {
	ended = make(chan error, 1)
	o := b.options(d, func(err error) {
		select {
		case ended <- err:
		default:
		}
	})
	o.Servers = urls
	if conn, err = o.Connect(); err != nil {
		return nil, ended, connectError(err, d.lastError())
	}
	if err := b.subscribe(conn); err != nil {
		return conn, ended, fmt.Errorf("subscribe: %w", err)
	}
	return conn, ended, nil
}

// attempt notes how the attempt to connect is ended that begins, or with nil that it is over.
func (b *Bus) attempt(abandon func()) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.abandon = abandon
}

// checkWait is how long the portal may take to answer a check.
const checkWait = time.Second

// Check is for when the network has changed. A connection that leads nowhere any more is found out within a second, where the
// broker's silence would take half a minute, and replaced; one that is being made, or waits to be, is begun anew at once. It does
// not block.
func (b *Bus) Check() {
	select {
	case b.checks <- struct{}{}:
	default:
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.abandon != nil {
		b.abandon()
	}
}

func (b *Bus) options(d *dialer, end func(error)) *nats.Options {
	o := nats.GetDefaultOptions()
	o.Token, o.Name = b.cfg.Token, b.cfg.Self
	o.Timeout, o.FlusherTimeout = b.cfg.Dial, b.cfg.Dial
	o.PingInterval, o.MaxPingsOut = pingInterval, pingsOut
	o.InboxPrefix = InboxPrefix(b.cfg.Self)
	o.NoEcho = true
	// keep connects again, so that nothing is buffered meanwhile, and reasons are not lost.
	o.AllowReconnect = false
	o.CustomDialer, o.SkipHostLookup = d, true
	// Addresses that a broker behind a NAT advertises are not reachable.
	o.IgnoreDiscoveredServers = true
	if b.cfg.TLS != nil {
		o.Secure, o.TLSConfig, o.TLSHandshakeFirst = true, b.cfg.TLS, !b.cfg.TLSAfterInfo
	}
	o.ClosedCB = func(c *nats.Conn) { end(endError(c.LastError())) }
	o.AsyncErrorCB = func(_ *nats.Conn, _ *nats.Subscription, err error) { b.handleError(err, end) }
	return &o
}

// handleError takes what the broker complains about while connected.
func (b *Bus) handleError(err error, end func(error)) {
	if !errors.Is(err, nats.ErrPermissionViolation) {
		return // a slow consumer, which NATS has counted and dropped; anything worse ends the connection
	}
	if strings.Contains(strings.ToLower(err.Error()), "for subscription") {
		end(fmt.Errorf("%w: %w", ErrForbidden, err))
		return
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	for id, w := range b.pending {
		if strings.Contains(err.Error(), strconv.Quote(messageSubject(w.to, b.cfg.Self))) {
			delete(b.pending, id)
			w.result <- ErrForbidden
		}
	}
}

// subscribe returns once the broker has taken the subscriptions, or complained.
func (b *Bus) subscribe(conn *nats.Conn) error {
	for subject, receive := range map[string]nats.MsgHandler{
		messageSubject(b.cfg.Self, ">"):      b.receive,
		InboxPrefix(b.cfg.Self) + ".ack.*.*": b.confirmed,
	} {
		sub, err := conn.Subscribe(subject, receive)
		if err != nil {
			return err
		}
		if err := sub.SetPendingLimits(maxBacklog, maxBacklog*1024); err != nil {
			return err
		}
	}
	return conn.FlushTimeout(b.cfg.Dial)
}

// receive takes a message of a peer and confirms it. It runs on a goroutine of the NATS client.
func (b *Bus) receive(m *nats.Msg) {
	from, ok := sender(m.Subject, b.cfg.Self)
	if !ok {
		b.in.sender.Add(1)
		return
	}
	// The sender chose the reply subject. Without this check it could make us write to others under our name.
	if m.Reply != "" && !validAck(m.Reply, from, b.cfg.Self) {
		b.in.reply.Add(1)
		return
	}
	if b.in.handle(from, m.Data) && m.Reply != "" {
		_ = m.Respond(nil) // if it fails, the connection ends
	}
}

// confirmed takes a peer's confirmation, or the broker's word that there is no such peer.
func (b *Bus) confirmed(m *nats.Msg) {
	rest, ok := strings.CutPrefix(m.Subject, InboxPrefix(b.cfg.Self)+".ack.")
	if !ok {
		return
	}
	peer, digits, _ := strings.Cut(rest, ".")
	id, err := strconv.ParseUint(digits, 10, 64)
	if err != nil {
		return
	}
	var result error
	if len(m.Data) == 0 && m.Header.Get("Status") == "503" {
		result = ErrAbsent
	}
	b.settle(id, peer, result)
}

func (b *Bus) enter(conn *nats.Conn) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.conn = conn
	b.state = State{Up: true, Since: b.cfg.Now()}
	b.publishLocked()
}

// leave notes that there is no connection, and why, and ends what waits for an answer. An attempt that Check has ended is no news.
func (b *Bus) leave(why error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if !b.state.Up && errors.Is(why, errStale) {
		return
	}
	b.conn = nil
	if b.state.Up {
		b.state = State{Since: b.cfg.Now(), Why: why}
	} else {
		b.state.Why = why
		b.state.Attempts++
	}
	for id, w := range b.pending {
		delete(b.pending, id)
		if errors.Is(why, ErrClosed) {
			w.result <- ErrClosed
		} else {
			w.result <- fmt.Errorf("%w: %w", ErrDown, why)
		}
	}
	b.publishLocked()
}

func (b *Bus) publishLocked() {
	close(b.changed)
	b.changed = make(chan struct{})
}

// connectError names the reason of a failed attempt. dial is what the dialer saw, which the NATS client hides.
func connectError(err, dial error) error {
	switch {
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAuthRevoked):
		return ErrRefused
	case isBusy(err):
		return ErrBusy
	case errors.Is(err, nats.ErrNoServers) && dial != nil:
		return fmt.Errorf("connect to the portal: %w", dial)
	default:
		return fmt.Errorf("connect to the portal: %w", err)
	}
}

// BusyLine is what a broker says to a connection that is one too many, if it says it before TLS.
const BusyLine = "-ERR 'maximum connections exceeded'\r\n"

// isBusy reports whether a broker has said that it takes no more connections, inside TLS or in its place.
func isBusy(err error) bool {
	var record tls.RecordHeaderError
	return errors.Is(err, nats.ErrMaxConnectionsExceeded) || errors.As(err, &record) && string(record.RecordHeader[:]) == BusyLine[:len(record.RecordHeader)]
}

func endError(err error) error {
	switch {
	case err == nil:
		return errEnded
	case errors.Is(err, nats.ErrAuthorization), errors.Is(err, nats.ErrAuthExpired), errors.Is(err, nats.ErrAuthRevoked):
		return ErrRefused
	default:
		return fmt.Errorf("%w: %w", errEnded, err)
	}
}

// dialer makes the TCP connections of one session, which end with ctx: Close waits neither for a name server nor for a
// portal that has gone silent.
type dialer struct {
	ctx     context.Context
	timeout time.Duration
	dial    func(ctx context.Context, network, address string) (net.Conn, error)

	mu   sync.Mutex
	last error    // of the last Dial
	conn net.Conn // of the last Dial
}

// Dial implements nats.CustomDialer.
func (d *dialer) Dial(network, address string) (net.Conn, error) {
	ctx, cancel := context.WithTimeout(d.ctx, d.timeout)
	defer cancel()
	conn, err := d.dial(ctx, network, address)
	d.mu.Lock()
	d.last, d.conn = err, conn
	d.mu.Unlock()
	if err != nil {
		return nil, err
	}
	stop := context.AfterFunc(d.ctx, func() { conn.Close() })
	return &dialed{Conn: conn, stop: stop}, nil
}

func (d *dialer) lastError() error {
	d.mu.Lock()
	defer d.mu.Unlock()
	return d.last
}

// current reports whether a connection that was made now would leave from the same address as the last one did: connecting a UDP
// socket sends nothing and asks the routing table.
func (d *dialer) current() bool {
	d.mu.Lock()
	conn := d.conn
	d.mu.Unlock()
	probe, err := d.dial(d.ctx, "udp", conn.RemoteAddr().String())
	if err != nil {
		return false // there is no way at all
	}
	defer probe.Close()
	return hostOf(probe.LocalAddr()) == hostOf(conn.LocalAddr())
}

func hostOf(a net.Addr) string {
	host, _, _ := net.SplitHostPort(a.String())
	return host
}

// dialed forgets its context when it is closed.
type dialed struct {
	net.Conn
	stop func() bool
}

// Close implements net.Conn.
func (c *dialed) Close() error {
	c.stop()
	return c.Conn.Close()
}
