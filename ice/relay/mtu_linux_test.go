package relay

import (
	"net/netip"
	"os"
	"os/exec"
	"strings"
	"syscall"
	"testing"

	"github.com/vishvananda/netlink"
)

// TestSmallMTU: what does not fit the MTU is fragmented, in a run as by itself.
func TestSmallMTU(t *testing.T) {
	const variable = "SLUICE_TEST_MTU"
	if os.Getenv(variable) == "" {
		cmd := exec.Command(os.Args[0], "-test.run=^TestSmallMTU$", "-test.v")
		cmd.Env = append(os.Environ(), variable+"=1")
		cmd.SysProcAttr = &syscall.SysProcAttr{
			Cloneflags:  syscall.CLONE_NEWUSER | syscall.CLONE_NEWNET,
			UidMappings: []syscall.SysProcIDMap{{HostID: os.Getuid(), Size: 1}}, GidMappings: []syscall.SysProcIDMap{{HostID: os.Getgid(), Size: 1}},
		}
		out, err := cmd.CombinedOutput()
		if _, ran := err.(*exec.ExitError); err != nil && !ran || strings.Contains(string(out), "--- SKIP") {
			t.Skipf("SKIPPED: no network of our own (%v)", err)
		}
		if err != nil {
			t.Errorf("%v\n%s", err, out)
		}
		return
	}
	link, err := netlink.LinkByName("lo")
	if err == nil {
		err = netlink.LinkSetMTU(link, 1280)
	}
	if err == nil {
		err = netlink.LinkSetUp(link)
	}
	if err != nil {
		t.Skip(err)
	}
	offloads := probeOffloads()
	if !offloads.segment {
		t.Skip("no UDP_SEGMENT here")
	}
	sock, err := openSocket(netip.AddrPortFrom(loopback4, 0), socketConfig{offloads: offloads})
	if err != nil {
		t.Fatal(err)
	}
	defer sock.conn.Close()
	conn, at := peer(t, loopback4)
	for _, size := range []int{1400, 1200} {
		if failed := sock.send(make([]byte, 3*size), size, at, netip.Addr{}, make([]byte, 128)); failed != 0 {
			t.Errorf("%d of 3 datagrams of %d bytes were not sent", failed, size)
		}
		for i := range 3 {
			if b, _ := readPeer(conn, patience); len(b) != size {
				t.Errorf("datagram %d of %d bytes: %d came", i, size, len(b))
			}
		}
	}
	if !sock.segment.Load() {
		t.Error("runs were given up for good")
	}
}
