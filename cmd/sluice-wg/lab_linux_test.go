package main

import (
	"bytes"
	"crypto/rand"
	"encoding/hex"
	"errors"
	"flag"
	"fmt"
	"io/fs"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"sync/atomic"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-vpn/sluice/bench/lab"
	"github.com/sluice-vpn/sluice/crypto"
)

// asProgram makes the test binary be sluice-wg, so that the tests run the real main, with the race detector if they have it.
const asProgram = "SLUICE_WG_TEST_PROGRAM"

func TestMain(m *testing.M) {
	if os.Getenv(asProgram) != "" {
		main() // ends the process
	}
	// Background processes lose their parent; they become our children, so that their exit status can be asked for.
	if err := unix.Prctl(unix.PR_SET_CHILD_SUBREAPER, 1, 0, 0, 0); err != nil {
		panic(err)
	}
	// Those that mostly wait run at once, more of them than there are processors, unless go test says otherwise.
	testing.Init()
	if err := flag.Set("test.parallel", "6"); err != nil {
		panic(err)
	}
	buildCounterparts()
	lab.Main(m)
}

const (
	sockets = "/run/wireguard/"
	patient = 10 * time.Second // far more than anything here takes
)

// program returns the path of an executable called sluice-wg. With settings, such as SLUICE_QUEUES=2, it has these in its environment.
func program(t *testing.T, settings ...string) string {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	path := filepath.Join(t.TempDir(), "sluice-wg")
	// Programs with the race detector would sleep for a second before they end.
	script := fmt.Sprintf("#!/bin/sh\n%s %s=1 GORACE=atexit_sleep_ms=0 exec '%s' \"$@\"\n", strings.Join(settings, " "), asProgram, self)
	if err := os.WriteFile(path, []byte(script), 0o755); err != nil {
		t.Fatal(err)
	}
	return path
}

// need skips the test where a tool is missing.
func need(t *testing.T, tools ...string) {
	t.Helper()
	lab.NeedTUN(t)
	for _, tool := range tools {
		if _, err := exec.LookPath(tool); err != nil {
			t.Skipf("SKIPPED: %s is not installed", tool)
		}
	}
}

func newNamespace(t *testing.T, name string) *lab.Namespace {
	t.Helper()
	ns, err := lab.NewNamespace(name)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { ns.Close() })
	return ns
}

var interfaces atomic.Int32

// newName returns an interface name that no other test has: sockets of all namespaces lie in one folder.
func newName() string { return fmt.Sprintf("wg%d", interfaces.Add(1)) }

// try runs a command in a namespace and returns what it wrote to both outputs.
func try(ns *lab.Namespace, env []string, stdin string, argv ...string) (string, error) {
	cmd := exec.Command(argv[0], argv[1:]...)
	cmd.Env = append(os.Environ(), env...)
	cmd.Stdin = strings.NewReader(stdin)
	var out bytes.Buffer
	cmd.Stdout, cmd.Stderr = &out, &out
	if err := ns.Start(cmd); err != nil {
		return "", err
	}
	expired := time.AfterFunc(patient, func() { cmd.Process.Kill() })
	defer expired.Stop()
	err := cmd.Wait()
	return out.String(), err
}

// must is try for commands that must succeed.
func must(t *testing.T, ns *lab.Namespace, argv ...string) string {
	t.Helper()
	return mustWith(t, ns, "", argv...)
}

func mustWith(t *testing.T, ns *lab.Namespace, stdin string, argv ...string) string {
	t.Helper()
	out, err := try(ns, nil, stdin, argv...)
	if err != nil {
		t.Fatalf("%s: %v\n%s", strings.Join(argv, " "), err, out)
	}
	return out
}

// start runs a userspace WireGuard in the background and returns the process behind the socket. It is ended with the test.
func start(t *testing.T, ns *lab.Namespace, env []string, path, name string) (pid int) {
	t.Helper()
	if out, err := try(ns, env, "", path, name); err != nil {
		t.Fatalf("%s %s: %v\n%s", path, name, err, out)
	}
	pid = owner(t, name)
	t.Cleanup(func() {
		if syscall.Kill(pid, syscall.SIGTERM) == nil {
			exitStatus(t, pid)
		}
	})
	return pid
}

// owner returns the process that listens on the socket of an interface. It waits a little: not every program is ready when
// it says so.
func owner(t *testing.T, name string) int {
	t.Helper()
	var conn net.Conn
	var err error
	for end := time.Now().Add(patient); time.Now().Before(end); time.Sleep(10 * time.Millisecond) {
		if conn, err = net.Dial("unix", sockets+name+".sock"); err == nil {
			break
		}
	}
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	raw, err := conn.(*net.UnixConn).SyscallConn()
	if err != nil {
		t.Fatal(err)
	}
	var cred *unix.Ucred
	var failed error
	err = raw.Control(func(fd uintptr) { cred, failed = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if err = errors.Join(err, failed); err != nil {
		t.Fatal(err)
	}
	return int(cred.Pid)
}

// exitStatus waits for a process that has become our child.
func exitStatus(t *testing.T, pid int) syscall.WaitStatus {
	t.Helper()
	var status syscall.WaitStatus
	for end := time.Now().Add(patient); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
		got, err := syscall.Wait4(pid, &status, syscall.WNOHANG, nil)
		if err != nil && !errors.Is(err, syscall.EINTR) {
			t.Fatalf("wait for %d: %v", pid, err)
		}
		if got == pid {
			return status
		}
	}
	t.Fatalf("process %d does not end", pid)
	return 0
}

// gone reports what an ended interface has left behind.
func gone(t *testing.T, ns *lab.Namespace, name string) {
	t.Helper()
	if _, err := os.Lstat(sockets + name + ".sock"); !errors.Is(err, fs.ErrNotExist) {
		t.Errorf("the socket of %s is left: %v", name, err)
	}
	if _, err := ns.Netlink().LinkByName(name); err == nil {
		t.Errorf("the interface %s is left", name)
	}
}

// ask sends one request to the socket of an interface and returns the answer.
func ask(t *testing.T, name, request string) string {
	t.Helper()
	conn, err := net.Dial("unix", sockets+name+".sock")
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(patient))
	if _, err := conn.Write([]byte(request)); err != nil {
		t.Fatal(err)
	}
	var answer []byte
	for buf := make([]byte, 4096); !bytes.HasSuffix(answer, []byte("\n\n")); {
		n, err := conn.Read(buf)
		if err != nil {
			t.Fatalf("after %q: %v", answer, err)
		}
		answer = append(answer, buf[:n]...)
	}
	return string(answer)
}

// end is one side of a tunnel.
type end struct {
	ns      *lab.Namespace
	name    string
	pid     int
	private crypto.PrivateKey
	port    uint16
	outer   [2]netip.Addr // v4, v6
	inner   [2]netip.Addr
}

// newEnds lays a cable between two namespaces and starts a program in each.
func newEnds(t *testing.T, programs [2]string) [2]*end {
	t.Helper()
	var ends [2]*end
	for i := range ends {
		key, err := crypto.GeneratePrivateKey(rand.Reader)
		if err != nil {
			t.Fatal(err)
		}
		last := byte(i + 1)
		ends[i] = &end{
			ns: newNamespace(t, string('a'+rune(i))), name: newName(), private: key, port: 51820 + uint16(i),
			outer: [2]netip.Addr{netip.AddrFrom4([4]byte{192, 0, 2, last}), netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: last})},
			inner: [2]netip.Addr{netip.AddrFrom4([4]byte{10, 9, 0, last}), netip.AddrFrom16([16]byte{0xfd, 9, 15: last})},
		}
	}
	plug := func(e *end) lab.Plug {
		return lab.Plug{Namespace: e.ns, Device: "eth0", Addrs: []netip.Prefix{netip.PrefixFrom(e.outer[0], 24), netip.PrefixFrom(e.outer[1], 64)}}
	}
	if err := lab.Connect(lab.Cable{}, plug(ends[0]), plug(ends[1])); err != nil {
		t.Fatal(err)
	}
	for i, e := range ends {
		e.pid = start(t, e.ns, counterpartEnv, programs[i], e.name)
	}
	return ends
}

// up gives the interface its inner addresses in the namespace that it is in now, and waits until the program has seen that
// it is up: only then are its sockets bound, and a first handshake message that came earlier would be lost.
func (e *end) up(t *testing.T, ns *lab.Namespace) {
	t.Helper()
	for i, bits := range [2]int{24, 64} {
		if err := ns.AddAddr(e.name, netip.PrefixFrom(e.inner[i], bits)); err != nil {
			t.Fatal(err)
		}
	}
	if err := ns.SetUp(e.name); err != nil {
		t.Fatal(err)
	}
	awaitPort(t, e.ns, e.port)
}

// awaitPort waits until a UDP port is bound in a namespace: by a socket for IPv4, or by one for both families.
func awaitPort(t *testing.T, ns *lab.Namespace, port uint16) {
	t.Helper()
	bound := fmt.Sprintf(":%04X ", port)
	for end := time.Now().Add(patient); ; time.Sleep(5 * time.Millisecond) {
		var table []byte
		err := ns.Run(func() error {
			v4, err := os.ReadFile("/proc/thread-self/net/udp")
			v6, err6 := os.ReadFile("/proc/thread-self/net/udp6")
			table = append(v4, v6...)
			return errors.Join(err, err6)
		})
		if err != nil {
			t.Fatal(err)
		}
		if strings.Contains(string(table), bound) {
			return
		}
		if time.Now().After(end) {
			t.Fatalf("nobody listens on port %d", port)
		}
	}
}

// configure tells an end of its peer, with wg; family is that of the endpoint, -1 for none.
func (e *end) configure(t *testing.T, peer *end, psk crypto.PresharedKey, family int) {
	t.Helper()
	config := fmt.Sprintf("[Interface]\nPrivateKey = %s\nListenPort = %d\n[Peer]\nPublicKey = %s\nPresharedKey = %s\nAllowedIPs = %s/32, %s/128\n",
		e.private.Encode(), e.port, peer.private.Public().Encode(), psk.Encode(), peer.inner[0], peer.inner[1])
	if family >= 0 {
		config += fmt.Sprintf("Endpoint = %s\n", netip.AddrPortFrom(peer.outer[family], peer.port))
	}
	mustWith(t, e.ns, config, "wg", "setconf", e.name, "/dev/stdin")
}

// tunnel starts and configures both ends; the first has the other's endpoint.
func tunnel(t *testing.T, programs [2]string, family int) [2]*end {
	t.Helper()
	ends := newEnds(t, programs)
	psk, err := crypto.GeneratePresharedKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	ends[0].configure(t, ends[1], psk, family)
	ends[1].configure(t, ends[0], psk, -1)
	for _, e := range ends {
		e.up(t, e.ns)
	}
	return ends
}

// ping sends exactly count pings, each of which must be answered. One at a time: of several, ping gives the last only twice the
// time of the others.
func ping(t *testing.T, ns *lab.Namespace, count int, to netip.Addr) {
	t.Helper()
	for range count {
		must(t, ns, "ping", "-n", "-c", "1", "-W", "8", to.String())
	}
}

func hexKey(k [32]byte) string { return hex.EncodeToString(k[:]) }
