package udp

import (
	"fmt"
	"net/netip"
	"os/exec"
	"runtime"
	"strings"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-vpn/sluice/bench/lab"
)

// namespace is a nameless network namespace, held by one locked thread and gone with it.
type namespace struct {
	t     *testing.T
	tid   int
	tasks chan func()
	gone  chan struct{} // closed when the thread has ended
}

func TestMain(m *testing.M) { lab.Main(m) }

// newNamespace makes a namespace, or skips the test where that is not allowed.
func newNamespace(t *testing.T) *namespace {
	t.Helper()
	lab.Need(t)
	if _, err := exec.LookPath("ip"); err != nil {
		t.Skip("SKIPPED: the ip tool is missing")
	}
	n := &namespace{t: t, tasks: make(chan func()), gone: make(chan struct{})}
	made := make(chan error)
	go func() {
		defer close(n.gone)
		runtime.LockOSThread() // never unlocked, so the thread ends with the goroutine
		err := unix.Unshare(unix.CLONE_NEWNET)
		n.tid = unix.Gettid()
		made <- err
		for task := range n.tasks {
			task()
		}
	}()
	t.Cleanup(func() { close(n.tasks) })
	if err := <-made; err != nil {
		t.Fatal(err)
	}
	n.ip("link set lo up")
	return n
}

// in runs f on the namespace's thread. If f fails the test, this ends it.
func (n *namespace) in(f func()) {
	finished := make(chan struct{})
	task := func() {
		defer close(finished)
		f()
	}
	select {
	case n.tasks <- task:
		<-finished
		if n.t.Failed() {
			n.t.FailNow()
		}
	case <-n.gone:
		n.t.FailNow()
	}
}

// try runs a command in the namespace.
func (n *namespace) try(command string, args ...any) error {
	words := strings.Fields(fmt.Sprintf(command, args...))
	var out []byte
	var err error
	n.in(func() { out, err = exec.Command(words[0], words[1:]...).CombinedOutput() })
	if err != nil {
		return fmt.Errorf("%s: %w: %s", strings.Join(words, " "), err, out)
	}
	return nil
}

func (n *namespace) ip(command string, args ...any) {
	n.t.Helper()
	if err := n.try("ip "+command, args...); err != nil {
		n.t.Fatal(err)
	}
}

// open opens a pair in the namespace.
func (n *namespace) open(cfg Config) Pair {
	n.t.Helper()
	return n.openAll(cfg)[0]
}

func (n *namespace) openAll(cfg Config) []Pair {
	n.t.Helper()
	var pairs []Pair
	var err error
	n.in(func() { pairs, err = Listen(cfg) })
	if err != nil {
		n.t.Fatal(err)
	}
	n.t.Cleanup(func() { closeAll(pairs) })
	return pairs
}

// cable makes two namespaces with a veth between them: 10.9.0.1, 10.9.0.11, 10.9.0.12 and fd09::1 on one side, 10.9.0.2 and
// fd09::2 on the other; the devices are vetha and vethb.
func cable(t *testing.T) (a, b *namespace) {
	t.Helper()
	a, b = newNamespace(t), newNamespace(t)
	// Linux tells a device at once that it has a carrier only if its index differs from its peer's (linkwatch_urgent_event
	// in net/core/link_watch.c); else up to a second later, and until then it drops what is sent.
	a.ip("link add name vetha index 11 address 02:00:00:00:00:01 type veth peer name vethb index 12 address 02:00:00:00:00:02 netns %d", b.tid)
	for _, side := range []struct {
		n     *namespace
		dev   string
		addrs []string
	}{{a, "vetha", []string{"10.9.0.1/24", "10.9.0.11/24", "10.9.0.12/24", "fd09::1/64", "fd09::11/64"}}, {b, "vethb", []string{"10.9.0.2/24", "fd09::2/64"}}} {
		for _, addr := range side.addrs {
			nodad := ""
			if strings.Contains(addr, ":") {
				nodad = "nodad"
			}
			side.n.ip("addr add %s dev %s %s", addr, side.dev, nodad)
		}
		side.n.ip("link set %s addrgenmode none", side.dev)
		side.n.ip("link set %s up", side.dev)
	}
	// A neighbour that does not answer at once costs a second.
	for _, addr := range []string{"10.9.0.1", "10.9.0.11", "10.9.0.12", "fd09::1", "fd09::11", "fe80::a"} {
		b.ip("neigh replace %s lladdr 02:00:00:00:00:01 dev vethb nud permanent", addr)
	}
	for _, addr := range []string{"10.9.0.2", "fd09::2", "fe80::b"} {
		a.ip("neigh replace %s lladdr 02:00:00:00:00:02 dev vetha nud permanent", addr)
	}
	left, right := a.open(Config{}), b.open(Config{})
	for _, f := range []family{v4, v6} {
		waitReach(t, left.of(f), right.of(f), map[family]string{v4: "10.9.0.2", v6: "fd09::2"}[f])
		waitReach(t, right.of(f), left.of(f), map[family]string{v4: "10.9.0.1", v6: "fd09::1"}[f])
	}
	closeAll([]Pair{left, right})
	return a, b
}

// ethtool changes a feature of a device, or skips the test.
func (n *namespace) ethtool(dev, feature, value string) {
	n.t.Helper()
	if _, err := exec.LookPath("ethtool"); err != nil {
		n.t.Skip("SKIPPED: the ethtool program is missing")
	}
	if err := n.try("ethtool -K %s %s %s", dev, feature, value); err != nil {
		n.t.Skipf("SKIPPED: %v", err)
	}
}

// waitReach sends until something arrives: carrier, addresses and routes come up one after the other.
func waitReach(t *testing.T, from, to Socket, addr string) {
	t.Helper()
	c := newCollector()
	deadline := time.Now().Add(patience)
	for {
		sendAll(t, from, []Run{{Data: []byte("hello"), Dst: netip.AddrPortFrom(netip.MustParseAddr(addr), to.LocalPort())}})
		waitFor(to.FD(), unix.POLLIN, 5)
		if n, err := to.Receive(c.batch); n > 0 {
			return
		} else if err != nil || time.Now().After(deadline) {
			t.Fatalf("%s cannot be reached: %v", addr, err)
		}
	}
}
