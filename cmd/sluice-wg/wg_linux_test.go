package main

import (
	"bytes"
	"crypto/sha256"
	"errors"
	"fmt"
	"io"
	mathrand "math/rand/v2"
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/bench/lab"
	"github.com/sluice-vpn/sluice/crypto"
)

const (
	keyOne   = "cAdtCnMYpX08FsFyUbJmRd9ML4frwJkqsXf7pR25LGo=" // RFC 7748, section 6.1, Alice, clamped
	keyTwo   = "XasIfmJKikt54X+Lg4AO5m87sSkmGLb9HC+LJ/+I4Os=" // Bob
	publicB  = "3p7bfXt9wbTTW2HC7OQ1Nz+DQ8hbeGdNrfx+FG+IK08="
	publicC  = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="
	presharD = "FpCyhws9cxwWoV4xELtfJvjJN+zQVRPISllRWgeopVE="
)

// newInterface starts one interface and returns a function that runs wg with a configuration on standard input.
func newInterface(t *testing.T) (ns *lab.Namespace, name string, wg func(stdin string, argv ...string) string) {
	t.Helper()
	need(t, "wg")
	ns, name = newNamespace(t, "a"), newName()
	start(t, ns, nil, program(t), name)
	return ns, name, func(stdin string, argv ...string) string {
		t.Helper()
		return mustWith(t, ns, stdin, append([]string{"wg"}, argv...)...)
	}
}

const configuration = `[Interface]
PrivateKey = ` + keyOne + `
ListenPort = 12345
FwMark = 0x2a

[Peer]
PublicKey = ` + publicB + `
PresharedKey = ` + presharD + `
AllowedIPs = 10.0.0.0/8, fd00::/64
Endpoint = [2001:db8::2]:51820
PersistentKeepalive = 25

[Peer]
PublicKey = ` + publicC + `
AllowedIPs = 192.168.7.9/24
`

// TestConfigurationRoundTrip: what wg sets, wg shows; and what it shows it can set.
func TestConfigurationRoundTrip(t *testing.T) {
	_, name, wg := newInterface(t)
	wg(configuration, "setconf", name, "/dev/stdin")
	dump := wg("", "show", name, "dump")
	want := strings.Join([]string{
		strings.Join([]string{keyOne, "hSDwCYkwp1R0i33ctD73Wg2/Og0mOBr066SpjqqbTmo=", "12345", "0x2a"}, "\t"),
		strings.Join([]string{publicB, presharD, "[2001:db8::2]:51820", "10.0.0.0/8,fd00::/64", "0", "0", "0", "25"}, "\t"),
		strings.Join([]string{publicC, "(none)", "(none)", "192.168.7.0/24", "0", "0", "0", "off"}, "\t"), "",
	}, "\n")
	if dump != want {
		t.Errorf("dump:\n%swant:\n%s", dump, want)
	}
	shown := wg("", "showconf", name)
	wg("[Interface]\n", "setconf", name, "/dev/stdin")
	if empty := wg("", "show", name, "peers"); empty != "" {
		t.Errorf("an empty setconf leaves %q", empty)
	}
	wg(shown, "setconf", name, "/dev/stdin")
	if again := wg("", "show", name, "dump"); again != dump {
		t.Errorf("after showconf and setconf:\n%swant:\n%s", again, dump)
	}
}

// TestSyncAndAdd: syncconf makes the difference only, addconf adds.
func TestSyncAndAdd(t *testing.T) {
	_, name, wg := newInterface(t)
	wg(configuration, "setconf", name, "/dev/stdin")
	first, _, _ := strings.Cut(configuration, "\n[Peer]\nPublicKey = "+publicC)
	wg(first, "syncconf", name, "/dev/stdin")
	if got := wg("", "show", name, "allowed-ips"); got != publicB+"\t10.0.0.0/8 fd00::/64\n" {
		t.Errorf("after syncconf: %q", got)
	}
	if got := wg("", "show", name, "endpoints"); got != publicB+"\t[2001:db8::2]:51820\n" {
		t.Errorf("after syncconf: %q", got)
	}
	wg("[Peer]\nPublicKey = "+publicC+"\nAllowedIPs = 10.1.0.0/16\n", "addconf", name, "/dev/stdin")
	if got := wg("", "show", name, "allowed-ips"); got != publicB+"\t10.0.0.0/8 fd00::/64\n"+publicC+"\t10.1.0.0/16\n" {
		t.Errorf("after addconf: %q", got)
	}
	// An identical prefix moves.
	wg("", "set", name, "peer", publicC, "allowed-ips", "10.0.0.0/8")
	if got := wg("", "show", name, "allowed-ips"); got != publicB+"\tfd00::/64\n"+publicC+"\t10.0.0.0/8\n" {
		t.Errorf("after the prefix moved: %q", got)
	}
	wg("", "set", name, "peer", publicB, "remove")
	if got := wg("", "show", name, "peers"); got != publicC+"\n" {
		t.Errorf("after remove: %q", got)
	}
	// Our own key is no peer, and becomes none when it becomes ours (Linux drivers/net/wireguard/netlink.c).
	wg("", "set", name, "peer", publicB, "allowed-ips", "10.2.0.0/16")
	wg(keyTwo, "set", name, "private-key", "/dev/stdin")
	if got := wg("", "show", name, "peers"); got != publicC+"\n" {
		t.Errorf("we are our own peer: %q", got)
	}
	wg("", "set", name, "peer", publicB, "allowed-ips", "10.2.0.0/16")
	if got := wg("", "show", name, "peers"); got != publicC+"\n" {
		t.Errorf("we became our own peer: %q", got)
	}
}

// TestRawRequests: what this machine's wg may be too old to send.
func TestRawRequests(t *testing.T) {
	ns, name, wg := newInterface(t)
	key := func(text string) string {
		k, err := crypto.ParsePublicKey(text)
		if err != nil {
			t.Fatal(err)
		}
		return hexKey(k)
	}
	wg(configuration, "setconf", name, "/dev/stdin")
	if got := ask(t, name, "set=1\npublic_key="+key(publicB)+"\nallowed_ip=-10.0.0.0/8\nallowed_ip=-10.9.0.0/16\n\n"); got != "errno=0\n\n" {
		t.Errorf("removal of a prefix: %q", got)
	}
	if got := wg("", "show", name, "allowed-ips"); !strings.HasPrefix(got, publicB+"\tfd00::/64\n") {
		t.Errorf("after the removal of a prefix: %q", got)
	}
	if got := ask(t, name, "set=1\npublic_key="+strings.Repeat("77", 32)+"\nupdate_only=true\nallowed_ip=::/0\n\n"); got != "errno=0\n\n" {
		t.Errorf("update_only: %q", got)
	}
	if got := wg("", "show", name, "peers"); strings.Count(got, "\n") != 2 {
		t.Errorf("after update_only: %q", got)
	}
	if got, want := ask(t, name, "set=1\ncolour=blue\n\n"), fmt.Sprintf("errno=%d\n\n", -int(syscall.EINVAL)); got != want {
		t.Errorf("unknown key: %q", got)
	}
	other := newNamespace(t, "b")
	if err := lab.Connect(lab.Cable{}, lab.Plug{Namespace: ns, Device: "eth7"}, lab.Plug{Namespace: other, Device: "eth0"}); err != nil {
		t.Fatal(err)
	}
	if got := ask(t, name, "set=1\npublic_key="+key(publicB)+"\nendpoint=[fe80::7%eth7]:7\n\n"); got != "errno=0\n\n" {
		t.Errorf("endpoint with a zone: %q", got)
	}
	// The interface keeps its index under another name, and wg, which would end by SIGSEGV at a name it does not know, knows it.
	must(t, ns, "ip", "link", "set", "eth7", "down")
	must(t, ns, "ip", "link", "set", "eth7", "name", "eth8")
	if got := wg("", "show", name, "endpoints"); !strings.HasPrefix(got, publicB+"\t[fe80::7%eth8]:7\n") {
		t.Errorf("endpoint with a zone: %q", got)
	}
	if got := must(t, other, "wg", "show", name, "endpoints"); !strings.HasPrefix(got, publicB+"\t[fe80::7%") {
		t.Errorf("endpoint with a zone, from another namespace: %q", got)
	}
	if got, want := ask(t, name, "set=1\npublic_key="+key(publicB)+"\nendpoint=[fe80::7%eth7]:7\n\n"), fmt.Sprintf("errno=%d\n\n", -int(syscall.EINVAL)); got != want {
		t.Errorf("endpoint with a zone that is no more: %q, want %q", got, want)
	}
}

// TestPortInUse: wg tells what is wrong, so it understands our errors, and the old port stays in use.
func TestPortInUse(t *testing.T) {
	ns, name, wg := newInterface(t)
	const port = 40001
	wg("", "set", name, "listen-port", strconv.Itoa(port))
	if err := ns.SetUp(name); err != nil {
		t.Fatal(err)
	}
	awaitPort(t, ns, port)
	var taken *net.UDPConn
	err := ns.Run(func() (err error) {
		taken, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4zero})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	other := strconv.Itoa(taken.LocalAddr().(*net.UDPAddr).Port)
	out, err := try(ns, nil, "", "wg", "set", name, "listen-port", other)
	if err == nil || !strings.Contains(out, "Address already in use") {
		t.Errorf("a port in use: %v, %q", err, out)
	}
	if got := wg("", "show", name, "listen-port"); got != strconv.Itoa(port)+"\n" {
		t.Errorf("port %q, want %d", got, port)
	}
	awaitPort(t, ns, port)
}

// TestCounts: rx and tx count UDP payload as the kernel does (tools/testing/selftests/wireguard/netns.sh): ten pings after a
// handshake are 148 + 10 * 128 bytes one way, 92 + 10 * 128 the other; an empty packet to confirm the session adds 32.
func TestCounts(t *testing.T) {
	need(t, "wg", "ping")
	path := program(t)
	ends := tunnel(t, [2]string{path, path}, 0)
	ping(t, ends[0].ns, 10, ends[1].inner[0])
	for i, want := range [][2][]string{{{"1372"}, {"1428", "1460"}}, {{"1428", "1460"}, {"1372"}}} {
		fields := strings.Fields(must(t, ends[i].ns, "wg", "show", ends[i].name, "transfer"))
		if len(fields) != 3 || !slices.Contains(want[0], fields[1]) || !slices.Contains(want[1], fields[2]) {
			t.Errorf("end %d: transfer %q, want %q", i, fields, want)
		}
	}
	stamp := strings.Fields(must(t, ends[0].ns, "wg", "show", ends[0].name, "latest-handshakes"))
	if at, err := strconv.ParseInt(stamp[1], 10, 64); err != nil || time.Since(time.Unix(at, 0)).Abs() > time.Minute {
		t.Errorf("latest handshake %q", stamp)
	}
}

// TestPortTakenWhenUp: an interface that comes up while its port is taken binds as soon as it is given another.
func TestPortTakenWhenUp(t *testing.T) {
	ns, name, wg := newInterface(t)
	var taken net.PacketConn
	if err := ns.Run(func() (err error) { taken, err = net.ListenPacket("udp", ":40000"); return err }); err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	wg("", "set", name, "listen-port", "40000")
	if err := ns.SetUp(name); err != nil {
		t.Fatal(err)
	}
	ping(t, ns, 1, netip.MustParseAddr("127.0.0.1")) // some time for the event
	wg("", "set", name, "listen-port", "40001")
	awaitPort(t, ns, 40001)
}

// TestQueuesAndWorkers: a device with several queues, each with sockets of its own on the same port and goroutines that help,
// carries what a plain one does; so does one with the other cipher.
func TestQueuesAndWorkers(t *testing.T) {
	need(t, "wg", "ping")
	path := program(t, "SLUICE_QUEUES=2", "SLUICE_WORKERS=2", "SLUICE_NO_AVX512=1", "SLUICE_FORCE_GSO=1")
	ends := tunnel(t, [2]string{path, path}, 0)
	ping(t, ends[0].ns, 3, ends[1].inner[0])
	for inner := range 2 {
		for range 3 { // each connection may take another queue
			transfer(t, ends[0], ends[1], inner)
			transfer(t, ends[1], ends[0], inner)
		}
	}
}

// transfer sends some megabytes over TCP from one end to the other.
func transfer(t *testing.T, from, to *end, inner int) {
	t.Helper()
	const size = 4 << 20
	data := make([]byte, size)
	mathrand.NewChaCha8([32]byte{1}).Read(data)
	var l net.Listener
	err := to.ns.Run(func() (err error) {
		l, err = net.Listen("tcp", net.JoinHostPort(to.inner[inner].String(), "0"))
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	defer l.Close()
	received := make(chan []byte, 1)
	go func() {
		defer close(received)
		conn, err := l.Accept()
		if err != nil {
			return
		}
		defer conn.Close()
		conn.SetDeadline(time.Now().Add(patient))
		h := sha256.New()
		if n, err := io.Copy(h, conn); err == nil && n == size {
			received <- h.Sum(nil)
		}
	}()
	var conn net.Conn
	err = from.ns.Run(func() (err error) {
		conn, err = net.DialTimeout("tcp", l.Addr().String(), patient)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	conn.SetDeadline(time.Now().Add(patient))
	_, err = conn.Write(data)
	if err = errors.Join(err, conn.Close()); err != nil {
		t.Fatal(err)
	}
	if sum := sha256.Sum256(data); !bytes.Equal(<-received, sum[:]) {
		t.Errorf("%s to %s: the bytes did not arrive as they were", from.inner[inner], to.inner[inner])
	}
}

// TestWGQuick brings a tunnel up and down as an administrator does. It is the default route, so wg-quick sets a fwmark.
func TestWGQuick(t *testing.T) {
	need(t, "wg-quick", "wg", "ping", "ip", "nft", "bash")
	if _, err := os.Stat("/sys/module/wireguard"); err == nil {
		t.Skip("SKIPPED: wg-quick prefers the WireGuard that this machine's kernel has")
	}
	path := program(t)
	ends := newEnds(t, [2]string{path, path})
	var psk crypto.PresharedKey
	ends[1].configure(t, ends[0], psk, -1)
	ends[1].up(t, ends[1].ns)

	name := newName()
	file := filepath.Join(t.TempDir(), name+".conf")
	text := fmt.Sprintf("[Interface]\nAddress = %s/24, %s/64\nPrivateKey = %s\nMTU = 1380\n[Peer]\nPublicKey = %s\nAllowedIPs = 0.0.0.0/0, fd09::/64\nEndpoint = %s\n",
		ends[0].inner[0], ends[0].inner[1], ends[0].private.Encode(), ends[1].private.Public().Encode(),
		netip.AddrPortFrom(ends[1].outer[0], ends[1].port))
	if err := os.WriteFile(file, []byte(text), 0o600); err != nil {
		t.Fatal(err)
	}
	env := []string{"WG_QUICK_USERSPACE_IMPLEMENTATION=sluice-wg", "PATH=" + filepath.Dir(path) + ":" + os.Getenv("PATH")}
	if out, err := try(ends[0].ns, env, "", "wg-quick", "up", file); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	pid := owner(t, name)
	link, err := ends[0].ns.Netlink().LinkByName(name)
	if err != nil || link.Attrs().MTU != 1380 {
		t.Errorf("MTU: %v", err)
	}
	ping(t, ends[0].ns, 3, ends[1].inner[0])
	ping(t, ends[0].ns, 3, ends[1].inner[1])
	if got := must(t, ends[0].ns, "wg", "show", name, "fwmark"); !strings.HasPrefix(got, "0x") {
		t.Errorf("fwmark %q", got)
	}
	if out, err := try(ends[0].ns, env, "", "wg-quick", "down", file); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	if status := exitStatus(t, pid); status != 0 {
		t.Errorf("exit status %v", status)
	}
	gone(t, ends[0].ns, name)
}
