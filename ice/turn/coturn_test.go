package turn

import (
	"crypto/hmac"
	"crypto/sha1"
	"encoding/base64"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"testing"
	"time"
)

// coturnLogin has no colon, at which coturn's --user is cut in two.
var coturnLogin = Credentials{Username: "alice", Password: goodLogin.Password}

const coturnSecret = "shared-secret"

// restLogin makes credentials of the TURN REST convention (draft-uberti-behave-turn-rest-00, section 2.2). coturn reads
// the time with atoi, so it cannot be later than 2038.
func restLogin(life time.Duration) Credentials {
	username := fmt.Sprintf("%d:salt", time.Now().Add(life).Unix())
	mac := hmac.New(sha1.New, []byte(coturnSecret))
	mac.Write([]byte(username))
	return Credentials{Username: username, Password: base64.StdEncoding.EncodeToString(mac.Sum(nil))}
}

// newCoturn starts coturn's turnserver on a loopback address, and returns what stops it. port 0: any that is
// free. rest: credentials of the REST convention instead of users.
func newCoturn(t *testing.T, ip string, port uint16, rest bool) (at netip.AddrPort, stop func()) {
	t.Helper()
	program, err := exec.LookPath("turnserver")
	if err != nil {
		t.Skip("SKIPPED: coturn's turnserver is not installed")
	}
	if port == 0 {
		conn := listen(t, ip)
		port = conn.LocalAddr().(*net.UDPAddr).AddrPort().Port()
		conn.Close()
	}
	dir, login := t.TempDir(), []string{"--lt-cred-mech", "--user=" + coturnLogin.Username + ":" + coturnLogin.Password}
	if rest {
		login = []string{"--use-auth-secret", "--static-auth-secret=" + coturnSecret}
	}
	cmd := exec.Command(program, append(login, "-n", "--listening-ip="+ip, "--relay-ip="+ip, fmt.Sprintf("--listening-port=%d", port),
		"--realm=example.org", "--fingerprint",
		"--allow-loopback-peers", "--no-tls", "--no-dtls", "--no-tcp", "--no-tcp-relay", "--no-cli", "--relay-threads=1",
		"--userdb="+filepath.Join(dir, "db"), "--pidfile="+filepath.Join(dir, "pid"), "--log-file="+filepath.Join(dir, "log"), "--simple-log")...)
	cmd.Dir = dir
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	stopped := false
	stop = func() {
		if !stopped {
			stopped = true
			_ = cmd.Process.Kill()
			_ = cmd.Wait()
		}
	}
	t.Cleanup(stop)
	return netip.AddrPortFrom(netip.MustParseAddr(ip), port), stop
}

func TestCoturn(t *testing.T) {
	for _, ip := range []string{"127.0.0.1", "::1"} {
		t.Run(ip, func(t *testing.T) {
			t.Parallel()
			at, _ := newCoturn(t, ip, 0, false)
			l := newLive(t, Config{Server: at, Credentials: coturnLogin, Family: familyOf(at)})
			l.exchange()
			l.c.Release(l.now())
			l.until(Released)
			// coturn needs a second until the 5-tuple is free again, and says 437 until then.
			l.c.Start(l.now())
			l.until(Allocated)
		})
	}
}

func TestCoturnWrongPassword(t *testing.T) {
	t.Parallel()
	at, _ := newCoturn(t, "127.0.0.1", 0, false)
	l := newLive(t, Config{Server: at, Credentials: Credentials{Username: coturnLogin.Username, Password: "wrong"}})
	l.c.Start(l.now())
	if e := l.until(Failed); !e.Final || e.Reason != ReasonCredentials {
		t.Errorf("%+v", e)
	}
}

func TestCoturnREST(t *testing.T) {
	t.Parallel()
	at, _ := newCoturn(t, "127.0.0.1", 0, true)
	l := newLive(t, Config{Server: at, Credentials: restLogin(time.Hour)})
	l.exchange()
}

// TestCoturnRenewal: coturn ties an allocation to the credentials that it was made with, and lets it outlive them.
func TestCoturnRenewal(t *testing.T) {
	t.Parallel()
	at, _ := newCoturn(t, "127.0.0.1", 0, true)
	l := newLive(t, Config{Server: at, Credentials: restLogin(shortLife)})
	l.outlive(restLogin(time.Hour))
	if !l.c.tied {
		t.Error("coturn took the newer credentials")
	}
}

// TestCoturnRestarted: the new server refuses the old nonce, then the allocation, and gives another.
func TestCoturnRestarted(t *testing.T) {
	t.Parallel()
	at, stop := newCoturn(t, "127.0.0.1", 0, false)
	l := newLive(t, Config{Server: at, Credentials: coturnLogin})
	l.c.Start(l.now())
	l.until(Allocated)
	if err := l.c.Bind(l.now(), netip.MustParseAddrPort("127.0.0.1:9")); err != nil {
		t.Fatal(err)
	}
	number := l.until(ChannelBound).Channel
	stop()
	newCoturn(t, "127.0.0.1", at.Port(), false)
	l.c.Probe(l.now())
	if e := l.until(Lost); e.Reason != ReasonMismatch {
		t.Errorf("%+v", e)
	}
	l.until(Allocated)
	if again := l.until(ChannelBound).Channel; again != number {
		t.Errorf("channel %#x became %#x", number, again)
	}
}
