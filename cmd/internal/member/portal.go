package member

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"strings"
	"sync"
	"time"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/signal"
	"github.com/sluice-vpn/sluice/tun/host"
)

// portalLink is the connection to the portal that the token names. Frozen.
type portalLink struct {
	address  string // or several
	signaler signal.Signaler
	sync     func(context.Context, protocol.SyncRequest) (protocol.Sync, error)
	state    func() signal.State
	counters func() signal.Counters
	changed  func() <-chan struct{} // closed when state changes next
	check    func()
	close    func() error
}

func newPortal(t protocol.Token, mark uint32, dns []netip.Addr) (*portalLink, error) {
	cfg := t.SignalConfig()
	cfg.Dialer = (&dialer{mark: mark, last: map[string]string{}}).dial
	bus, err := signal.Connect(cfg)
	if err != nil {
		return nil, err
	}
	return &portalLink{
		address: strings.Join(t.Portals, " "), signaler: bus, state: bus.State, counters: bus.Counters, changed: bus.Changed, check: bus.Check, close: bus.Close,
		sync: func(ctx context.Context, q protocol.SyncRequest) (protocol.Sync, error) {
			q.DNS = dns
			return protocol.Ask(ctx, bus, q)
		},
	}, nil
}

// refusedFor is for how long a portal must have refused a token until that is final, and refusedTimes how often: one that ends may do so.
const refusedFor, refusedTimes = 2 * time.Second, 3

// refusedText is why a token is not taken, fingerprintText why the portal is not.
const refusedText = "the portal refuses the token: it was renewed or the node was removed; make another one with sluice portal node token, or node add"
const fingerprintText = "what answers at the portal's address has another certificate than the token says: is the token of another portal, or somebody in between?"

// told is state for those who read it: its reason begins with what the log says where that is not plain.
func (p *portalLink) told() signal.State {
	s := p.state()
	switch {
	case errors.Is(s.Why, signal.ErrRefused):
		s.Why = fmt.Errorf("%s (%w)", refusedText, s.Why)
	case errors.Is(s.Why, signal.ErrFingerprint):
		s.Why = fmt.Errorf("%s (%w)", fingerprintText, s.Why)
	}
	return s
}

// watch logs when the portal comes and goes, until ctx ends. That it stays away for the same reason is one line. It calls revoked once if
// the portal goes on refusing the token.
func (p *portalLink) watch(ctx context.Context, logger *slog.Logger, revoked func(why string)) {
	was := ""
	if p.address != "" {
		logger = logger.With("portal", p.address)
	}
	refusals, since := 0, time.Time{}
	for {
		changed := p.changed()
		state := p.state()
		now := "connected"
		if !state.Up {
			now = fmt.Sprint(state.Why)
		}
		switch { // a refusal whose words were lost when the portal closed looks as if it were not reachable, and is none the less one
		case state.Up:
			refusals = 0
		case errors.Is(state.Why, signal.ErrRefused):
			if refusals++; refusals == 1 {
				since = time.Now()
			}
		}
		if refusals >= refusedTimes && time.Since(since) >= refusedFor {
			revoked(refusedText)
			return
		}
		switch {
		case now == was:
		case state.Up:
			logger.Info("connected to the portal")
		case errors.Is(state.Why, signal.ErrRefused):
			logger.Error(refusedText, "error", now)
		case errors.Is(state.Why, signal.ErrFingerprint):
			logger.Error(fingerprintText, "error", now)
		case state.Attempts > 0:
			logger.Warn("the portal is not reachable; tunnels that are up stay so", "error", now)
		default:
			now = was // the first attempt is under way
		}
		was = now
		select {
		case <-ctx.Done():
			return
		case <-changed:
		}
	}
}

// dialer connects beside the tunnel: its packets, and its questions to name servers, carry the mark. If a default route leads
// into the tunnel, the portal and its name must be found before the tunnel is there. Where names cannot be resolved,
// the address that served last is tried once more.
type dialer struct {
	mark uint32

	mu   sync.Mutex
	last map[string]string // by host:port, the address that was reached; guarded by mu
}

func (d *dialer) dial(ctx context.Context, network, address string) (net.Conn, error) {
	marked := &net.Dialer{Control: host.MarkControl(d.mark)}
	outer := &net.Dialer{Control: marked.Control, Resolver: &net.Resolver{PreferGo: true, Dial: marked.DialContext}}
	conn, err := outer.DialContext(ctx, network, address)
	d.mu.Lock()
	defer d.mu.Unlock()
	if err == nil {
		d.last[address] = conn.RemoteAddr().String()
		return conn, nil
	}
	var unresolved *net.DNSError
	if known := d.last[address]; known != "" && errors.As(err, &unresolved) {
		return marked.DialContext(ctx, network, known)
	}
	return nil, err
}
