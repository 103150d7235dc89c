//go:build linux && !sluice_portable

package tun

import (
	"fmt"
	"runtime"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/tun/host"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// shortLived returns the only hold on a new network namespace.
func shortLived(t *testing.T) int {
	t.Helper()
	home := namespaceOf(t)
	runtime.LockOSThread()
	must(t, unix.Unshare(unix.CLONE_NEWNET))
	namespace, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	must(t, unix.Setns(home, unix.CLONE_NEWNET)) // if it fails the thread stays locked and ends with the test
	runtime.UnlockOSThread()
	must(t, err)
	return namespace
}

// A network namespace that is deleted takes the device and everything else in it along: nothing of us keeps it, wherever the device
// has been.
func TestLinuxNamespaceDeleted(t *testing.T) {
	for name, stops := range map[string]int{"moved": 1, "moved on": 2, "moved far": 3} {
		for _, up := range []bool{false, true} {
			t.Run(fmt.Sprintf("%s, up %v", name, up), func(t *testing.T) {
				inNewNamespace(t, func() {
					d := mustOpen(t, Options{Name: "moved0", MTU: 1300, MaxMTU: 1500})
					expectDeleted(t, d, stops, up)
				})
			})
		}
	}
}

func expectDeleted(t *testing.T, d *linuxDevice, stops int, up bool) {
	t.Helper()
	namespaces := make([]int, stops)
	for i := range namespaces {
		namespaces[i] = shortLived(t)
		// Its end is seen by the end of a cable into it.
		must(t, netlink.LinkAdd(&netlink.Veth{LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprintf("cable%d", i)},
			PeerName: "eth0", PeerNamespace: netlink.NsFd(namespaces[i])}))
	}
	move := func(to int) {
		link, err := netlink.LinkByName("moved0")
		must(t, err)
		must(t, netlink.LinkSetNsFd(link, to))
	}
	move(namespaces[0])
	for i, namespace := range namespaces {
		inNamespace(t, namespace, func() {
			must(t, host.SetUp("moved0"))
			expect(t, d, EventUp)
			must(t, host.SetMTU("moved0", 1400+i))
			expect(t, d, EventMTU)
			must(t, host.SetMTU("moved0", 1600+i))
			expect(t, d, EventMTUClamped)
			expect(t, d, EventMTU)
			if !up || i < stops-1 {
				must(t, host.SetDown("moved0"))
				expect(t, d, EventDown)
			}
			if i < stops-1 {
				move(namespaces[i+1])
			}
		})
	}
	for i, namespace := range namespaces {
		must(t, unix.Close(namespace))
		cable := fmt.Sprintf("cable%d", i)
		for end := time.Now().Add(10 * time.Second); ; time.Sleep(10 * time.Millisecond) {
			if _, err := netlink.LinkByName(cable); err != nil {
				break
			}
			if time.Now().After(end) {
				t.Fatalf("namespace %d of %d is kept alive", i+1, stops)
			}
		}
	}
	expect(t, d, EventGone)
	must(t, d.Close())
}

// A device that comes home is followed there.
func TestLinuxMovedBack(t *testing.T) {
	away := shortLived(t)
	t.Cleanup(func() { unix.Close(away) })
	inNewNamespace(t, func() {
		d := mustOpen(t, Options{Name: "moved0", MTU: 1300})
		home := namespaceOf(t)
		link, err := netlink.LinkByName("moved0")
		must(t, err)
		must(t, netlink.LinkSetNsFd(link, away))
		inNamespace(t, away, func() {
			must(t, host.SetUp("moved0"))
			expect(t, d, EventUp)
			link, err := netlink.LinkByName("moved0")
			must(t, err)
			must(t, netlink.LinkSetNsFd(link, home))
			expect(t, d, EventDown)
		})
		must(t, host.SetUp("moved0"))
		expect(t, d, EventUp)
		must(t, host.SetMTU("moved0", 1400))
		expect(t, d, EventMTU)
	})
}
