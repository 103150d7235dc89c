package main

import (
	"encoding/json"
	"net/netip"
	"os"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-vpn/sluice/tun/host"
)

// inNewNamespace moves the test's thread into a new network namespace until the test ends.
func inNewNamespace(t *testing.T) {
	t.Helper()
	runtime.LockOSThread()
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	if err := unix.Unshare(unix.CLONE_NEWNET); err != nil {
		runtime.UnlockOSThread()
		t.Skipf("SKIPPED: ping needs a network namespace of its own (run as root): %v", err)
	}
	t.Cleanup(func() {
		defer unix.Close(home)
		if err := unix.Setns(home, unix.CLONE_NEWNET); err != nil {
			t.Error(err)
			return
		}
		runtime.UnlockOSThread()
	})
}

// TestPing pings addresses of the namespace itself, over both kinds of socket.
func TestPing(t *testing.T) {
	inNewNamespace(t)
	dir := ownSockets(t)
	s := office()
	s.Connections[1].AllowedIPs = []netip.Prefix{netip.MustParsePrefix("fd00:2021:1111::77/128")}
	serveStatus(t, dir, s)
	for _, err := range []error{
		host.SetUp("lo"), host.AddAddress("lo", netip.MustParsePrefix("100.64.0.77/32")),
		host.AddAddress("lo", netip.MustParsePrefix("fd00:2021:1111::77/128")),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	// The kernel makes the route to a new IPv6 address a moment later, in a work queue; an echo before that is lost.
	for deadline := time.Now().Add(20 * time.Second); ; {
		if _, _, code := call("", "ping", "-count", "1", "bob"); code == 0 {
			break
		}
		if time.Now().After(deadline) {
			t.Fatal("the IPv6 address never answers")
		}
	}
	for _, groups := range []string{"0 2147483647", "1 0"} { // who may have ping sockets: all, nobody
		if err := os.WriteFile("/proc/sys/net/ipv4/ping_group_range", []byte(groups), 0); err != nil {
			t.Fatal(err)
		}
		stdout, stderr, code := call("", "ping", "-count", "1", "alice")
		if code != 0 || stderr != "" || !strings.Contains(stdout, "ms, direct 198.51.100.7:4\n") || !strings.Contains(stdout, "1 sent, 1 came back\ndirect 198.51.100.7:4: 1, ") {
			t.Errorf("%s: code %d, %q, %q", groups, code, stdout, stderr)
		}
		stdout, _, code = call("", "ping", "-count", "2", "-json", "bob")
		var result pingResult
		if err := json.Unmarshal([]byte(stdout), &result); err != nil || code != 0 || result.Sent != 2 || result.Received != 2 ||
			len(result.Echoes) != 2 || result.Echoes[1].Sequence != 2 || !result.Echoes[1].Answered || result.Echoes[1].RTTS <= 0 || result.Address != netip.MustParseAddr("fd00:2021:1111::77") {
			t.Errorf("%s: code %d, %q, %v", groups, code, stdout, err)
		}
	}
}

// TestPingSilence: exit status 1, and the reason that the node gives.
func TestPingSilence(t *testing.T) {
	inNewNamespace(t)
	dir := ownSockets(t)
	serveStatus(t, dir, office())
	for _, err := range []error{
		host.SetUp("lo"), host.AddAddress("lo", netip.MustParsePrefix("100.64.0.77/32")),
		os.WriteFile("/proc/sys/net/ipv4/icmp_echo_ignore_all", []byte("1"), 0),
	} {
		if err != nil {
			t.Fatal(err)
		}
	}
	stdout, stderr, code := call("", "ping", "-count", "1", "alice")
	if code != 1 || !strings.Contains(stdout, "1: no answer within 2s; fine\n1 sent, 0 came back\n") ||
		stderr != "sluice: alice does not answer, but there is a connection: a client answers no echoes without -accept-incoming, and a firewall may drop them; fine\n" {
		t.Errorf("code %d, %q, %q", code, stdout, stderr)
	}
	if err := (&pingResult{Peer: "bob", State: "waiting", Explanation: "tries again"}).silence(); err.Error() != "bob does not answer: tries again" {
		t.Error(err)
	}
}
