package lab

import (
	"bufio"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"
)

// victimArg is the argument of a process that the crash test looks for; no other process has it.
const victimArg = "98765.4321"

func TestMain(m *testing.M) {
	if os.Getenv("LAB_TEST_ENTER") != "" {
		enterAndReport()
	}
	Main(m)
}

// enterAndReport is the program that the tests below run as a process of its own: it enters a lab, builds something,
// reports, and waits to be killed.
func enterAndReport() {
	inside, code, err := Enter()
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	if !inside {
		os.Exit(code)
	}
	if os.Getenv("LAB_TEST_ENTER") == "exit" {
		os.Exit(42)
	}
	ns, err := NewNamespace("victim")
	if err == nil {
		err = ns.Start(exec.Command("sleep", victimArg))
	}
	if err != nil {
		fmt.Println("error:", err)
		os.Exit(1)
	}
	fmt.Printf("ready uid %d pid %d\n", os.Getuid(), os.Getpid())
	time.Sleep(time.Minute)
	os.Exit(1)
}

// startEntering starts this test binary as a program that enters a lab of its own.
func startEntering(t *testing.T, what string, attr *syscall.SysProcAttr) (*exec.Cmd, *bufio.Scanner) {
	t.Helper()
	cmd := exec.Command("/proc/self/exe")
	cmd.Env = append(os.Environ(), "LAB_TEST_ENTER="+what, envLab+"=")
	cmd.SysProcAttr = attr
	cmd.Stderr = os.Stderr
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { _ = cmd.Process.Kill() })
	return cmd, bufio.NewScanner(out)
}

// victims counts the processes that carry victimArg.
func victims(t *testing.T) int {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	n := 0
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && strings.Contains(string(b), victimArg) {
			n++
		}
	}
	return n
}

func waitFor(t *testing.T, what string, ok func() bool) {
	t.Helper()
	for deadline := time.Now().Add(10 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(deadline) {
			t.Fatalf("%s: not after 10 s", what)
		}
	}
}

func TestNothingIsLeftAfterKill(t *testing.T) {
	Need(t)
	for _, sig := range []syscall.Signal{syscall.SIGKILL, syscall.SIGTERM, syscall.SIGINT} {
		cmd, out := startEntering(t, "wait", nil)
		if !out.Scan() || !strings.HasPrefix(out.Text(), "ready uid 0 ") {
			t.Fatalf("%v: the program said %q", sig, out.Text())
		}
		// The kernel shows the arguments a moment after exec has closed the pipe that Start waits for (fs/binfmt_elf.c).
		waitFor(t, "a process in the victim's namespace", func() bool { return victims(t) == 1 })
		if err := cmd.Process.Signal(sig); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err == nil {
			t.Errorf("%v: exit code 0", sig)
		}
		waitFor(t, "processes gone after "+sig.String(), func() bool { return victims(t) == 0 })
	}
}

func TestExitCode(t *testing.T) {
	Need(t)
	cmd, _ := startEntering(t, "exit", nil)
	_ = cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != 42 {
		t.Errorf("exit code %d, want that of the run inside, 42", got)
	}
}

func TestEnterWithoutRoot(t *testing.T) {
	Need(t)
	if m, _ := os.ReadFile("/proc/self/uid_map"); !strings.Contains(string(m), "4294967295") {
		t.Skip("this lab has one user only (it was made without root), so it proves already what this test would prove")
	}
	attr := &syscall.SysProcAttr{Credential: &syscall.Credential{Uid: 65534, Gid: 65534}}
	cmd, out := startEntering(t, "wait", attr)
	if !out.Scan() {
		t.Fatal("the program said nothing")
	}
	if strings.HasPrefix(out.Text(), "error:") && strings.Contains(out.Text(), "run as root") {
		t.Skipf("user namespaces are refused on this machine: %s", out.Text())
	}
	if !strings.HasPrefix(out.Text(), "ready uid 0 ") {
		t.Fatalf("the program said %q", out.Text())
	}
	_ = cmd.Process.Kill()
	_ = cmd.Wait()
	waitFor(t, "processes gone", func() bool { return victims(t) == 0 })
}

// pair is two namespaces with a cable.
func pair(t *testing.T, cable Cable) (a, b *Namespace) {
	t.Helper()
	Need(t)
	var err error
	if a, err = NewNamespace("a"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { a.Close() })
	if b, err = NewNamespace("b"); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close() })
	err = Connect(cable,
		Plug{a, "eth0", []netip.Prefix{netip.MustParsePrefix("10.9.0.1/24"), netip.MustParsePrefix("fd00:9::1/64")}},
		Plug{b, "eth0", []netip.Prefix{netip.MustParsePrefix("10.9.0.2/24"), netip.MustParsePrefix("fd00:9::2/64")}})
	if err != nil {
		t.Fatal(err)
	}
	return a, b
}

func TestCableCarriesAndNamespacesAreApart(t *testing.T) {
	a, b := pair(t, Cable{MTU: 1400})
	for _, addr := range []string{"10.9.0.2:7000", "[fd00:9::2]:7000"} {
		var ln net.Listener
		err := b.Run(func() (err error) { ln, err = net.Listen("tcp", addr); return err })
		if err != nil {
			t.Fatal(err)
		}
		var conn net.Conn
		if err := a.Run(func() (err error) { conn, err = net.DialTimeout("tcp", addr, 5*time.Second); return err }); err != nil {
			t.Errorf("%s from a: %v", addr, err)
		} else {
			conn.Close()
		}
		// The lab's own namespace has no route there.
		if conn, err := net.DialTimeout("tcp", addr, time.Second); err == nil {
			conn.Close()
			t.Errorf("%s can be reached from outside of both namespaces", addr)
		}
		ln.Close()
	}
	l, err := b.Netlink().LinkByName("eth0")
	if err != nil {
		t.Fatal(err)
	}
	if l.Attrs().MTU != 1400 {
		t.Errorf("MTU %d, want 1400", l.Attrs().MTU)
	}
}

func TestRoute(t *testing.T) {
	a, b := pair(t, Cable{})
	if err := b.AddAddr("lo", netip.MustParsePrefix("192.0.2.9/32")); err != nil {
		t.Fatal(err)
	}
	dial := func() error {
		return a.Run(func() error {
			conn, err := net.Dial("udp", "192.0.2.9:9")
			if err == nil {
				conn.Close()
			}
			return err
		})
	}
	if err := dial(); !errors.Is(err, unix.ENETUNREACH) {
		t.Errorf("without a route: %v, want ENETUNREACH", err)
	}
	if err := a.AddRoute(netip.MustParsePrefix("192.0.2.0/24"), "eth0", netip.MustParseAddr("10.9.0.2")); err != nil {
		t.Fatal(err)
	}
	if err := dial(); err != nil {
		t.Errorf("with a route: %v", err)
	}
	if err := a.SetMTU("nothing0", 1500); err == nil || !strings.Contains(err.Error(), "a: set MTU of nothing0") {
		t.Errorf("missing device: %v", err)
	}
}

// TestAddressesAreReached: a datagram to an address that was just given arrives, of either family, whether the device was up
// before or not.
func TestAddressesAreReached(t *testing.T) {
	for i := range 10 {
		a, b := pair(t, Cable{})
		if err := b.AddAddr("eth0", netip.MustParsePrefix("fd07::2/64")); err != nil {
			t.Fatal(err)
		}
		if err := a.SetDown("eth0"); err != nil {
			t.Fatal(err)
		}
		if err := errors.Join(a.AddAddr("eth0", netip.MustParsePrefix("fd07::1/64")), a.SetUp("eth0")); err != nil {
			t.Fatal(err)
		}
		for ns, addr := range map[*Namespace]string{a: "fd07::1", b: "fd07::2"} {
			routes, err := ns.Netlink().RouteGet(net.ParseIP(addr))
			if err != nil || len(routes) == 0 || routes[0].Type != unix.RTN_LOCAL {
				t.Errorf("round %d: %s is not local: %v, %v", i, addr, routes, err)
			}
		}
	}
}

func TestOffload(t *testing.T) {
	a, b := pair(t, Cable{Off: []Offload{TCPSegmentation, UDPSegmentation}})
	for _, ns := range []*Namespace{a, b} {
		for o, want := range map[Offload]bool{TCPSegmentation: false, UDPSegmentation: false, TCP6Segment: true} {
			if got, err := ns.Offload("eth0", o); err != nil || got != want {
				t.Errorf("%s of %s: %v %v, want %v", o, ns.Name(), got, err, want)
			}
		}
	}
	if err := a.SetOffload("eth0", TCPSegmentation, true); err != nil {
		t.Error(err)
	}
	if got, err := a.Offload("eth0", TCPSegmentation); err != nil || !got {
		t.Errorf("after switching it on: %v %v", got, err)
	}
	if err := a.SetOffload("eth0", "no-such-thing", true); err == nil {
		t.Error("an unknown offload was switched on")
	}
}

func TestChildRunsInNamespace(t *testing.T) {
	a, _ := pair(t, Cable{})
	var here string
	if err := a.Run(func() (err error) { here, err = os.Readlink("/proc/thread-self/ns/net"); return err }); err != nil {
		t.Fatal(err)
	}
	var out strings.Builder
	cmd := exec.Command("readlink", "/proc/self/ns/net")
	cmd.Stdout = &out
	if err := a.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	base, err := os.Readlink("/proc/self/ns/net")
	if err != nil {
		t.Fatal(err)
	}
	if got := strings.TrimSpace(out.String()); got != here || got == base {
		t.Errorf("the child is in %s, namespace a is %s, the lab %s", got, here, base)
	}
}

func TestRunWireguardIsEmptyAndOurs(t *testing.T) {
	Need(t)
	for _, dir := range []string{"/run/wireguard", "/var/run/wireguard"} {
		entries, err := os.ReadDir(dir)
		if err != nil || len(entries) != 0 {
			t.Errorf("%s: %d entries, %v; want an empty directory", dir, len(entries), err)
		}
	}
	if err := os.WriteFile("/run/wireguard/x", nil, 0o600); err != nil {
		t.Error(err)
	}
	_ = os.Remove("/run/wireguard/x")
	// Not one that the machine has.
	var st unix.Statfs_t
	if err := unix.Statfs("/run/wireguard", &st); err != nil || st.Type != unix.TMPFS_MAGIC {
		t.Errorf("file system %#x, %v; want tmpfs", st.Type, err)
	}
}

func TestExplain(t *testing.T) {
	for _, c := range []struct {
		name   string
		err    error
		uid    int
		sysctl map[string]string
		want   string
	}{
		{"apparmor", unix.EPERM, 1000, map[string]string{"kernel.apparmor_restrict_unprivileged_userns": "1"}, "kernel.apparmor_restrict_unprivileged_userns=0"},
		{"debian", unix.EPERM, 1000, map[string]string{"kernel.unprivileged_userns_clone": "0"}, "kernel.unprivileged_userns_clone=1"},
		{"count", unix.ENOSPC, 1000, map[string]string{"user.max_user_namespaces": "0"}, "user.max_user_namespaces=10000"},
		{"container", unix.EPERM, 0, nil, "--privileged"},
		{"other refusal", unix.EACCES, 1000, nil, "run as root"},
	} {
		got := explain(fmt.Errorf("lab: new namespaces: %w", c.err), c.uid, func(name string) string { return c.sysctl[name] })
		if !strings.Contains(got.Error(), c.want) || !errors.Is(got, c.err) || strings.Contains(got.Error(), "\n") {
			t.Errorf("%s: %q, want one line with %q", c.name, got, c.want)
		}
	}
	plain := errors.New("plain")
	if got := explain(plain, 0, func(string) string { return "" }); got != plain {
		t.Errorf("another error became %v", got)
	}
}

func TestEnterRefusesAForgedVariable(t *testing.T) {
	mnt, err := os.Readlink("/proc/self/ns/mnt")
	if err != nil {
		t.Skip("no /proc")
	}
	if err := settle(stageEnter + mnt); err == nil || !strings.Contains(err.Error(), "not a lab") {
		t.Errorf("set-up in the caller's own mount namespace: %v", err)
	}
}

// A signal that comes before the run inside can hear it is not lost.
func TestEarlySignal(t *testing.T) {
	cmd := exec.Command("sh", "-c", `trap "" TERM; echo deaf; sleep 0.6; trap "exit 7" TERM; while :; do sleep 0.02; done`)
	out, err := cmd.StdoutPipe()
	if err != nil {
		t.Fatal(err)
	}
	if err := cmd.Start(); err != nil {
		t.Fatal(err)
	}
	signals, ended := make(chan os.Signal, 1), make(chan struct{})
	defer close(ended)
	if s := bufio.NewScanner(out); !s.Scan() || s.Text() != "deaf" {
		t.Fatalf("it said %q", s.Text())
	}
	signals <- syscall.SIGTERM
	go pass(signals, cmd.Process, ended)
	limit := time.AfterFunc(10*time.Second, func() { _ = cmd.Process.Kill() })
	defer limit.Stop()
	_ = cmd.Wait()
	if got := cmd.ProcessState.ExitCode(); got != 7 {
		t.Errorf("exit code %d, want 7", got)
	}
}
