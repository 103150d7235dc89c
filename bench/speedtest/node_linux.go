package speedtest

import (
	"bytes"
	"context"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-vpn/sluice/bench/lab"
)

// Time limits of a node.
const (
	nodeStartLimit = 10 * time.Second // until its socket, its port and the first round trip are there
	nodeStopLimit  = 3 * time.Second  // after SIGTERM; then it is killed
)

// implementation is something to be measured. The zero command is the bare cable.
type implementation struct {
	name    string
	command []string // without the interface name
	env     []string
	ours    bool // takes -profile
}

// node is one running program. It is owned by the goroutine that started it.
type node struct {
	side   side
	device string
	cmd    *exec.Cmd
	stderr *tail
	ended  chan struct{} // closed when the process is gone
	stats  string        // file of its counters
}

// tail keeps the last bytes that were written to it.
type tail struct {
	mu   sync.Mutex
	text []byte
}

func (t *tail) Write(p []byte) (int, error) {
	t.mu.Lock()
	defer t.mu.Unlock()
	t.text = append(t.text, p...)
	t.text = t.text[max(0, len(t.text)-8192):]
	return len(p), nil
}

func (t *tail) lastLine() string {
	t.mu.Lock()
	defer t.mu.Unlock()
	return lastLine(string(bytes.ToValidUTF8(t.text, nil)))
}

// tunnel is the two nodes of one implementation.
type tunnel struct {
	nodes  [2]*node
	inner  [2]netip.Addr // of the ends, in the tunnel
	portal *node         // nil: the nodes need none
}

// startTunnel starts two nodes, configures them and waits until a packet came back through the tunnel. dir is for the files of
// their counters. profile is the -profile of our nodes, its files go to profileDir.
func startTunnel(ctx context.Context, bed *testbed, impl implementation, dir, profile, profileDir string) (*tunnel, error) {
	if bed.internet != nil {
		return startMembers(ctx, bed, impl, dir)
	}
	t := &tunnel{inner: [2]netip.Addr{side(0).inner(), side(1).inner()}}
	for i := range t.nodes {
		n, err := startNode(bed.ends[i], side(i), impl, dir, profile, profileDir)
		if err != nil {
			t.stop()
			return nil, err
		}
		t.nodes[i] = n
	}
	if err := t.configure(ctx, bed); err != nil {
		for _, n := range t.nodes {
			if said := n.stderr.lastLine(); said != "" {
				err = fmt.Errorf("%w; it said: %s", err, said)
				break
			}
		}
		t.stop()
		return nil, fmt.Errorf("%s: %w", impl.name, err)
	}
	return t, nil
}

func startNode(ns *lab.Namespace, s side, impl implementation, dir, profile, profileDir string) (*node, error) {
	args := impl.command[1:len(impl.command):len(impl.command)]
	if impl.ours && profile != "" {
		args = append(args, "-profile", profile, "-profile-dir", filepath.Join(profileDir, sideNames[s]))
	}
	device := "speed" + sideNames[s]
	return startProgram(ns, s, device, impl, dir, append(args, device)...)
}

// startProgram starts the program of an implementation with these arguments.
func startProgram(ns *lab.Namespace, s side, device string, impl implementation, dir string, args ...string) (*node, error) {
	n := &node{side: s, device: device, stderr: &tail{}, ended: make(chan struct{})}
	n.stats = filepath.Join(dir, "stats-"+device+".json")
	_ = os.Remove(n.stats) // of the measurement before
	n.cmd = exec.Command(impl.command[0], args...)
	// boringtun gives up root only to become a user that may not open the TUN; WG_SUDO keeps it as it is.
	n.cmd.Env = append(os.Environ(), "WG_PROCESS_FOREGROUND=1", "LOG_LEVEL=error", "WG_SUDO=true", "SLUICE_STATS="+n.stats, "STATE_DIRECTORY="+dir)
	n.cmd.Env = append(n.cmd.Env, impl.env...)
	n.cmd.Stderr = n.stderr
	n.cmd.Stdout = n.stderr
	n.cmd.WaitDelay = time.Second
	if err := ns.Start(n.cmd); err != nil {
		return nil, fmt.Errorf("%s: %w", impl.name, err)
	}
	go func() {
		_ = n.cmd.Wait()
		close(n.ended)
	}()
	return n, nil
}

// configure gives both nodes keys, a peer and addresses, and waits for the first round trip.
func (t *tunnel) configure(ctx context.Context, bed *testbed) error {
	ctx, cancel := context.WithTimeoutCause(ctx, nodeStartLimit, errors.New("not ready after "+nodeStartLimit.String()))
	defer cancel()
	var keys [2]*ecdh.PrivateKey
	for i := range keys {
		var err error
		if keys[i], err = ecdh.X25519().GenerateKey(rand.Reader); err != nil {
			return err
		}
	}
	for i, n := range t.nodes {
		socket := "/var/run/wireguard/" + n.device + ".sock"
		if err := n.await(ctx, "its UAPI socket "+socket, func() bool { return answers(socket) }); err != nil {
			return err
		}
		other := side(1 - i)
		c := tunnelConfig{
			PrivateKey: [32]byte(keys[i].Bytes()), ListenPort: listenPort,
			PeerKey:    [32]byte(keys[other].PublicKey().Bytes()),
			Endpoint:   netip.AddrPortFrom(other.outer(), listenPort),
			AllowedIPs: []netip.Prefix{netip.PrefixFrom(other.inner(), 32)},
		}
		if err := configure(socket, c); err != nil {
			return fmt.Errorf("node %s: %w", sideNames[i], err)
		}
		ns := bed.ends[i]
		if err := ns.AddAddr(n.device, netip.PrefixFrom(n.side.inner(), 32)); err != nil {
			return err
		}
		if err := ns.SetMTU(n.device, innerMTU); err != nil {
			return err
		}
		if err := ns.SetUp(n.device); err != nil {
			return err
		}
		if err := ns.AddRoute(innerNet, n.device, netip.Addr{}); err != nil {
			return err
		}
	}
	// An initiation that finds no socket is repeated only after five seconds.
	for i, n := range t.nodes {
		if err := n.await(ctx, "its UDP port", func() bool { return portIsBound(bed.ends[i], listenPort) }); err != nil {
			return err
		}
	}
	return t.awaitRoundTrip(ctx, bed)
}

// await polls until ok, the node's end or the end of ctx.
func (n *node) await(ctx context.Context, what string, ok func() bool) error {
	tick := time.NewTicker(2 * time.Millisecond)
	defer tick.Stop()
	for !ok() {
		select {
		case <-ctx.Done():
			return fmt.Errorf("node %s: waiting for %s: %w", sideNames[n.side], what, context.Cause(ctx))
		case <-n.ended:
			return fmt.Errorf("node %s ended (%v) before %s was there", sideNames[n.side], n.cmd.ProcessState, what)
		case <-tick.C:
		}
	}
	return nil
}

// died is the error of a node that ended by itself.
func (n *node) died() error {
	if said := n.stderr.lastLine(); said != "" {
		return fmt.Errorf("node %s ended (%v); it said: %s", sideNames[n.side], n.cmd.ProcessState, said)
	}
	return fmt.Errorf("node %s ended (%v)", sideNames[n.side], n.cmd.ProcessState)
}

// answers reports whether somebody listens; the file alone may be there before that, or be a dead program's.
func answers(path string) bool {
	conn, err := net.Dial("unix", path)
	if err != nil {
		return false
	}
	conn.Close()
	return true
}

// portIsBound looks into /proc/net/udp and udp6 of a namespace.
func portIsBound(ns *lab.Namespace, port uint16) bool {
	want := fmt.Sprintf(":%04X ", port)
	bound := false
	_ = ns.Run(func() error {
		for _, file := range []string{"/proc/thread-self/net/udp", "/proc/thread-self/net/udp6"} {
			b, err := os.ReadFile(file)
			if err != nil {
				continue
			}
			for line := range strings.Lines(string(b)) {
				// "sl local_address rem_address ..."; the local address ends with the port.
				if fields := strings.Fields(line); len(fields) > 2 && strings.HasSuffix(fields[1]+" ", want) {
					bound = true
				}
			}
		}
		return nil
	})
	return bound
}

// awaitRoundTrip sends datagrams from A to B and back until one came through.
func (t *tunnel) awaitRoundTrip(ctx context.Context, bed *testbed) error {
	a, b, err := openUDP(endpoint{ns: bed.ends[0], addr: t.inner[0]}, endpoint{ns: bed.ends[1], addr: t.inner[1]})
	if err != nil {
		return err
	}
	defer closeAll(a, b)
	packet := []byte("first")
	ping := func(from, to int) bool {
		_ = unix.Sendto(from, packet, unix.MSG_DONTWAIT, nil)
		for range 10 { // 20 ms
			var buf [16]byte
			if n, _, err := unix.Recvfrom(to, buf[:], unix.MSG_DONTWAIT); err == nil && n == len(packet) {
				return true
			}
			time.Sleep(2 * time.Millisecond)
		}
		return false
	}
	if err := t.nodes[0].await(ctx, "a packet through the tunnel", func() bool { return ping(a, b) }); err != nil {
		return err
	}
	return t.nodes[1].await(ctx, "a packet back through the tunnel", func() bool { return ping(b, a) })
}

// stop ends both nodes and waits for them.
func (t *tunnel) stop() {
	all := append(t.nodes[:len(t.nodes):len(t.nodes)], t.portal)
	for _, n := range all {
		if n != nil {
			_ = n.cmd.Process.Signal(unix.SIGTERM)
		}
	}
	limit := time.After(nodeStopLimit)
	for _, n := range all {
		if n == nil {
			continue
		}
		select {
		case <-n.ended:
		case <-limit:
			_ = n.cmd.Process.Kill()
			<-n.ended
			limit = time.After(0)
		}
	}
}

// counters reads what the node wrote at its end, nil if it writes nothing.
func (n *node) counters() map[string]uint64 {
	b, err := os.ReadFile(n.stats)
	if err != nil {
		return nil
	}
	values := map[string]uint64{}
	if json.Unmarshal(b, &values) != nil {
		return nil
	}
	return values
}
