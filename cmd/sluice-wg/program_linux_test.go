package main

import (
	"bufio"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-vpn/sluice/bench/lab"
	"github.com/sluice-vpn/sluice/crypto"
)

// TestReady: when the program returns, everything a script needs is there.
func TestReady(t *testing.T) {
	need(t)
	ns, name, path := newNamespace(t, "a"), newName(), program(t)
	out, err := try(ns, nil, "", path, name)
	if err != nil || out != "" {
		t.Fatalf("%v, output %q", err, out)
	}
	link, err := ns.Netlink().LinkByName(name)
	if err != nil || link.Type() != "tuntap" || link.Attrs().MTU != 1420 {
		t.Errorf("no TUN device of that name with MTU 1420: %v", err)
	}
	st, err := os.Lstat(sockets + name + ".sock")
	if err != nil || st.Mode() != os.ModeSocket|0o600 {
		t.Fatalf("socket: %v", err)
	}
	if got := ask(t, name, "get=1\n\n"); got != "errno=0\n\n" {
		t.Errorf("a new interface says %q", got)
	}
	pid := owner(t, name)
	if session, err := unix.Getsid(pid); err != nil || session != pid {
		t.Errorf("the background process is in session %d, not in its own, %d (%v)", session, pid, err)
	}
	limits, err := os.ReadFile(fmt.Sprintf("/proc/%d/limits", pid))
	if err != nil || !strings.Contains(strings.Join(strings.Fields(string(limits)), " "), "Max core file size 0 0") {
		t.Errorf("core dumps are not switched off: %s (%v)", limits, err)
	}

	out, err = try(ns, nil, "", path, name)
	if err == nil || strings.Count(out, "\n") != 1 || !strings.Contains(out, name) {
		t.Errorf("a second one of the same name: %v, output %q", err, out)
	}
	if got := owner(t, name); got != pid {
		t.Errorf("the socket went from process %d to %d", pid, got)
	}
	syscall.Kill(pid, syscall.SIGTERM)
	if status := exitStatus(t, pid); status != 0 {
		t.Errorf("exit status %v", status)
	}
	gone(t, ns, name)
}

// TestEnds: each way to end an interface is clean.
func TestEnds(t *testing.T) {
	need(t)
	path := program(t)
	ways := map[string]func(ns *lab.Namespace, name string, pid int) error{
		"SIGTERM":        func(_ *lab.Namespace, _ string, pid int) error { return syscall.Kill(pid, syscall.SIGTERM) },
		"SIGINT":         func(_ *lab.Namespace, _ string, pid int) error { return syscall.Kill(pid, syscall.SIGINT) },
		"SIGHUP":         func(_ *lab.Namespace, _ string, pid int) error { return syscall.Kill(pid, syscall.SIGHUP) },
		"SIGQUIT":        func(_ *lab.Namespace, _ string, pid int) error { return syscall.Kill(pid, syscall.SIGQUIT) },
		"socket removed": func(_ *lab.Namespace, name string, _ int) error { return os.Remove(sockets + name + ".sock") },
		"interface deleted": func(ns *lab.Namespace, name string, _ int) error {
			link, err := ns.Netlink().LinkByName(name)
			if err != nil {
				return err
			}
			return ns.Netlink().LinkDel(link)
		},
	}
	for way, finish := range ways {
		for _, isUp := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, up %v", way, isUp), func(t *testing.T) {
				t.Parallel()
				ns, name := newNamespace(t, "a"), newName()
				pid := start(t, ns, nil, path, name)
				if isUp {
					if err := ns.SetUp(name); err != nil {
						t.Fatal(err)
					}
				}
				if err := finish(ns, name, pid); err != nil {
					t.Fatal(err)
				}
				if status := exitStatus(t, pid); status != 0 {
					t.Errorf("exit status %v", status)
				}
				gone(t, ns, name)
			})
		}
	}
}

func TestForeground(t *testing.T) {
	need(t)
	path := program(t)
	for flag, env := range map[string]string{"-f": "", "--foreground": "", "": "WG_PROCESS_FOREGROUND=1"} {
		t.Run(flag+env, func(t *testing.T) {
			t.Parallel()
			ns, name := newNamespace(t, "a"), newName()
			cmd := exec.Command(path, strings.Fields(flag+" "+name)...)
			cmd.Env = append(os.Environ(), env)
			stderr, err := cmd.StderrPipe()
			if err != nil {
				t.Fatal(err)
			}
			if err := ns.Start(cmd); err != nil {
				t.Fatal(err)
			}
			line, err := bufio.NewReader(stderr).ReadString('\n')
			if err != nil || !strings.Contains(line, "interface is ready") {
				t.Errorf("first line %q (%v)", line, err)
			}
			if pid := owner(t, name); pid != cmd.Process.Pid {
				t.Errorf("process %d serves, not %d", pid, cmd.Process.Pid)
			}
			cmd.Process.Signal(syscall.SIGTERM)
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
			gone(t, ns, name)
		})
	}
}

// TestTerminalCloses: the interface ends with its terminal, unless nohup says that it is not to.
func TestTerminalCloses(t *testing.T) {
	need(t, "nohup")
	path := program(t)
	for _, wrapper := range []string{"", "nohup"} {
		t.Run(wrapper, func(t *testing.T) {
			ns, name := newNamespace(t, "a"), newName()
			argv := strings.Fields(wrapper + " " + path + " -f " + name)
			cmd := exec.Command(argv[0], argv[1:]...)
			if err := ns.Start(cmd); err != nil {
				t.Fatal(err)
			}
			owner(t, name) // waits until it serves
			cmd.Process.Signal(syscall.SIGHUP)
			if wrapper != "" {
				ignored, err := exec.Command("sed", "-n", `/^SigIgn:.*[13579bdf]$/p`, fmt.Sprintf("/proc/%d/status", cmd.Process.Pid)).Output()
				if err != nil || len(ignored) == 0 {
					t.Errorf("SIGHUP, the lowest bit, is not ignored: %q (%v)", ignored, err)
				}
				cmd.Process.Signal(syscall.SIGTERM)
			}
			if err := cmd.Wait(); err != nil {
				t.Error(err)
			}
			gone(t, ns, name)
		})
	}
}

// TestSocketTaken: a live socket is an error that leaves nothing, a stale one is replaced.
func TestSocketTaken(t *testing.T) {
	need(t)
	ns, name, path := newNamespace(t, "a"), newName(), program(t)
	at := sockets + name + ".sock"
	l, err := net.ListenUnix("unix", &net.UnixAddr{Name: at, Net: "unix"})
	if err != nil {
		t.Fatal(err)
	}
	l.SetUnlinkOnClose(false)
	out, err := try(ns, nil, "", path, name)
	var exit *exec.ExitError
	if !errors.As(err, &exit) || exit.ExitCode() != exitFailed || strings.Count(out, "\n") != 1 || !strings.Contains(out, at) {
		t.Errorf("live socket: %v, output %q", err, out)
	}
	if _, err := ns.Netlink().LinkByName(name); err == nil {
		t.Error("the interface is left behind")
	}
	if _, err := os.Lstat(at); err != nil {
		t.Error("the other program's socket was removed")
	}
	l.Close()
	start(t, ns, nil, path, name)
	if got := ask(t, name, "get=1\n\n"); got != "errno=0\n\n" {
		t.Errorf("after a stale socket: %q", got)
	}
}

// TestErrors: one line on standard error, a status that is not 0, nothing left behind.
func TestErrors(t *testing.T) {
	need(t)
	ns, path := newNamespace(t, "a"), program(t)
	for _, tt := range []struct {
		args []string
		env  string
		code int
		says string
	}{
		{nil, "", exitUsage, "missing"},
		{[]string{""}, "", exitUsage, "empty"},
		{[]string{"a", "b"}, "", exitUsage, "one interface name"},
		{[]string{"--nope"}, "", exitUsage, "--nope"},
		{[]string{"a-name-longer-than-15"}, "", exitFailed, "15"},
		{[]string{"../../etc/x"}, "", exitFailed, "slash"},
		{[]string{"a b"}, "", exitFailed, "space"},
		{[]string{".."}, "", exitFailed, `".."`},
		{[]string{"--", "-f/"}, "", exitFailed, "slash"},
		{[]string{"-f", "a/b"}, "", exitFailed, "slash"},
		{[]string{"wgfd"}, "WG_TUN_FD=99", exitFailed, ""},
		{[]string{"wgfd"}, "WG_UAPI_FD=99", exitFailed, ""},
	} {
		out, err := try(ns, []string{tt.env}, "", append([]string{path}, tt.args...)...)
		var exit *exec.ExitError
		if !errors.As(err, &exit) || exit.ExitCode() != tt.code || !strings.Contains(out, tt.says) || !strings.HasPrefix(out, "sluice-wg: ") {
			t.Errorf("%q %s: %v, output %q", tt.args, tt.env, err, out)
		}
		if want := 1 + tt.code/exitUsage; strings.Count(out, "\n") != want {
			t.Errorf("%q: %d lines, want %d: %q", tt.args, strings.Count(out, "\n"), want, out)
		}
	}
	links, err := ns.Netlink().LinkList()
	if err != nil || len(links) != 1 {
		t.Errorf("%d interfaces, want the loopback only (%v)", len(links), err)
	}
	for _, flag := range []string{"-version", "--version"} {
		if out := must(t, ns, path, flag); !strings.HasPrefix(out, "sluice-wg ") || strings.Count(out, "\n") != 1 {
			t.Errorf("%s: %q", flag, out)
		}
	}
	if out := must(t, ns, path, "-h"); !strings.HasPrefix(out, "Usage: sluice-wg [-f | --foreground] INTERFACE-NAME\n") {
		t.Errorf("-h: %q", out)
	}
}

// TestLog: lines are JSON objects and hold no secret, at the most talkative level, whatever is configured.
func TestLog(t *testing.T) {
	need(t, "wg")
	ns, name := newNamespace(t, "a"), newName()
	cmd := exec.Command(program(t), name)
	cmd.Env = append(os.Environ(), "LOG_LEVEL=verbose")
	log, err := os.Create(filepath.Join(t.TempDir(), "log"))
	if err != nil {
		t.Fatal(err)
	}
	defer log.Close()
	cmd.Stderr = log
	if err := ns.Start(cmd); err != nil {
		t.Fatal(err)
	}
	if err := cmd.Wait(); err != nil {
		t.Fatal(err)
	}
	pid := owner(t, name)
	key, err := crypto.GeneratePrivateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	psk, err := crypto.GeneratePresharedKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	if err := ns.SetUp(name); err != nil {
		t.Fatal(err)
	}
	ask(t, name, fmt.Sprintf("set=1\nprivate_key=%s\npublic_key=%s\npreshared_key=%s\nendpoint=127.0.0.1:9\npersistent_keepalive_interval=1\n\n",
		hexKey(key), strings.Repeat("42", 32), hexKey(psk)))
	ask(t, name, "set=1\nprivate_key="+key.Encode()+"\n\n")
	ask(t, name, "set=1\n"+psk.Encode()+"\n\n")
	ask(t, name, "set=1\nevil\nmessage=x\n\n")
	syscall.Kill(pid, syscall.SIGTERM)
	exitStatus(t, pid)
	text, err := os.ReadFile(log.Name())
	if err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(string(text), "\n"), "\n")
	if len(lines) < 5 {
		t.Errorf("%d lines only:\n%s", len(lines), text)
	}
	for _, line := range lines {
		var o struct{ Time, Severity, Message string }
		if err := json.Unmarshal([]byte(line), &o); err != nil || o.Time == "" || o.Severity == "" || o.Message == "" {
			t.Errorf("%v in line %s", err, line)
		}
	}
	for _, secret := range []string{key.Encode()[:20], hexKey(key)[:20], psk.Encode()[:20], hexKey(psk)[:20]} {
		if strings.Contains(string(text), secret) {
			t.Errorf("the log holds a key:\n%s", text)
		}
	}
}

// TestStats: counters come on SIGUSR1 and at the end.
func TestStats(t *testing.T) {
	need(t)
	ns, name := newNamespace(t, "a"), newName()
	path := filepath.Join(t.TempDir(), "stats")
	pid := start(t, ns, []string{"SLUICE_STATS=" + path}, program(t), name)
	counters := func() map[string]uint64 {
		t.Helper()
		var text []byte
		err := errors.New("no file")
		for end := time.Now().Add(patient); err != nil && time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			text, err = os.ReadFile(path)
		}
		var object map[string]uint64
		if err = errors.Join(err, json.Unmarshal(text, &object)); err != nil || len(object) < 10 {
			t.Fatalf("%v in %s", err, text)
		}
		return object
	}
	if _, err := os.Stat(path); err == nil {
		t.Error("counters before anybody asked")
	}
	syscall.Kill(pid, syscall.SIGUSR1)
	counters()
	os.Remove(path)
	syscall.Kill(pid, syscall.SIGTERM)
	if status := exitStatus(t, pid); status != 0 {
		t.Errorf("exit status %v", status)
	}
	counters()
}

// TestInheritedDescriptors: a caller may hand over the TUN device and the listening socket, also into the background.
func TestInheritedDescriptors(t *testing.T) {
	need(t)
	path := program(t)
	for _, flag := range []string{"-f", ""} {
		ns, name := newNamespace(t, "a"), newName()
		at := sockets + name + ".sock"
		l, err := net.ListenUnix("unix", &net.UnixAddr{Name: at, Net: "unix"})
		if err != nil {
			t.Fatal(err)
		}
		l.SetUnlinkOnClose(false)
		socket, err := l.File()
		if err != nil {
			t.Fatal(err)
		}
		l.Close()
		device := openTUN(t, ns, name)
		cmd := exec.Command(path, strings.Fields(flag+" other")...)
		cmd.ExtraFiles = []*os.File{nil, device, nil, socket} // 4 and 6: not where the background process will have them
		cmd.Env = append(os.Environ(), "WG_TUN_FD=4", "WG_UAPI_FD=6")
		if err := ns.Start(cmd); err != nil {
			t.Fatal(err)
		}
		device.Close()
		socket.Close()
		// The caller listened, so its process is what the socket names; ours answers.
		if got := ask(t, name, "get=1\n\n"); got != "errno=0\n\n" {
			t.Errorf("answer %q", got)
		}
		if err := os.Remove(at); err != nil {
			t.Fatal(err)
		}
		if err := cmd.Wait(); err != nil {
			t.Errorf("flag %q: %v", flag, err)
		}
		for end := time.Now().Add(patient); time.Now().Before(end); time.Sleep(5 * time.Millisecond) {
			if _, err := ns.Netlink().LinkByName(name); err != nil {
				break
			}
		}
		gone(t, ns, name)
	}
}

// openTUN makes a TUN device as a caller would that hands it over.
func openTUN(t *testing.T, ns *lab.Namespace, name string) *os.File {
	t.Helper()
	var f *os.File
	err := ns.Run(func() error {
		fd, err := unix.Open("/dev/net/tun", unix.O_RDWR|unix.O_NONBLOCK|unix.O_CLOEXEC, 0)
		if err != nil {
			return err
		}
		request, err := unix.NewIfreq(name)
		if err != nil {
			return err
		}
		request.SetUint16(unix.IFF_TUN | unix.IFF_NO_PI | unix.IFF_VNET_HDR)
		f = os.NewFile(uintptr(fd), "tun")
		return unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	})
	if err != nil {
		t.Fatal(err)
	}
	return f
}

// TestMovedInterface: the interface works in another namespace than its sockets, and the move is not taken for its end.
func TestMovedInterface(t *testing.T) {
	need(t, "wg", "ping")
	path := program(t)
	ends := newEnds(t, [2]string{path, path})
	elsewhere := newNamespace(t, "elsewhere")
	tunnelElsewhere(t, ends, elsewhere)
	ping(t, elsewhere, 3, ends[1].inner[0])
	ping(t, ends[1].ns, 3, ends[0].inner[1])
	link, err := elsewhere.Netlink().LinkByName(ends[0].name)
	if err != nil {
		t.Fatal(err)
	}
	if err := elsewhere.Netlink().LinkDel(link); err != nil {
		t.Fatal(err)
	}
	if status := exitStatus(t, ends[0].pid); status != 0 {
		t.Errorf("exit status %v", status)
	}
	gone(t, elsewhere, ends[0].name)
}

// tunnelElsewhere configures both ends and moves the first one's interface to another namespace.
func tunnelElsewhere(t *testing.T, ends [2]*end, elsewhere *lab.Namespace) {
	t.Helper()
	var psk crypto.PresharedKey
	ends[0].configure(t, ends[1], psk, 0)
	ends[1].configure(t, ends[0], psk, -1)
	link, err := ends[0].ns.Netlink().LinkByName(ends[0].name)
	if err != nil {
		t.Fatal(err)
	}
	if err := ends[0].ns.Netlink().LinkSetNsFd(link, elsewhere.FD()); err != nil {
		t.Fatal(err)
	}
	ends[0].up(t, elsewhere)
	ends[1].up(t, ends[1].ns)
}

// TestNamespaceDeleted: the namespace that the interface was moved to is not kept alive by us, with traffic, nor by the ICMP errors
// that we had it send. When it goes, with it go its interfaces, and the program ends.
func TestNamespaceDeleted(t *testing.T) {
	need(t, "wg", "ping")
	path := program(t)
	ends := newEnds(t, [2]string{path, path})
	elsewhere := newNamespace(t, "elsewhere")
	plug := func(ns *lab.Namespace) lab.Plug { return lab.Plug{Namespace: ns, Device: "cable"} }
	if err := lab.Connect(lab.Cable{}, plug(ends[1].ns), plug(elsewhere)); err != nil {
		t.Fatal(err)
	}
	tunnelElsewhere(t, ends, elsewhere)
	ping(t, elsewhere, 1, ends[1].inner[0])
	ping(t, ends[1].ns, 1, ends[0].inner[1])
	nobody := ends[0].inner[0].Next().Next().String() // is in the interface's network, and no peer's
	if out, err := try(elsewhere, nil, "", "ping", "-n", "-c", "1", "-W", "8", nobody); err == nil || !strings.Contains(out, "nreachable") {
		t.Errorf("ping to nobody: %v, %q, want Unreachable", err, out)
	}
	if err := elsewhere.Close(); err != nil {
		t.Fatal(err)
	}
	if status := exitStatus(t, ends[0].pid); status != 0 {
		t.Errorf("exit status %v", status)
	}
	for end := time.Now().Add(patient); ; time.Sleep(10 * time.Millisecond) {
		if _, err := ends[1].ns.Netlink().LinkByName("cable"); err != nil {
			break
		}
		if time.Now().After(end) {
			t.Fatal("the namespace is kept alive")
		}
	}
	gone(t, ends[0].ns, ends[0].name)
}

// TestSlowClients: clients in the middle of a request hold up neither others nor the tunnel.
func TestSlowClients(t *testing.T) {
	need(t, "wg", "ping")
	path := program(t)
	ends := tunnel(t, [2]string{path, path}, 0)
	for _, request := range []string{"set=1\nprivate_key=00", "get=1\n", "set=1\npublic_key=" + strings.Repeat("42", 32) + "\nallowed_ip=::/0\n"} {
		conn, err := net.Dial("unix", sockets+ends[0].name+".sock")
		if err != nil {
			t.Fatal(err)
		}
		defer conn.Close()
		if _, err := io.WriteString(conn, request); err != nil {
			t.Fatal(err)
		}
	}
	for range 3 {
		must(t, ends[0].ns, "wg", "show", ends[0].name)
		must(t, ends[0].ns, "wg", "set", ends[0].name, "fwmark", "0")
		ping(t, ends[0].ns, 2, ends[1].inner[0])
	}
}
