package signal_test

import (
	"context"
	"errors"
	"io"
	"net"
	"sync"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/ice/signal"
)

// passage is a TCP proxy in front of a portal. What is on its way when freeze is called arrives nowhere, and no connection ends: as
// after a change of the network.
type passage struct {
	listener net.Listener
	mu       sync.Mutex
	frozen   []*atomic.Bool
}

func newPassage(t *testing.T, to string) *passage {
	t.Helper()
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	p := &passage{listener: l}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			near, err := l.Accept()
			if err != nil {
				return
			}
			far, err := net.Dial("tcp", to)
			if err != nil {
				near.Close()
				continue
			}
			t.Cleanup(func() { near.Close(); far.Close() })
			frozen := new(atomic.Bool)
			p.mu.Lock()
			p.frozen = append(p.frozen, frozen)
			p.mu.Unlock()
			go pass(near, far, frozen)
			go pass(far, near, frozen)
		}
	}()
	return p
}

func pass(to, from net.Conn, frozen *atomic.Bool) {
	b := make([]byte, 4096)
	for {
		n, err := from.Read(b)
		switch {
		case frozen.Load(): // a FIN is lost as well
			if err != nil {
				return
			}
		case err != nil:
			to.Close()
			return
		default:
			to.Write(b[:n])
		}
	}
}

func (p *passage) freeze() {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, f := range p.frozen {
		f.Store(true)
	}
}

// again waits until the bus has another connection than the one that was up since then.
func again(t *testing.T, b *signal.Bus, since time.Time) {
	t.Helper()
	await(t, b, "connected anew", func(s signal.State) bool { return s.Up && s.Since.After(since) })
	if err := b.Send(context.Background(), "b", bye()); err != nil {
		t.Error(err)
	}
}

// A check finds a connection out that leads nowhere, long before the silence of the broker does, and leaves a good one alone.
func TestCheck(t *testing.T) {
	p := newPortal(t, nil)
	b := connect(t, p.config("b"))
	way := newPassage(t, p.cfg.Listen.String())
	cfg := p.config("a")
	cfg.URLs = []string{"nats://" + way.listener.Addr().String()}
	a := connect(t, cfg)
	awaitUp(t, a)
	awaitUp(t, b)

	since := a.State().Since
	a.Check()
	if err := a.Send(context.Background(), "b", bye()); err != nil {
		t.Error(err)
	}
	time.Sleep(50 * time.Millisecond)
	if s := a.State(); !s.Up || s.Since != since {
		t.Errorf("a good connection was ended: %+v", s)
	}
	way.freeze()
	a.Check()
	again(t, a, since)

	cfg.Self, cfg.Token, cfg.Wait = "c", "token-c", 50*time.Millisecond
	c := connect(t, cfg)
	awaitUp(t, c)
	since = c.State().Since
	way.freeze()
	if err := c.Send(context.Background(), "a", bye()); !errors.Is(err, signal.ErrUnanswered) {
		t.Errorf("into nowhere: %v", err)
	}
	await(t, c, "connected anew after no answer came", func(s signal.State) bool { return s.Up && s.Since.After(since) })
}

// A connection that would now leave from another address is not asked any more.
func TestCheckAddress(t *testing.T) {
	p := newPortal(t, nil)
	b := connect(t, p.config("b"))
	awaitUp(t, b)
	way := newPassage(t, p.cfg.Listen.String())
	cfg := p.config("a")
	cfg.URLs = []string{"nats://" + way.listener.Addr().String()}
	var local atomic.Value
	local.Store("127.0.0.1")
	cfg.Dialer = func(ctx context.Context, network, address string) (net.Conn, error) {
		ip := net.ParseIP(local.Load().(string))
		d := net.Dialer{LocalAddr: &net.TCPAddr{IP: ip}}
		if network == "udp" {
			d.LocalAddr = &net.UDPAddr{IP: ip}
		}
		return d.DialContext(ctx, network, address)
	}
	a := connect(t, cfg)
	awaitUp(t, a)
	since := a.State().Since
	local.Store("127.0.0.2")
	a.Check()
	again(t, a, since)
}

// A check begins an attempt at once where one waits for its turn, and anew where one is under way.
func TestCheckWhileAway(t *testing.T) {
	p := newPortal(t, nil)
	b := connect(t, p.config("b"))
	awaitUp(t, b)
	for name, first := range map[string]func(ctx context.Context) error{
		"it waits":        func(context.Context) error { return io.EOF },
		"it is under way": func(ctx context.Context) error { <-ctx.Done(); return ctx.Err() },
	} {
		cfg := p.config("a")
		cfg.MinRetry, cfg.MaxRetry, cfg.Dial = time.Hour, time.Hour, time.Hour
		dialed := make(chan struct{}, 10)
		var dials atomic.Int32
		cfg.Dialer = func(ctx context.Context, network, address string) (net.Conn, error) {
			dialed <- struct{}{}
			if dials.Add(1) == 1 {
				return nil, first(ctx)
			}
			return new(net.Dialer).DialContext(ctx, network, address)
		}
		a := connect(t, cfg)
		<-dialed
		if name == "it waits" {
			await(t, a, "down", func(s signal.State) bool { return s.Attempts == 1 })
		}
		a.Check()
		again(t, a, time.Time{})
		if n := a.State().Attempts; n != 0 {
			t.Errorf("%s: %d attempts", name, n)
		}
		a.Close()
	}
}
