package ice

import (
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
)

// ownNamespace puts the test into an empty network namespace. Its thread ends with it, and the namespace with the thread.
func ownNamespace(t *testing.T) {
	t.Helper()
	if os.Geteuid() != 0 {
		t.Skip("SKIPPED: making a network namespace needs root")
	}
	runtime.LockOSThread() // and never unlocked
	if _, err := netns.New(); err != nil {
		t.Skipf("SKIPPED: no network namespace: %v", err)
	}
}

// TestWatcherNetlink: a default route that comes in a namespace of our own is told.
func TestWatcherNetlink(t *testing.T) {
	ownNamespace(t)
	w, err := NewWatcher(func() []netip.Addr { return nil }) // net.Interfaces is of the thread
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	lo, err := netlink.LinkByName("lo")
	if err != nil {
		t.Fatal(err)
	}
	if err := netlink.LinkSetUp(lo); err != nil {
		t.Fatal(err)
	}
	select {
	case <-w.Changes():
		t.Error("loopback is no change")
	case <-time.After(2 * settleTime):
	}
	everywhere := &net.IPNet{IP: net.IPv4zero, Mask: net.CIDRMask(0, 32)}
	if err := netlink.RouteAdd(&netlink.Route{LinkIndex: lo.Attrs().Index, Dst: everywhere, Scope: netlink.SCOPE_LINK}); err != nil {
		t.Fatal(err)
	}
	select {
	case <-w.Changes():
	case <-time.After(20 * time.Second):
		t.Error("a default route was not told")
	}
}
