package turn

import (
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/ice/stun"
)

// live runs a client on a real socket, against a real server. Its clock can be put forward, so no test waits for minutes.
type live struct {
	t      *testing.T
	c      *Client
	conn   *net.UDPConn
	epoch  time.Time
	ahead  time.Duration
	events []Output
	got    []Payload
}

func listen(t *testing.T, ip string) *net.UDPConn {
	t.Helper()
	conn, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.ParseIP(ip)})
	if err != nil {
		t.Skipf("SKIPPED: this machine lacks the address family of %s: %v", ip, err)
	}
	t.Cleanup(func() { conn.Close() })
	return conn
}

func newLive(t *testing.T, config Config) *live {
	t.Helper()
	c, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	ip := "127.0.0.1"
	if config.Server.Addr().Is6() {
		ip = "::1"
	}
	return &live{t: t, c: c, conn: listen(t, ip), epoch: time.Now()}
}

func (l *live) now() time.Duration { return start + time.Since(l.epoch) + l.ahead }

func (l *live) drain() {
	for {
		out, ok := l.c.Poll()
		if !ok {
			return
		}
		if out.Kind == SendDatagram {
			l.send(out.Datagram)
			continue
		}
		l.events = append(l.events, out)
	}
}

func (l *live) send(b []byte) {
	// A server that was just closed may show as ECONNREFUSED here; that is a lost datagram.
	_, _ = l.conn.WriteToUDPAddrPort(b, l.c.Server())
}

// step takes one datagram, or lets at most 5 ms pass.
func (l *live) step() {
	buffer := make([]byte, 2048)
	l.drain()
	if err := l.conn.SetReadDeadline(time.Now().Add(5 * time.Millisecond)); err != nil {
		l.t.Fatal(err)
	}
	n, src, err := l.conn.ReadFromUDPAddrPort(buffer)
	if err == nil {
		src = netip.AddrPortFrom(src.Addr().Unmap(), src.Port())
		if p, ok := l.c.Handle(l.now(), src, buffer[:n]); ok {
			l.got = append(l.got, p)
		}
	}
	l.c.HandleTimeout(l.now())
	l.drain()
}

// until runs until there is an event of this kind, which is returned; what came before is forgotten.
func (l *live) until(kind OutputKind) Output {
	l.t.Helper()
	for limit := time.Now().Add(15 * time.Second); time.Now().Before(limit); l.step() {
		for i, e := range l.events {
			if e.Kind == kind {
				l.events = l.events[i+1:]
				return e
			}
			if e.Final && kind != Failed {
				l.t.Fatalf("failed: %v %d", e.Reason, e.Code)
			}
		}
	}
	l.t.Fatalf("no %v; events %+v, client %v", kind, l.events, l.c)
	return Output{}
}

// skip puts the clock forward, in steps short enough for what falls due between to be answered.
func (l *live) skip(d time.Duration) {
	for ; d > 0; d -= 5 * time.Second {
		l.ahead += min(d, 5*time.Second)
		l.drain()
		for limit := time.Now().Add(5 * time.Second); ; {
			l.step()
			if len(l.c.transactions) == 0 || time.Now().After(limit) {
				break
			}
		}
	}
}

// receive returns the next datagram at a peer, and who sent it.
func receive(t *testing.T, conn *net.UDPConn) (string, netip.AddrPort) {
	t.Helper()
	buffer := make([]byte, 2048)
	if err := conn.SetReadDeadline(time.Now().Add(10 * time.Second)); err != nil {
		t.Fatal(err)
	}
	n, src, err := conn.ReadFromUDPAddrPort(buffer)
	if err != nil {
		t.Fatal(err)
	}
	return string(buffer[:n]), netip.AddrPortFrom(src.Addr().Unmap(), src.Port())
}

func (l *live) payload() Payload {
	l.t.Helper()
	for limit := time.Now().Add(10 * time.Second); time.Now().Before(limit); l.step() {
		if len(l.got) > 0 {
			p := l.got[0]
			l.got = l.got[1:]
			return p
		}
	}
	l.t.Fatal("nothing came back")
	return Payload{}
}

// exchange is what every server must do for us: an allocation, a permission, a channel, both directions of each, and refreshes.
func (l *live) exchange() {
	t, relayedIP := l.t, "127.0.0.1"
	l.c.Start(l.now())
	allocated := l.until(Allocated)
	own := l.conn.LocalAddr().(*net.UDPAddr).AddrPort()
	if allocated.Mapped != own || allocated.Relayed.Port() == 0 {
		t.Fatalf("%+v, our address is %v", allocated, own)
	}
	if allocated.Relayed.Addr().Is6() {
		relayedIP = "::1"
	}
	peer := listen(t, relayedIP)
	at := peer.LocalAddr().(*net.UDPAddr).AddrPort()

	if err := l.c.Permit(l.now(), at.Addr()); err != nil {
		t.Fatal(err)
	}
	l.until(Permitted)
	l.send(indication(stun.Send, stun.ID{9}, at, []byte("indicated")))
	if data, src := receive(t, peer); data != "indicated" || src != allocated.Relayed {
		t.Fatalf("%q from %v", data, src)
	}
	reply := func(text string, channel uint16) {
		t.Helper()
		if _, err := peer.WriteToUDPAddrPort([]byte(text), allocated.Relayed); err != nil {
			t.Fatal(err)
		}
		if p := l.payload(); string(p.Data) != text || p.Peer != at || p.Channel != channel {
			t.Fatalf("%+v, want %q", p, text)
		}
	}
	reply("back", 0)

	if err := l.c.Bind(l.now(), at); err != nil {
		t.Fatal(err)
	}
	bound := l.until(ChannelBound)
	l.send(channelData(bound.Channel, []byte("framed")))
	if data, src := receive(t, peer); data != "framed" || src != allocated.Relayed {
		t.Fatalf("%q from %v", data, src)
	}
	reply("back again", bound.Channel)

	l.skip(4*time.Minute - 10*time.Second)
	l.c.MarkUsed(l.now(), at)
	l.skip(2 * time.Minute) // refreshes of the channel and the allocation
	for _, e := range l.events {
		if e.Kind != PermitLost && e.Kind != SendDatagram { // the permission was not used
			t.Errorf("%v: %v %d", e.Kind, e.Reason, e.Code)
		}
	}
	reply("still there", bound.Channel)
	l.events = nil
}

// shortLife is that of credentials that are to expire within a test: time enough to allocate with them, also on a busy machine.
const shortLife = 6 * time.Second

// outlive allocates with credentials that expire, gives newer ones, and shows that the allocation and a channel live on.
func (l *live) outlive(next Credentials) {
	t := l.t
	expired := time.Now().Add(shortLife + time.Second) // they are counted in whole seconds
	l.c.Start(l.now())
	allocated := l.until(Allocated)
	peer := listen(t, "127.0.0.1")
	at := peer.LocalAddr().(*net.UDPAddr).AddrPort()
	if err := l.c.Bind(l.now(), at); err != nil {
		t.Fatal(err)
	}
	bound := l.until(ChannelBound)
	if err := l.c.SetCredentials(l.now(), next); err != nil {
		t.Fatal(err)
	}
	l.c.Probe(l.now())
	for time.Now().Before(expired) {
		l.step()
	}
	for range 5 {
		l.skip(4 * time.Minute)
		l.c.MarkUsed(l.now(), at)
	}
	l.skip(5 * time.Second)
	for _, e := range l.events {
		t.Errorf("%v: %v %d", e.Kind, e.Reason, e.Code)
	}
	if _, err := peer.WriteToUDPAddrPort([]byte("still there"), allocated.Relayed); err != nil {
		t.Fatal(err)
	}
	if p := l.payload(); string(p.Data) != "still there" || p.Channel != bound.Channel {
		t.Errorf("%+v", p)
	}
}
