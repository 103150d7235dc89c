package member

import (
	"context"
	"net"
	"net/netip"
	"os/exec"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-vpn/sluice/cmd/internal/status"
	"github.com/sluice-vpn/sluice/ice/edge"
	"github.com/sluice-vpn/sluice/tun/host"
)

// strangers are addresses that are not the client's link's: what is sent to them on it, without a tunnel around, is a leak.
var strangers = [2]netip.Addr{netip.MustParseAddr("203.0.113.99"), netip.MustParseAddr("2001:db8::99")}

// leaks watches a client's uplink while a program on the client sends to strangers.
type leaks struct {
	net      *network
	dir      string
	token    string
	closed   bool // -fail-closed
	client   *exec.Cmd
	attempts atomic.Uint64 // rounds of the program's: a datagram and the begin of a connection to each stranger
	seen     [2]atomic.Uint64
	ended    chan struct{}
}

func newLeaks(t *testing.T, closed bool) *leaks {
	t.Helper()
	l := &leaks{net: newNetwork(t), dir: t.TempDir(), closed: closed, ended: make(chan struct{})}
	must(t, l.net.portal.Run(func() error { return host.AddAddress("eth1", netip.MustParsePrefix("fd08::1/64")) }))
	must(t, l.net.laptop.Run(func() error { return host.AddAddress("eth0", netip.MustParsePrefix("fd08::2/64")) }))
	l.uplink(t)
	var tasks sync.WaitGroup
	t.Cleanup(func() { close(l.ended); tasks.Wait() })
	var socket int
	must(t, l.net.portal.Run(func() (err error) { socket, err = listenPackets("eth1"); return err }))
	tasks.Go(func() { l.watch(socket) })
	started := make(chan struct{})
	tasks.Go(func() {
		l.net.laptop.Run(func() error { close(started); l.send(); return nil })
	})
	<-started
	return l
}

// uplink gives the client its default routes.
func (l *leaks) uplink(t *testing.T) {
	t.Helper()
	for _, router := range []string{"10.8.0.1", "fd08::1"} {
		a := netip.MustParseAddr(router)
		// Beside other work the kernel has once refused it right after the address was there, as a DHCP client would see it and try again.
		l.await(t, "the uplink's default route", func() bool {
			err := l.net.laptop.Run(func() error {
				return host.AddRoute(host.Route{Interface: "eth0", Prefix: everywhere(a.Is6()), Gateway: a})
			})
			if err != nil {
				t.Logf("the uplink's default route: %v", err)
			}
			return err == nil
		})
	}
}

// listenPackets returns a socket for what arrives on a link.
func listenPackets(name string) (int, error) {
	link, err := netlink.LinkByName(name)
	if err != nil {
		return 0, err
	}
	const all = unix.ETH_P_ALL<<8 | unix.ETH_P_ALL>>8 // big endian
	fd, err := unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, all&0xffff)
	if err != nil {
		return 0, err
	}
	wait := unix.Timeval{Usec: 50_000}
	if err := unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, unix.SO_RCVTIMEO, &wait); err != nil {
		return 0, err
	}
	return fd, unix.Bind(fd, &unix.SockaddrLinklayer{Protocol: all & 0xffff, Ifindex: link.Attrs().Index})
}

// watch counts what is for a stranger.
func (l *leaks) watch(socket int) {
	defer unix.Close(socket)
	frame := make([]byte, 2048)
	for {
		select {
		case <-l.ended:
			return
		default:
		}
		n, err := unix.Read(socket, frame)
		if err != nil || n < 54 {
			continue
		}
		switch kind := uint16(frame[12])<<8 | uint16(frame[13]); {
		case kind == unix.ETH_P_IP && netip.AddrFrom4([4]byte(frame[30:34])) == strangers[0]:
			l.seen[0].Add(1)
		case kind == unix.ETH_P_IPV6 && netip.AddrFrom16([16]byte(frame[38:54])) == strangers[1]:
			l.seen[1].Add(1)
		}
	}
}

// send is the program: with sockets that stay, whose way the kernel remembers, and with new ones.
func (l *leaks) send() {
	conns := map[netip.Addr]net.Conn{}
	for {
		select {
		case <-l.ended:
			for _, c := range conns {
				c.Close()
			}
			return
		default:
		}
		for _, to := range strangers {
			address := netip.AddrPortFrom(to, 9).String()
			if c := conns[to]; c != nil {
				c.Write([]byte("marked payload"))
			} else if c, err := net.Dial("udp", address); err == nil {
				conns[to] = c
			}
			if c, err := net.Dial("udp", address); err == nil {
				c.Write([]byte("marked payload"))
				c.Close()
			}
		}
		l.attempts.Add(1)
		time.Sleep(time.Millisecond)
	}
}

// during tells how many packets leak, of each family, while something happens and for many of the program's rounds after it.
func (l *leaks) during(f func()) [2]uint64 {
	before := [2]uint64{l.seen[0].Load(), l.seen[1].Load()}
	f()
	for until := l.attempts.Load() + 150; l.attempts.Load() < until; {
		time.Sleep(time.Millisecond)
	}
	time.Sleep(100 * time.Millisecond) // for the watcher, which may be behind: too short a wait overlooks, and never accuses
	return [2]uint64{l.seen[0].Load() - before[0], l.seen[1].Load() - before[1]}
}

func (l *leaks) start(t *testing.T) {
	t.Helper()
	l.client = program(t, "client", filepath.Join(l.dir, "laptop.sock"), l.token)
	if l.closed {
		l.client.Env = append(l.client.Env, failVariable+"=1")
	}
	must(t, l.net.laptop.Start(l.client))
	t.Cleanup(func() { l.client.Process.Kill(); l.client.Wait() })
}

// leads tells whether the client's table leads everywhere.
func (l *leaks) leads(t *testing.T) bool {
	var table []string
	must(t, l.net.laptop.Run(func() error { table = tableOf(host.DefaultTable); return nil }))
	return slices.Contains(table, "0.0.0.0/0") && slices.Contains(table, "::/0")
}

func (l *leaks) await(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(60 * time.Second); !ok(); time.Sleep(10 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not within 60 s", what)
		}
	}
}

// deleteRules deletes those of the priorities.
func (l *leaks) deleteRules(t *testing.T, priorities ...int) {
	t.Helper()
	must(t, l.net.laptop.Run(func() error {
		for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
			rules, err := netlink.RuleList(family)
			must(t, err)
			for _, r := range rules {
				if !slices.Contains(priorities, r.Priority) {
					continue
				}
				rule := host.Rule{IPv6: family == netlink.FAMILY_V6, Table: r.Table, Priority: r.Priority, Mark: r.Mark, Invert: r.Invert,
					MinBits: r.SuppressPrefixlen + 1, Unreachable: r.Table == 0}
				if r.Dst != nil {
					a, _ := netip.AddrFromSlice(r.Dst.IP)
					bits, _ := r.Dst.Mask.Size()
					rule.To = netip.PrefixFrom(a.Unmap(), bits)
				}
				must(t, host.DeleteRule(rule))
			}
		}
		return nil
	}))
}

// mended has the client look after its rules, and waits until it did.
func (l *leaks) mended(t *testing.T) {
	t.Helper()
	must(t, l.client.Process.Signal(syscall.SIGHUP))
	l.await(t, "the rules are there again", func() bool {
		var priorities []int
		must(t, l.net.laptop.Run(func() error {
			rules, err := netlink.RuleList(netlink.FAMILY_V6)
			for _, r := range rules {
				priorities = append(priorities, r.Priority)
			}
			return err
		}))
		return l.leads(t) && slices.Contains(priorities, 5190) && (!l.closed || slices.Contains(priorities, 5191))
	})
}

// TestLeaks: what a client with all traffic in the tunnel lets past it, on its uplink, through all that may happen to it. With -fail-closed
// that is nothing, from its start to its release; without, it is what README names.
func TestLeaks(t *testing.T) {
	for name, closed := range map[string]bool{"fail-closed": true, "plain": false} {
		t.Run(name, func(t *testing.T) { testLeaks(t, newLeaks(t, closed)) })
	}
}

func testLeaks(t *testing.T, l *leaks) {
	tokens := l.net.tokens(t, l.dir)
	l.token = tokens["laptop"]
	gate := program(t, "gateway", filepath.Join(l.dir, "gate.sock"), tokens["gate"])
	gate.Env = append(gate.Env, routesVariable+"=0.0.0.0/0 ::/0")
	must(t, l.net.gate.Start(gate))
	l.await(t, "packets of both families are seen without a client", func() bool {
		got := l.during(func() {})
		return got[0] > 0 && got[1] > 0
	})
	up := func() {
		connection(t, filepath.Join(l.dir, "laptop.sock"), "gate", "the client connects", func(c edge.ConnectionStatus) bool { return c.State == "up" })
		l.await(t, "default routes", func() bool { return l.leads(t) })
	}
	l.start(t)
	if l.closed {
		l.await(t, "the client fails closed", func() bool { return l.status(t, "fails closed") })
	} else {
		up()
	}
	laptop := func(f func() error) { t.Helper(); must(t, l.net.laptop.Run(f)) }
	for _, step := range []struct {
		name  string
		leaks bool // without -fail-closed
		event func()
	}{
		{"the client connects", false, up},
		{"a rule is deleted", true, func() { l.deleteRules(t, 5190) }},
		{"the rule is there again", true, func() { l.mended(t) }},
		{"the rule that fails closed is deleted", false, func() { l.deleteRules(t, 5191); l.mended(t) }},
		{"all rules of the table are deleted", true, func() { l.deleteRules(t, 5188, 5189, 5190) }},
		{"all rules are there again", true, func() { l.mended(t) }},
		{"the default routes are deleted", true, func() {
			laptop(func() error {
				for _, v6 := range []bool{false, true} {
					must(t, host.DeleteRoute(host.Route{Interface: DefaultInterface, Prefix: everywhere(v6), Table: host.DefaultTable}))
				}
				return nil
			})
			l.mended(t)
		}},
		{"the interface is down", true, func() { laptop(func() error { return host.SetDown(DefaultInterface) }) }},
		{"the interface is up", true, func() { laptop(func() error { return host.SetUp(DefaultInterface) }); l.mended(t) }},
		{"the uplink goes down and up", false, func() {
			laptop(func() error { return host.SetDown("eth0") })
			laptop(func() error { return host.SetUp("eth0") })
			laptop(func() error { return host.AddAddress("eth0", netip.MustParsePrefix("fd08::2/64")) })
			l.uplink(t)
		}},
		{"the network changes", false, func() {
			laptop(func() error { return host.DeleteAddress("eth0", netip.MustParsePrefix("10.8.0.2/24")) })
			laptop(func() error { return host.AddAddress("eth0", netip.MustParsePrefix("10.8.0.3/24")) })
			l.uplink(t)
		}},
		{"the client sleeps", false, func() { must(t, l.client.Process.Signal(syscall.SIGSTOP)) }},
		{"the client wakes", false, func() { must(t, l.client.Process.Signal(syscall.SIGCONT)) }},
		{"the client is killed", true, func() { l.client.Process.Kill(); l.client.Wait() }},
		{"the client starts again", true, func() { l.start(t); up() }},
		{"the gateway ends", false, func() { terminate(t, gate) }},
		{"the gateway is removed", true, func() {
			must(t, l.net.program.Signal(syscall.SIGUSR1))
			l.await(t, "no routes", func() bool { return !l.leads(t) })
		}},
		{"the client ends", true, func() { terminate(t, l.client) }},
		{"the client starts, the portal is blocked", true, func() {
			must(t, l.net.program.Kill())
			l.start(t)
			l.await(t, "the client misses the portal", func() bool {
				s, err := status.NewNode(filepath.Join(l.dir, "laptop.sock")).Get(context.Background())
				return err == nil && !s.Portal.Up
			})
		}},
	} {
		got := l.during(step.event)
		switch {
		case (l.closed || !step.leaks) && got != [2]uint64{}:
			t.Errorf("%s: %v packets go past the tunnel, want none", step.name, got)
		default:
			t.Logf("%s: %v packets of IPv4 and IPv6 past the tunnel", step.name, got)
		}
		if t.Failed() && testing.Short() {
			break
		}
	}
	if !l.closed {
		terminate(t, l.client)
		return
	}
	release := func() {
		laptop(func() error {
			return Release(context.Background(), Options{Socket: filepath.Join(l.dir, "laptop.sock")})
		})
	}
	if got := l.during(release); got[0] == 0 || got[1] == 0 {
		t.Errorf("after the release by the client %v packets are seen, want some of each family", got)
	}
	terminate(t, l.client)
	l.start(t)
	l.await(t, "the client fails closed", func() bool { return l.status(t, "fails closed") })
	l.client.Process.Kill()
	l.client.Wait()
	if got := l.during(func() {}); got != [2]uint64{} {
		t.Errorf("after the kill of a client that never signed in %v packets are seen, want none", got)
	}
	if got := l.during(release); got[0] == 0 || got[1] == 0 {
		t.Errorf("after the release without a client %v packets are seen, want some of each family", got)
	}
}

// status tells whether the client's notes say something.
func (l *leaks) status(t *testing.T, text string) bool {
	s, err := status.NewNode(filepath.Join(l.dir, "laptop.sock")).Get(context.Background())
	return err == nil && strings.Contains(strings.Join(s.Notes, "\n"), text)
}
