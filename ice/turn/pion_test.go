package turn

import (
	"fmt"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/pion/logging"
	pion "github.com/pion/turn/v5"
)

// newPion starts pion/turn's server on a loopback address. port 0: any.
func newPion(t *testing.T, ip string, port int) (*pion.Server, netip.AddrPort) {
	t.Helper()
	conn, err := net.ListenPacket("udp", net.JoinHostPort(ip, fmt.Sprint(port)))
	if err != nil {
		t.Skipf("SKIPPED: this machine lacks the address family of %s: %v", ip, err)
	}
	quiet := logging.NewDefaultLoggerFactory()
	quiet.DefaultLogLevel = logging.LogLevelDisabled
	server, err := pion.NewServer(pion.ServerConfig{
		Realm:         "example.org",
		LoggerFactory: quiet,
		AuthHandler: func(a *pion.RequestAttributes) (string, []byte, bool) {
			return a.Username, pion.GenerateAuthKey(a.Username, a.Realm, goodLogin.Password), a.Username == goodLogin.Username
		},
		PacketConnConfigs: []pion.PacketConnConfig{{
			PacketConn:            conn,
			RelayAddressGenerator: &pion.RelayAddressGeneratorStatic{RelayAddress: net.ParseIP(ip), Address: ip},
		}},
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = server.Close() })
	return server, conn.LocalAddr().(*net.UDPAddr).AddrPort()
}

func TestPion(t *testing.T) {
	for _, ip := range []string{"127.0.0.1", "::1"} {
		t.Run(ip, func(t *testing.T) {
			t.Parallel()
			server, at := newPion(t, ip, 0)
			l := newLive(t, Config{Server: at, Credentials: goodLogin, Family: familyOf(at)})
			l.exchange()
			l.c.Release(l.now())
			l.until(Released)
			if n := server.AllocationCount(); n != 0 {
				t.Errorf("%d allocations are left", n)
			}
		})
	}
}

func familyOf(a netip.AddrPort) Family {
	if a.Addr().Is4() {
		return FamilyIPv4
	}
	return FamilyIPv6
}

func TestPionWrongPassword(t *testing.T) {
	t.Parallel()
	_, at := newPion(t, "127.0.0.1", 0)
	l := newLive(t, Config{Server: at, Credentials: Credentials{Username: goodLogin.Username, Password: "wrong"}})
	l.c.Start(l.now())
	if e := l.until(Failed); !e.Final {
		t.Errorf("%+v", e)
	}
}

// TestPionSamePort: a second process on our port deletes what the first left behind.
func TestPionSamePort(t *testing.T) {
	t.Parallel()
	server, at := newPion(t, "127.0.0.1", 0)
	l := newLive(t, Config{Server: at, Credentials: goodLogin})
	l.c.Start(l.now())
	first := l.until(Allocated)
	c, err := New(Config{Server: at, Credentials: goodLogin})
	if err != nil {
		t.Fatal(err)
	}
	l.c = c
	l.c.Start(l.now())
	if second := l.until(Allocated); second.Relayed == first.Relayed || server.AllocationCount() != 1 {
		t.Error(first.Relayed, second.Relayed, server.AllocationCount())
	}
}

func TestPionRestarted(t *testing.T) {
	t.Parallel()
	server, at := newPion(t, "127.0.0.1", 0)
	l := newLive(t, Config{Server: at, Credentials: goodLogin})
	l.c.Start(l.now())
	l.until(Allocated)
	if err := l.c.Bind(l.now(), netip.MustParseAddrPort("127.0.0.1:9")); err != nil {
		t.Fatal(err)
	}
	number := l.until(ChannelBound).Channel
	if err := server.Close(); err != nil {
		t.Fatal(err)
	}
	newPion(t, "127.0.0.1", int(at.Port()))
	l.c.Probe(l.now())
	for limit := time.Now().Add(5 * time.Second); l.c.allocation.stale == 0 && time.Now().Before(limit); {
		l.step() // until the new server's nonce is in use; then it is silent, as it knows no allocation
	}
	l.ahead += SilentAfter
	if e := l.until(Lost); e.Reason != ReasonSilent {
		t.Errorf("%+v", e)
	}
	l.until(Allocated)
	if again := l.until(ChannelBound).Channel; again != number {
		t.Errorf("channel %#x became %#x", number, again)
	}
}
