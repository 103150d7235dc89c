package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-vpn/sluice/bench/lab"
	"github.com/sluice-vpn/sluice/bench/speedtest"
	"github.com/sluice-vpn/sluice/crypto"
)

// These tests meet the WireGuard programs of others, in the versions that the speed test compares with: in both roles, over both
// families, with and without a preshared key, through rekeys and roaming, and with keys that are out of step.

// counterpartEnv is for programs that would give up root, or write their log to a file that all of them share.
var counterpartEnv = []string{"WG_SUDO=true", "WG_LOG_FILE=/dev/null"}

// counterpartTests are those that need the programs of others.
var counterpartTests = []string{
	"TestCounterpartsAreKnown", "TestInterop", "TestInteropRoaming", "TestInteropWrongKeys", "TestInteropRekey",
}

// counterpartTime is how long building may take: go test gives a package 10 minutes. What was compiled by then is lost, so a slow
// machine builds them with -timeout 30m first.
const counterpartTime = 6 * time.Minute

// buildCounterparts builds the programs of others, once a version: here, where the network is still that of the machine, and one
// process at a time. What cannot be built is said by the tests that need it.
func buildCounterparts() {
	if lab.Inside() || !slices.ContainsFunc(counterpartTests, asked) {
		return
	}
	if cache, err := os.UserCacheDir(); err == nil {
		if lock, err := os.OpenFile(filepath.Join(cache, "sluice-counterparts.lock"), os.O_CREATE|os.O_RDWR, 0o600); err == nil {
			defer lock.Close()
			_ = unix.Flock(int(lock.Fd()), unix.LOCK_EX) // without it the same is built twice
		}
	}
	most := counterpartTime
	if limit := flag.Lookup("test.timeout").Value.(flag.Getter).Get().(time.Duration); limit > 10*time.Minute {
		most = limit * 3 / 4
	}
	ctx, cancel := context.WithTimeout(context.Background(), most)
	defer cancel()
	for _, name := range speedtest.Peers() {
		_, err := speedtest.ResolveAgainst(ctx, []string{name}, os.Stderr)
		if err != nil && !errors.Is(err, speedtest.ErrNoTool) {
			fmt.Fprintln(os.Stderr, err)
		}
	}
}

// asked reports whether a test is to run, as far as -run and -list say.
func asked(test string) bool {
	flag.Parse()
	if flag.Lookup("test.list").Value.String() != "" {
		return false
	}
	pattern, _, _ := strings.Cut(flag.Lookup("test.run").Value.String(), "/")
	ok, err := regexp.MatchString(pattern, test)
	return ok && err == nil
}

// counterpart is a program of others.
type counterpart struct {
	name, path string
}

// learns reports whether the program learns its peer's endpoint from authentic packets (WireGuard paper, section 2.1). Tailscale's
// fork leaves endpoints to what is around it; on its own it answers only where it was told to.
func (c counterpart) learns() bool { return c.name != "tailscale" }

// mobile is the program in the way in which it can lose its own address: boringtun's sockets are connected, and so bound to the
// address that they once had, unless it is told not to do that.
func (c counterpart) mobile(t *testing.T) string {
	if c.name != "boringtun" {
		return c.path
	}
	path := filepath.Join(t.TempDir(), c.name)
	script := fmt.Sprintf("#!/bin/sh\nexec '%s' --disable-connected-udp \"$@\"\n", c.path)
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// eachCounterpart runs a test for each program of others; it is skipped where the program cannot be had.
func eachCounterpart(t *testing.T, f func(t *testing.T, theirs counterpart)) {
	t.Helper()
	need(t, "wg", "ping")
	for _, name := range speedtest.Peers() {
		t.Run(name, func(t *testing.T) {
			list, err := speedtest.ResolveAgainst(t.Context(), []string{name}, nil)
			if err != nil {
				t.Skipf("SKIPPED: %v", err)
			}
			f(t, counterpart{name, list[0].Path})
		})
	}
}

// roles are the two ways to join a program of ours and one of theirs; the first of a pair initiates.
func roles(ours, theirs string) map[string][2]string {
	return map[string][2]string{"we initiate": {ours, theirs}, "they initiate": {theirs, ours}}
}

// TestInterop carries pings and TCP to and from the programs of others.
func TestInterop(t *testing.T) {
	t.Parallel()
	ours := program(t)
	eachCounterpart(t, func(t *testing.T, theirs counterpart) {
		for role, programs := range roles(ours, theirs.path) {
			for family, outer := range []string{"IPv4", "IPv6"} {
				t.Run(role+" over "+outer, func(t *testing.T) {
					carriesAll(t, theirs.tunnel(t, programs, crypto.PresharedKey{7}, family), family)
				})
			}
			t.Run(role+" without a preshared key", func(t *testing.T) {
				carriesAll(t, theirs.tunnel(t, programs, crypto.PresharedKey{}, 0), 0)
			})
		}
	})
}

// tunnel starts both programs; the second is not told where the first is, if it can learn that.
func (c counterpart) tunnel(t *testing.T, programs [2]string, psk crypto.PresharedKey, family int) [2]*end {
	t.Helper()
	ends := newEnds(t, programs)
	ends[0].configure(t, ends[1], psk, family)
	if c.learns() {
		ends[1].configure(t, ends[0], psk, -1)
	} else {
		ends[1].configure(t, ends[0], psk, family)
	}
	for _, e := range ends {
		e.up(t, e.ns)
	}
	return ends
}

// carriesAll sends pings and TCP of both families both ways, and looks whether the responder has learned the endpoint.
func carriesAll(t *testing.T, ends [2]*end, family int) {
	t.Helper()
	ping(t, ends[0].ns, 3, ends[1].inner[0])
	ping(t, ends[1].ns, 3, ends[0].inner[1])
	for inner := range 2 {
		transfer(t, ends[0], ends[1], inner)
		transfer(t, ends[1], ends[0], inner)
	}
	ends[1].mustKnow(t, netip.AddrPortFrom(ends[0].outer[family], ends[0].port))
}

// mustKnow waits until an end has its peer at an endpoint.
func (e *end) mustKnow(t *testing.T, want netip.AddrPort) {
	t.Helper()
	var got string
	for end := time.Now().Add(patient); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if got = must(t, e.ns, "wg", "show", e.name, "endpoints"); strings.Contains(got, "\t"+want.String()+"\n") {
			return
		}
	}
	t.Errorf("%s has the endpoint %q, want %s", e.name, got, want)
}

// TestInteropRoaming: whoever gets another address is followed by the other, with the session that there is.
func TestInteropRoaming(t *testing.T) {
	t.Parallel()
	ours := program(t)
	eachCounterpart(t, func(t *testing.T, theirs counterpart) {
		for role, programs := range map[string][2]string{"we move": {ours, theirs.path}, "they move": {theirs.mobile(t), ours}} {
			if role == "we move" && !theirs.learns() {
				continue
			}
			for family, outer := range []string{"IPv4", "IPv6"} {
				t.Run(role+" over "+outer, func(t *testing.T) {
					ends := theirs.tunnel(t, programs, crypto.PresharedKey{7}, family)
					ping(t, ends[0].ns, 1, ends[1].inner[0])
					we := ourEnd(ends, programs, ours)
					before := we.handshake(t)
					ends[0].move(t, family)
					awaitPing(t, ends[0].ns, ends[1].inner[0])
					ends[1].mustKnow(t, netip.AddrPortFrom(ends[0].outer[family], ends[0].port))
					ping(t, ends[1].ns, 3, ends[0].inner[1])
					if after := we.handshake(t); after != before {
						t.Errorf("a handshake at %d, want the session of %d", after, before)
					}
				})
			}
		}
	})
}

// move gives an end another outer address.
func (e *end) move(t *testing.T, family int) {
	t.Helper()
	bits := [2]int{24, 64}[family]
	old := e.outer[family]
	next := old.As16()
	next[15] += 100
	e.outer[family] = netip.AddrFrom16(next).Unmap()
	if err := e.ns.Readdress("eth0", netip.PrefixFrom(old, bits), netip.PrefixFrom(e.outer[family], bits)); err != nil {
		t.Fatal(err)
	}
}

// awaitPing pings until an answer comes: programs may need a packet or two to notice that their address is gone.
func awaitPing(t *testing.T, ns *lab.Namespace, to netip.Addr) {
	t.Helper()
	var out string
	for end := time.Now().Add(patient); time.Now().Before(end); {
		var err error
		if out, err = try(ns, nil, "", "ping", "-n", "-c", "1", "-W", "1", to.String()); err == nil {
			return
		}
	}
	t.Fatalf("no answer from %s in %v: %s", to, patient, out)
}

// handshake is the time of an end's last handshake, in seconds, 0 for none. Ask it of our program: boringtun tells an age.
func (e *end) handshake(t *testing.T) int64 {
	t.Helper()
	fields := strings.Fields(must(t, e.ns, "wg", "show", e.name, "latest-handshakes"))
	if len(fields) != 2 {
		t.Fatalf("latest handshakes %q, want a key and a time", fields)
	}
	at, err := strconv.ParseInt(fields[1], 10, 64)
	if err != nil {
		t.Fatal(err)
	}
	return at
}

// ourEnd is the one that runs our program.
func ourEnd(ends [2]*end, programs [2]string, ours string) *end {
	return ends[slices.Index(programs[:], ours)]
}

// TestInteropWrongKeys: while keys are out of step, whichever and on whichever side, there is no session and nothing breaks; when
// they agree there is one.
func TestInteropWrongKeys(t *testing.T) {
	t.Parallel()
	ours := program(t)
	eachCounterpart(t, func(t *testing.T, theirs counterpart) {
		for role, programs := range roles(ours, theirs.path) {
			for _, wrong := range []string{"the initiator's key", "the responder's key", "the preshared key"} {
				t.Run(role+", wrong "+wrong, func(t *testing.T) {
					t.Parallel()
					ends := newEnds(t, programs)
					disagreeThenAgree(t, ends, ourEnd(ends, programs, ours), wrong)
				})
			}
		}
	})
}

func disagreeThenAgree(t *testing.T, ends [2]*end, we *end, wrong string) {
	t.Helper()
	psk := crypto.PresharedKey{1}
	ends[0].configure(t, ends[1], psk, 0)
	ends[1].configure(t, ends[0], psk, 0)
	switch wrong {
	case "the preshared key":
		ends[1].configure(t, ends[0], crypto.PresharedKey{2}, 0)
	case "the initiator's key":
		ends[1].configure(t, &end{private: crypto.PrivateKey{8, 31: 64}, inner: ends[0].inner, outer: ends[0].outer, port: ends[0].port}, psk, 0)
	default:
		ends[0].configure(t, &end{private: crypto.PrivateKey{8, 31: 64}, inner: ends[1].inner, outer: ends[1].outer, port: ends[1].port}, psk, 0)
	}
	for _, e := range ends {
		e.up(t, e.ns)
	}
	if out, err := try(ends[0].ns, nil, "", "ping", "-n", "-c", "2", "-W", "1", ends[1].inner[0].String()); err == nil {
		t.Fatalf("the keys do not agree, yet: %s", out)
	}
	if at := we.handshake(t); at != 0 {
		t.Errorf("a handshake at %d, want none", at)
	}
	ends[0].configure(t, ends[1], psk, 0)
	ends[1].configure(t, ends[0], psk, 0)
	awaitPing(t, ends[0].ns, ends[1].inner[0])
}

// TestInteropRekey: over the age at which a session is renewed (REKEY_AFTER_TIME, 120 s) packets of both directions go on, the session
// is renewed, and no packet is lost. All programs run at the same time, for they only wait.
func TestInteropRekey(t *testing.T) {
	t.Parallel()
	if testing.Short() {
		t.Skip("SKIPPED: takes 130 s")
	}
	need(t, "wg", "ping")
	ours := program(t)
	type session struct {
		name  string
		ends  [2]*end
		we    *end
		began int64
	}
	var sessions []session
	for _, name := range speedtest.Peers() {
		list, err := speedtest.ResolveAgainst(t.Context(), []string{name}, nil)
		if err != nil {
			t.Logf("left out: %v", err) // TestInterop is skipped for it
			continue
		}
		theirs := counterpart{name, list[0].Path}
		for role, programs := range roles(ours, theirs.path) {
			ends := theirs.tunnel(t, programs, crypto.PresharedKey{7}, 0)
			ping(t, ends[0].ns, 1, ends[1].inner[0])
			we := ourEnd(ends, programs, ours)
			sessions = append(sessions, session{name + ", " + role, ends, we, we.handshake(t)})
		}
	}
	begin := time.Now()
	looked := begin
	for len(sessions) > 0 {
		for _, s := range sessions {
			ping(t, s.ends[0].ns, 1, s.ends[1].inner[0])
			ping(t, s.ends[1].ns, 1, s.ends[0].inner[1])
		}
		time.Sleep(250 * time.Millisecond)
		if time.Since(looked) < 3*time.Second {
			continue
		}
		looked = time.Now()
		var waiting []session
		for _, s := range sessions {
			at := s.we.handshake(t)
			switch age := at - s.began; {
			case age >= 118 && age <= 128:
				continue
			case age > 0 && age < 118:
				// On a loaded machine a side may miss an answer for 10 s and begin anew: then that session is the one to be renewed.
				t.Logf("%s: another session after %d s", s.name, age)
				s.began = at
			case age != 0 || time.Now().Unix() > s.began+132:
				t.Errorf("%s: the session was renewed after %d s (0: not within 132), want 120", s.name, age)
				continue
			}
			waiting = append(waiting, s)
		}
		sessions = waiting
		if time.Since(begin) > 5*time.Minute {
			t.Fatalf("%d sessions begin anew again and again", len(sessions))
		}
	}
}

// TestCounterpartsAreKnown: the grid has who it should have.
func TestCounterpartsAreKnown(t *testing.T) {
	want := []string{"boringtun", "gotatun", "tailscale", "wireguard-go"}
	if got := slices.Sorted(slices.Values(speedtest.Peers())); !slices.Equal(got, want) {
		t.Errorf("counterparts %q, want %q", got, want)
	}
}
