package names

import (
	"bufio"
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"os/user"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/godbus/dbus/v5"
)

const busConfig = `<!DOCTYPE busconfig PUBLIC "-//freedesktop//DTD D-Bus Bus Configuration 1.0//EN" "http://www.freedesktop.org/standards/dbus/1.0/busconfig.dtd">
<busconfig><type>custom</type><listen>unix:path=%s</listen><auth>EXTERNAL</auth>
<policy context="default"><allow send_destination="*"/><allow receive_sender="*"/><allow own="*"/><allow user="*"/></policy></busconfig>`

// newBus starts a bus that is the system's for this test.
func newBus(t *testing.T) (address string) {
	t.Helper()
	path, err := exec.LookPath("dbus-daemon")
	if err != nil {
		t.Skip("SKIPPED: systemd-resolved's place is not taken by another one: dbus-daemon is not installed")
	}
	if _, err := user.LookupId(strconv.Itoa(os.Getuid())); err != nil {
		t.Skipf("SKIPPED: systemd-resolved's place is not taken by another one: dbus-daemon ends, as this user has no entry in the password database: %v", err)
	}
	dir, err := os.MkdirTemp("", "bus") // t.TempDir is too long for a socket
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { os.RemoveAll(dir) })
	config := filepath.Join(dir, "config")
	if err := os.WriteFile(config, fmt.Appendf(nil, busConfig, filepath.Join(dir, "socket")), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command(path, "--nofork", "--nopidfile", "--print-address", "--config-file="+config)
	cmd.Stderr = t.Output()
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { cmd.Process.Kill(); cmd.Wait() })
	line, err := bufio.NewReader(out).ReadString('\n')
	if err != nil {
		t.Fatalf("dbus-daemon says %q: %v", line, err)
	}
	address = strings.TrimSpace(line)
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", address)
	return address
}

// fakeResolved takes the place of systemd-resolved.
type fakeResolved struct {
	conn   *dbus.Conn
	refuse bool // SetLinkDNS and SetLinkDNSEx
	mu     sync.Mutex
	calls  []string // guarded by mu
}

func newFakeResolved(t *testing.T, address string, refuse bool) *fakeResolved {
	t.Helper()
	conn, err := dbus.Connect(address)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	f := &fakeResolved{conn: conn, refuse: refuse}
	if err := conn.Export(f, resolvedPath, resolvedName+".Manager"); err != nil {
		t.Fatal(err)
	}
	if reply, err := conn.RequestName(resolvedName, dbus.NameFlagDoNotQueue); err != nil || reply != dbus.RequestNameReplyPrimaryOwner {
		t.Fatalf("the name is not ours: %v %v", reply, err)
	}
	return f
}

func (f *fakeResolved) note(format string, args ...any) *dbus.Error {
	f.mu.Lock()
	defer f.mu.Unlock()
	f.calls = append(f.calls, fmt.Sprintf(format, args...))
	if f.refuse && strings.HasPrefix(format, "SetLinkDNS ") {
		return dbus.NewError("org.freedesktop.DBus.Error.AccessDenied", []any{"Permission denied"})
	}
	return nil
}

func (f *fakeResolved) SetLinkDNS(link int32, list []linkAddress) *dbus.Error {
	return f.note("SetLinkDNS %d %v", link, list)
}

func (f *fakeResolved) SetLinkDNSEx(link int32, list []linkServer) *dbus.Error {
	var at []netip.AddrPort
	for _, s := range list {
		a, _ := netip.AddrFromSlice(s.Address)
		at = append(at, netip.AddrPortFrom(a, s.Port))
	}
	return f.note("SetLinkDNS %d %v", link, at)
}

func (f *fakeResolved) SetLinkDomains(link int32, list []linkDomain) *dbus.Error {
	return f.note("SetLinkDomains %d %v", link, list)
}
func (f *fakeResolved) SetLinkDNSSEC(link int32, mode string) *dbus.Error {
	return f.note("SetLinkDNSSEC %d %s", link, mode)
}
func (f *fakeResolved) RevertLink(link int32) *dbus.Error { return f.note("RevertLink %d", link) }

// said lists the calls.
func (f *fakeResolved) said() []string {
	f.mu.Lock()
	defer f.mu.Unlock()
	return slices.Clone(f.calls)
}

// has returns the first call that begins like that.
func (f *fakeResolved) has(begin string) string {
	for _, c := range f.said() {
		if strings.HasPrefix(c, begin) {
			return c
		}
	}
	return ""
}

func await(t *testing.T, what string, f func() bool) {
	t.Helper()
	for begin := time.Now(); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Since(begin) > 30*time.Second {
			t.Fatalf("not within 30 s: %s", what)
		}
	}
}

// run runs a Names with an own address of the loopback device's until the returned function is called, at the test's end too.
func run(t *testing.T, mode string, own netip.Addr) (n *Names, end func()) {
	t.Helper()
	n = New(Config{Mode: mode, Interface: "lo", Logger: slog.New(slog.NewTextHandler(t.Output(), nil))})
	ctx, stop := context.WithCancel(context.Background())
	ended := make(chan struct{})
	go func() { defer close(ended); n.Run(ctx) }()
	n.Set([]netip.Addr{own}, testZone, nil)
	end = func() { stop(); <-ended }
	t.Cleanup(end)
	return n, end
}

// TestResolved: systemd-resolved is told where to ask, again after its restart, and to forget it at the end; while it is away the rest lives
// on, and says so.
func TestResolved(t *testing.T) {
	lo, err := net.InterfaceByName("lo")
	if err != nil {
		t.Skipf("SKIPPED: this lab's namespace has no lo: %v", err)
	}
	own := netip.MustParseAddr("127.0.0.73")
	if c, err := net.ListenPacket("udp", own.String()+":53"); err == nil { // so that it is another port for root too
		defer c.Close()
	}
	address := newBus(t)
	n, end := run(t, Resolved, own)
	await(t, "the note says that there is none", func() bool { return strings.Contains(n.Note(), errAbsent.Error()) })
	told := func(f *fakeResolved) (at netip.AddrPort) {
		t.Helper()
		await(t, "systemd-resolved is told", func() bool { return f.has("SetLinkDNSSEC ") != "" && n.Note() == "" })
		text := strings.TrimSuffix(strings.TrimPrefix(f.has("SetLinkDNS "), fmt.Sprintf("SetLinkDNS %d [", lo.Index)), "]")
		at, err := netip.ParseAddrPort(text)
		if err != nil || at.Addr() != own || at.Port() == dnsPort {
			t.Fatalf("its calls are %q: %v, want the server at a port of %v", f.said(), err, own)
		}
		if got, want := f.has("SetLinkDomains"), fmt.Sprintf("SetLinkDomains %d [{sluice true}]", lo.Index); got != want {
			t.Errorf("%q, want %q", got, want)
		}
		return at
	}
	first := newFakeResolved(t, address, false)
	m, ok := ask(t, own.String(), told(first), 10*time.Second)
	if got := addresses(m); !ok || !slices.Equal(got, []netip.Addr{gate4}) {
		t.Errorf("the answer is %v (%v), want %v", got, ok, gate4)
	}
	n.Set([]netip.Addr{own}, testZone, []netip.Addr{netip.MustParseAddr("192.0.2.53")})
	await(t, "all names are asked for here", func() bool {
		return slices.Contains(first.said(), fmt.Sprintf("SetLinkDomains %d [{sluice true} {. true}]", lo.Index))
	})
	asked := len(first.said())
	n.Set([]netip.Addr{own}, testZone, nil)
	await(t, "and then no more", func() bool {
		return slices.Contains(first.said()[asked:], fmt.Sprintf("SetLinkDomains %d [{sluice true}]", lo.Index))
	})
	first.conn.Close()
	await(t, "the note says that it is away", func() bool { return strings.Contains(n.Note(), errAbsent.Error()) })
	second := newFakeResolved(t, address, false)
	told(second)
	end()
	if got, want := second.has("RevertLink"), fmt.Sprintf("RevertLink %d", lo.Index); got != want {
		t.Errorf("at the end %q, want %q", got, want)
	}
}

// TestResolvedRefuses: it is told why, and nothing is left half set.
func TestResolvedRefuses(t *testing.T) {
	address := newBus(t)
	f := newFakeResolved(t, address, true)
	n, _ := run(t, Auto, netip.MustParseAddr("127.0.0.74"))
	await(t, "the note says why", func() bool { return strings.Contains(n.Note(), "polkit rule") })
	if f.has("RevertLink ") == "" {
		t.Errorf("the calls are %q, want RevertLink among them", f.said())
	}
}

// TestBusIsSilent: a bus that does not answer holds up nothing.
func TestBusIsSilent(t *testing.T) {
	dir, err := os.MkdirTemp("", "bus")
	if err != nil {
		t.Fatal(err)
	}
	defer os.RemoveAll(dir)
	l, err := net.Listen("unix", filepath.Join(dir, "socket"))
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	t.Setenv("DBUS_SYSTEM_BUS_ADDRESS", "unix:path="+l.Addr().String())
	begin := time.Now()
	if _, err := dialResolved(t.Context()); !errors.Is(err, errAbsent) {
		t.Errorf("%v, want %v", err, errAbsent)
	}
	if took := time.Since(begin); took < callLimit || took > callLimit+20*time.Second {
		t.Errorf("it took %v, want about %v", took, callLimit)
	}
	n, end := run(t, Auto, netip.MustParseAddr("127.0.0.75"))
	c, err := l.Accept() // of the call before
	if err == nil {
		defer c.Close()
		c, err = l.Accept()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	begin = time.Now()
	if end(); time.Since(begin) > callLimit/2 {
		t.Errorf("the end took %v, want less than a call may take", time.Since(begin))
	}
	if note := n.Note(); note != "" {
		t.Errorf("the note of auto is %q, want none", note)
	}
}

// elsewhereVariable has this test binary be a systemd-resolved on the bus of that address until its input ends.
const elsewhereVariable = "SLUICE_NAMES_TEST_BUS"

func TestResolvedElsewhere(t *testing.T) {
	address := os.Getenv(elsewhereVariable)
	if address == "" {
		t.Skip("only for the other tests")
	}
	newFakeResolved(t, address, false)
	fmt.Println("ready")
	_, _ = io.Copy(io.Discard, os.Stdin)
}

// TestResolvedOfAnotherNamespace: a container that sees its host's bus, or a program in a namespace, does not change the host's links.
func TestResolvedOfAnotherNamespace(t *testing.T) {
	address := newBus(t)
	args := []string{"--net"}
	if os.Getuid() != 0 {
		args = append(args, "--user", "--map-current-user")
	}
	cmd := exec.Command("unshare", append(args, os.Args[0], "-test.run", "^TestResolvedElsewhere$")...)
	cmd.Env = append(os.Environ(), elsewhereVariable+"="+address)
	cmd.Stderr = t.Output()
	in, err := cmd.StdinPipe()
	if err != nil {
		t.Fatal(err)
	}
	out, err := cmd.StdoutPipe()
	if err == nil {
		err = cmd.Start()
	}
	if err != nil {
		t.Fatal(err)
	}
	defer func() { in.Close(); cmd.Wait() }()
	if line, err := bufio.NewReader(out).ReadString('\n'); line != "ready\n" {
		t.Skipf("SKIPPED: nobody is on the bus from another network namespace: user namespaces are refused: %q %v", line, err)
	}
	n, end := run(t, Resolved, netip.MustParseAddr("127.0.0.76"))
	await(t, "the note says so", func() bool { return strings.Contains(n.Note(), "of this network namespace") })
	if end(); n.set.owner != "" {
		t.Errorf("%s was told, want nobody", n.set.owner)
	}
}
