package relay

import (
	"context"
	"fmt"
	"net"
	"net/netip"
	"os/exec"
	"regexp"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/pion/turn/v5"
)

// echo answers every datagram at an address of its own until the test ends.
func echo(t testing.TB, a netip.Addr) netip.AddrPort {
	conn, at := peer(t, a)
	go func() {
		b := make([]byte, 65536)
		for {
			n, src, err := conn.ReadFromUDPAddrPort(b)
			if err != nil {
				return
			}
			conn.WriteToUDPAddrPort(b[:n], src)
		}
	}()
	return at
}

// tool runs a program of coturn, or skips.
func tool(t *testing.T, name string, args ...string) string {
	t.Helper()
	path, err := exec.LookPath(name)
	if err != nil {
		t.Skipf("SKIP: %s is not installed (Debian: coturn): %v", name, err)
	}
	ctx, cancel := context.WithTimeout(t.Context(), 30*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, path, args...).CombinedOutput()
	if err != nil {
		t.Fatalf("%s %s: %v\n%s", name, strings.Join(args, " "), err, out)
	}
	return string(out)
}

// TestCoturnSTUN: coturn's STUN client learns its address from us.
func TestCoturnSTUN(t *testing.T) {
	s := start(t, nil)
	for _, at := range s.Addrs() {
		out := tool(t, "turnutils_stunclient", "-p", strconv.Itoa(int(at.Port())), at.Addr().String())
		if !strings.Contains(out, "reflexive addr") || !strings.Contains(out, at.Addr().String()) {
			t.Errorf("%v: %s", at, out)
		}
	}
}

// TestCoturnTURN: coturn's TURN client relays through us with channels and with Send indications, over both families, with a
// credential of ours and with one that it makes itself from the secret. Nothing is lost. The runs are simultaneous: each waits
// for seconds of its own accord.
func TestCoturnTURN(t *testing.T) {
	path, err := exec.LookPath("turnutils_uclient")
	if err != nil {
		t.Skipf("SKIP: turnutils_uclient is not installed (Debian: coturn): %v", err)
	}
	s := start(t, func(c *Config) { c.AllocationsPerUser = 100 }) // all are one user's
	user, password := s.Credential(time.Now().Add(time.Hour), "coturn")
	ctx, cancel := context.WithTimeout(t.Context(), 60*time.Second)
	defer cancel()
	var runs sync.WaitGroup
	for gate, local := range []netip.Addr{loopback4, loopback6} {
		at := echo(t, local)
		server := s.Addrs()[gate]
		for _, args := range [][]string{
			{"-u", user, "-w", password}, {"-u", user, "-w", password, "-s"}, {"-u", "coturn", "-W", testSecret},
		} {
			args = append(args, "-c", "-n", "20", "-m", "3", "-l", "400", "-z", "1", "-p", strconv.Itoa(int(server.Port())),
				"-e", at.Addr().String(), "-r", strconv.Itoa(int(at.Port())), "-L", local.String())
			if local.Is6() {
				args = append(args, "-x")
			}
			runs.Go(func() {
				out, err := exec.CommandContext(ctx, path, append(args, server.Addr().String())...).CombinedOutput()
				lost := regexp.MustCompile(`Total lost packets (\d+)`).FindSubmatch(out)
				if err != nil || lost == nil || string(lost[1]) != "0" || !strings.Contains(string(out), "tot_recv_msgs=60") {
					t.Errorf("uclient %s: %v\n%s", strings.Join(args, " "), err, out)
				}
			})
		}
	}
	runs.Wait()
}

// TestPionClient: pion's own client, in this process.
func TestPionClient(t *testing.T) {
	s := start(t, nil)
	conn, err := net.ListenPacket("udp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	user, password := s.Credential(time.Now().Add(time.Hour), "pion")
	server := s.Addrs()[0].String()
	c, err := turn.NewClient(&turn.ClientConfig{
		STUNServerAddr: server, TURNServerAddr: server, Conn: conn, Username: user, Password: password, Realm: "sluice",
		LoggerFactory: silence{},
	})
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	if err := c.Listen(); err != nil {
		t.Fatal(err)
	}
	if mapped, err := c.SendBindingRequest(); err != nil || mapped.String() != conn.LocalAddr().String() {
		t.Fatalf("mapped address %v, %v", mapped, err)
	}
	relay, err := c.Allocate()
	if err != nil {
		t.Fatal(err)
	}
	defer relay.Close()
	at := net.UDPAddrFromAddrPort(echo(t, loopback4))
	b := make([]byte, 1500)
	for i := range 50 { // first Send indications, then, once pion has bound one, a channel
		want := fmt.Sprint("datagram ", i)
		if _, err := relay.WriteTo([]byte(want), at); err != nil {
			t.Fatal(err)
		}
		relay.SetReadDeadline(time.Now().Add(patience))
		n, src, err := relay.ReadFrom(b)
		if err != nil || string(b[:n]) != want || src.String() != at.String() {
			t.Fatalf("%q from %v, %v", b[:n], src, err)
		}
	}
}
