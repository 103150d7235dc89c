package acceptance

import (
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"

	"github.com/sluice-vpn/sluice/bench/lab"
)

// tshark reads fields of a capture, a line a packet.
func tshark(t *testing.T, file string, fields ...string) string {
	t.Helper()
	args := []string{"-r", file, "-T", "fields"}
	for _, f := range fields {
		args = append(args, "-e", f)
	}
	cmd := exec.Command("tshark", args...)
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
	var errs strings.Builder
	cmd.Stderr = &errs
	out, err := cmd.Output()
	if err != nil {
		t.Fatalf("tshark: %v: %s", err, errs.String())
	}
	return string(out)
}

// routeInto leads a network into a node's tunnel that no peer has.
func (m *member) routeInto(network, iface string) {
	m.t.Helper()
	handle := m.site.Node.Netlink()
	link, err := handle.LinkByName(iface)
	if err == nil {
		p := netip.MustParsePrefix(network)
		dst, _ := netlink.ParseIPNet(p.String())
		err = handle.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: dst})
	}
	if err != nil {
		m.t.Fatal(err)
	}
}

// A capture has the packets of the tunnel and the datagrams that carry them, says whose they are and which were dropped and why, and
// leaves the tunnel as it is; also where its disk is full.
func TestCaptureFile(t *testing.T) {
	t.Parallel()
	if _, err := exec.LookPath("tshark"); err != nil {
		t.Skip("SKIPPED: tshark is not installed")
	}
	v := newVPN(t)
	g, c := v.pair(lab.Cone, lab.Cone)
	c.awaitConnection(patience, "gate", "connected", isUp(""))
	c.routeInto("10.77.0.0/16", "sluice0")
	defer knock(t, c.site.Node, g.overlay())()
	defer knock(t, c.site.Node, netip.MustParseAddr("10.77.0.1"))()

	file := filepath.Join(v.dir, "a.pcapng")
	p := v.start(c.site.Node, "capture", nil, "capture", "-socket", c.socket, "-w", file, "-outer")
	l := c.awaitLog("packets are being captured", 1)
	if uid, pid := l["uid"], l["pid"]; uid != float64(os.Getuid()) || pid != float64(p.cmd.Process.Pid) {
		t.Errorf("the log says that user %v captures by process %v, want %d and %d", uid, pid, os.Getuid(), p.cmd.Process.Pid)
	}
	if _, err := v.run(c.site.Node, "capture", "-socket", c.socket, "-w", os.DevNull); err == nil || !strings.Contains(err.Error(), "captured already") {
		t.Errorf("a second capture: %v", err)
	}
	text := ""
	for _, want := range []string{"out to gate", "in from gate", "out to no peer, dropped: no_route"} {
		await(t, patience, want+" is in the capture", func() bool {
			text = tshark(t, file, "frame.comment")
			return strings.Contains(text, want+"\n")
		})
	}
	p.end() // SIGTERM
	if l := c.awaitLog("the capture has ended", 1); l["packets"].(float64) < 3 || l["dropped"] != float64(0) {
		t.Errorf("the end is logged as %v", l)
	}
	said, err := os.ReadFile(p.log)
	if err != nil || !strings.Contains(string(said), " packets captured\n") {
		t.Errorf("the program says %q, %v", said, err)
	}
	if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("the file: %v, %v", st, err)
	}
	if got := tshark(t, file, "frame.interface_name", "wg.type"); !strings.Contains(got, "sluice0\t") || !strings.Contains(got, "sluice0-outer\t4\n") {
		t.Errorf("no transport data among\n%s", got)
	}

	// A count, a filter and a peer.
	if _, err := v.run(c.site.Node, "capture", "-socket", c.socket, "-w", file, "-count", "3", "-filter", "udp dst port 9 and net 10.77.0.0/16"); err != nil {
		t.Error(err)
	}
	if got, want := tshark(t, file, "ip.dst", "frame.comment"), strings.Repeat("10.77.0.1\tout to no peer, dropped: no_route\n", 3); got != want {
		t.Errorf("filtered:\n%s\nwant\n%s", got, want)
	}
	if _, err := v.run(c.site.Node, "capture", "-socket", c.socket, "-w", file, "-duration", "1s", "-peer", "gate"); err != nil {
		t.Error(err)
	}
	if got := tshark(t, file, "frame.comment"); got == "" || strings.Contains(got, "no peer") {
		t.Errorf("of gate only:\n%s", got)
	}
	if _, err := v.run(c.site.Node, "capture", "-socket", c.socket, "-w", file, "-peer", "gat"); err == nil || !strings.Contains(err.Error(), "there is no peer gat; there is gate") {
		t.Errorf("a peer that is not there: %v", err)
	}

	// A disk of 128 KiB.
	disk := filepath.Join(v.dir, "disk")
	if err := os.Mkdir(disk, 0o700); err != nil {
		t.Fatal(err)
	}
	if err := syscall.Mount("none", disk, "tmpfs", 0, "size=128k"); err != nil {
		t.Fatal(err)
	}
	defer syscall.Unmount(disk, syscall.MNT_DETACH)
	stream := openStream(t, c.site.Node, g.site.Node, g.overlay())
	file = filepath.Join(disk, "b.pcapng")
	_, err = v.run(c.site.Node, "capture", "-socket", c.socket, "-w", file, "-outer")
	if err == nil || !strings.Contains(err.Error(), "no space left on device; what is in it can be read") {
		t.Errorf("on a full disk: %v", err)
	}
	if got := tshark(t, file, "frame.comment"); !strings.Contains(got, "out to gate") {
		t.Errorf("of a full disk tshark reads\n%s", got)
	}
	stream.awaitProgress(patience, "after a disk was full")
	c.awaitLog("the capture has ended", 4)
}
