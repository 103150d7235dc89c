package member

import (
	"context"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/signal"
	"github.com/sluice-vpn/sluice/tun/host"
)

// overlay are the prefixes that tunnel addresses come from: never the address of a candidate.
var overlay = []netip.Prefix{netip.MustParsePrefix("100.64.0.0/11"), netip.MustParsePrefix("fd00:2021:1111::/107")}

// portal is the connection to the portal that the token names.
type portal struct{ bus *signal.Bus }

func newPortal(t protocol.Token, mark uint32) (*portal, error) {
	urls := make([]string, len(t.Portals))
	for i, address := range t.Portals {
		urls[i] = "tls://" + address
	}
	d := &dialer{mark: mark, last: map[string]string{}}
	bus, err := signal.Connect(signal.Config{
		Self: t.Name, URLs: urls, Token: base64.RawURLEncoding.EncodeToString(t.Secret[:]),
		TLS: signal.Fingerprint(t.Fingerprint).TLSConfig(), Filter: signal.Filter{Overlay: overlay}, Dialer: d.dial,
	})
	return &portal{bus}, err
}

// sync asks the portal.
func (p *portal) sync(ctx context.Context, q protocol.SyncRequest) (s protocol.Sync, err error) {
	data, err := json.Marshal(q)
	if err != nil {
		return s, err
	}
	answer, err := p.bus.Request(ctx, protocol.Verb, data)
	if err != nil {
		return s, err
	}
	if err := json.Unmarshal(answer, &s); err != nil {
		return s, fmt.Errorf("the portal's answer is not understood: %w", err)
	}
	return s, nil
}

func (p *portal) Close() error { return p.bus.Close() }

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
