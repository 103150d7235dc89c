package signal

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/binary"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
)

// Config is what a Bus needs. It is frozen once given to Connect.
type Config struct {
	// Self is this node's name, the one that Token stands for.
	Self string
	// URLs are the brokers, "tls://host:port" each; any one will do. "nats://" is for tests without TLS.
	URLs []string
	// Fallback names further addresses when no broker of URLs can be reached, each time anew; nil: none. That they serve neither is
	// not told.
	Fallback func() []string
	// Token is what the broker knows the node by. It is only sent inside TLS, if TLS is set.
	Token string
	// TLS is the client's configuration, see Fingerprint.TLSConfig. With it a broker that offers no TLS is refused.
	TLS *tls.Config
	// TLSAfterInfo is for brokers whose first line is in the clear (a NATS cluster without handshake_first).
	TLSAfterInfo bool
	// Filter is applied to received candidates.
	Filter Filter

	// Wait limits how long Send waits for the portal and for the answer together; 0 means 5 s.
	Wait time.Duration
	// Dial limits one attempt to connect, TLS and sign-in included; 0 means 5 s.
	Dial time.Duration
	// MinRetry and MaxRetry are the least and most time between attempts to connect, which doubles from one to the
	// other; up to half of it is added by chance. 0 means 200 ms and 15 s.
	MinRetry, MaxRetry time.Duration
	// Dialer makes the TCP connections, for sockets that need a fwmark for example; nil means net.Dialer. It is also asked for "udp",
	// to see from which address a connection would leave.
	Dialer func(ctx context.Context, network, address string) (net.Conn, error)
	// Queue is the length of the queue behind Recv; 0 means 256 messages.
	Queue int
	// Now is the clock for State; nil means time.Now.
	Now func() time.Time
}

// Bus is a Signaler on a NATS broker. It connects again for as long as it is not closed.
type Bus struct {
	// Frozen.
	cfg    Config
	run    uint64
	ctx    context.Context // ended by Close
	cancel context.CancelFunc
	done   chan struct{} // closed when the goroutine of keep has ended
	checks chan struct{} // of one slot: Check was called
	in     *inbox

	mu      sync.Mutex
	conn    *nats.Conn // nil while the portal is away
	abandon func()     // ends the attempt to connect that is under way, nil if none is
	state   State
	changed chan struct{} // closed and replaced when state changes
	pending map[uint64]waiting
	nextID  uint64
}

// waiting is a sent message that was not confirmed yet.
type waiting struct {
	to     string
	result chan error // of capacity 1; only what removes the entry from pending sends to it
}

var errConnecting = errors.New("connecting for the first time")

// Connect starts a Bus and returns at once, whether the portal is there or not: State tells. An error means that cfg
// is not usable.
func Connect(cfg Config) (*Bus, error) {
	if !ValidName(cfg.Self) {
		return nil, fmt.Errorf("signal: own name %q: %w", cfg.Self, ErrName)
	}
	if len(cfg.URLs) == 0 {
		return nil, errors.New("signal: no address of a portal")
	}
	setDefault(&cfg.Wait, 5*time.Second)
	setDefault(&cfg.Dial, 5*time.Second)
	setDefault(&cfg.MinRetry, 200*time.Millisecond)
	setDefault(&cfg.MaxRetry, 15*time.Second)
	if cfg.Dialer == nil {
		cfg.Dialer = new(net.Dialer).DialContext
	}
	if cfg.Now == nil {
		cfg.Now = time.Now
	}
	b := &Bus{
		cfg: cfg, run: newRun(), done: make(chan struct{}), checks: make(chan struct{}, 1), in: newInbox(cfg.Self, cfg.Filter, cfg.Queue),
		state: State{Since: cfg.Now(), Why: errConnecting}, changed: make(chan struct{}), pending: map[uint64]waiting{},
	}
	b.ctx, b.cancel = context.WithCancel(context.Background())
	go b.keep()
	return b, nil
}

func setDefault(d *time.Duration, value time.Duration) {
	if *d <= 0 {
		*d = value
	}
}

// newRun draws a number that is not 0 and that JSON numbers hold exactly everywhere.
func newRun() uint64 {
	var b [8]byte
	rand.Read(b[:]) // never fails
	return binary.LittleEndian.Uint64(b[:])>>11 | 1
}

// Send implements Signaler. A message is sent once; whether to try again is the caller's choice.
func (b *Bus) Send(ctx context.Context, to string, msg Message) error {
	if err := b.send(ctx, to, msg); err != nil {
		return fmt.Errorf("signal: %s to %q: %w", msg.Kind, to, err)
	}
	return nil
}

func (b *Bus) send(ctx context.Context, to string, msg Message) error {
	if !ValidName(to) || to == b.cfg.Self {
		return ErrName
	}
	msg.Run = b.run
	data, err := msg.Encode()
	if err != nil {
		return err
	}
	limited, cancel := context.WithTimeout(ctx, b.cfg.Wait)
	defer cancel()
	conn, err := b.connection(ctx, limited)
	if err != nil {
		return err
	}
	id, result, err := b.expect(conn, to)
	if err != nil {
		return err
	}
	reply := ackPrefix(b.cfg.Self, to) + strconv.FormatUint(id, 10)
	if err := conn.PublishRequest(messageSubject(to, b.cfg.Self), reply, data); err != nil {
		b.settle(id, to, fmt.Errorf("%w: %w", ErrDown, err))
	}
	select {
	case err := <-result:
		return err
	case <-limited.Done():
		b.settle(id, to, nil) // nobody listens any more
		if ctx.Err() == nil {
			b.Check() // is it the peer or the portal that does not answer?
		}
		return expired(ctx, ErrUnanswered)
	}
}

// expired returns the error of a wait that has ended: the caller's own, or ours if it was our limit.
func expired(ctx context.Context, ours error) error {
	if err := ctx.Err(); err != nil {
		return err
	}
	return ours
}

// connection waits for the portal until limited ends. ctx is the caller's part of limited.
func (b *Bus) connection(ctx, limited context.Context) (*nats.Conn, error) {
	for {
		b.mu.Lock()
		conn, changed, why := b.conn, b.changed, b.state.Why
		b.mu.Unlock()
		switch {
		case b.ctx.Err() != nil:
			return nil, ErrClosed
		case limited.Err() != nil:
			return nil, expired(ctx, fmt.Errorf("%w: %w", ErrDown, why))
		case conn != nil:
			return conn, nil
		}
		select {
		case <-changed:
		case <-limited.Done():
		case <-b.ctx.Done():
		}
	}
}

// expect registers a message that is about to be sent over conn.
func (b *Bus) expect(conn *nats.Conn, to string) (id uint64, result chan error, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if b.conn != conn {
		return 0, nil, fmt.Errorf("%w: %w", ErrDown, b.whyLocked())
	}
	b.nextID++
	w := waiting{to: to, result: make(chan error, 1)}
	b.pending[b.nextID] = w
	return b.nextID, w.result, nil
}

func (b *Bus) whyLocked() error {
	if b.state.Why != nil {
		return b.state.Why
	}
	return errEnded
}

// settle gives the message id, which went to the node to, its result. Without such a message nothing happens: answers may come
// late, twice, or be invented by the peer.
func (b *Bus) settle(id uint64, to string, err error) {
	b.mu.Lock()
	defer b.mu.Unlock()
	if w, ok := b.pending[id]; ok && w.to == to {
		delete(b.pending, id)
		w.result <- err
	}
}

// Request asks the portal and returns its answer, which the caller owns. verb is one or more labels with dots between; the
// answer's form is between the caller and the portal. It waits for the connection for at most Config.Wait, and for the answer until
// ctx's deadline, or, if ctx has none, within Config.Wait too. Errors are those of Send; ErrAbsent means that no portal serves this
// verb.
func (b *Bus) Request(ctx context.Context, verb string, data []byte) ([]byte, error) {
	answer, err := b.request(ctx, verb, data)
	if err != nil {
		return nil, fmt.Errorf("signal: request %q: %w", verb, err)
	}
	return answer, nil
}

func (b *Bus) request(ctx context.Context, verb string, data []byte) ([]byte, error) {
	if !ValidVerb(verb) {
		return nil, ErrName
	}
	limited, cancel := context.WithTimeout(ctx, b.cfg.Wait)
	defer cancel()
	conn, err := b.connection(ctx, limited)
	if err != nil {
		return nil, err
	}
	if _, ok := ctx.Deadline(); ok {
		limited = ctx // the portal may hold the request
	}
	msg, err := conn.RequestWithContext(limited, PortalSubject(b.cfg.Self, verb), data)
	switch {
	case err == nil:
		return msg.Data, nil
	case errors.Is(err, nats.ErrNoResponders):
		return nil, ErrAbsent
	case limited.Err() != nil:
		return nil, expired(ctx, ErrUnanswered)
	case b.ctx.Err() != nil:
		return nil, ErrClosed
	default:
		return nil, fmt.Errorf("%w: %w", ErrDown, err)
	}
}

// Recv implements Signaler.
func (b *Bus) Recv() <-chan Msg { return b.in.queue }

// State returns whether the portal is reachable, since when, and why not.
func (b *Bus) State() State {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.state
}

// Changed returns a channel that is closed when State changes next. Take it before State, so that nothing is missed.
func (b *Bus) Changed() <-chan struct{} {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.changed
}

// Remote returns the address of the broker that the Bus is connected with. It waits for the connection for at most Config.Wait;
// errors are those of Send. The address is invalid if the connection ends meanwhile.
func (b *Bus) Remote(ctx context.Context) (netip.Addr, error) {
	limited, cancel := context.WithTimeout(ctx, b.cfg.Wait)
	defer cancel()
	conn, err := b.connection(ctx, limited)
	if err != nil {
		return netip.Addr{}, fmt.Errorf("signal: %w", err)
	}
	at, _ := netip.ParseAddrPort(conn.ConnectedAddr()) // empty if it has ended
	return at.Addr().Unmap().WithZone(""), nil
}

// Counters returns what was received and dropped until now.
func (b *Bus) Counters() Counters { return b.in.counters() }

// Close ends, in this order: the connection and every wait on it (ErrClosed), the goroutine, the queue of Recv. It
// returns when all have; what the NATS client started ends with its connection a moment later. It may be called twice.
func (b *Bus) Close() error {
	b.cancel()
	<-b.done
	b.in.close()
	return nil
}
