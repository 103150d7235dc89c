package main

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/bench/lab"
)

// TestQuietInterface: an idle interface begins no handshake, whatever leads into it, and its host redirects nobody who is sent from
// one peer to another (kernel device.c, wg_open); also where the interface was moved to another namespace.
func TestQuietInterface(t *testing.T) {
	need(t, "wg", "ip")
	path := program(t)
	for _, way := range []string{"at home", "moved", "moved and up at once"} {
		t.Run(way, func(t *testing.T) {
			ends := newEnds(t, [2]string{path, path})
			a, ns := ends[0], ends[0].ns
			if way != "at home" {
				ns = newNamespace(t, "elsewhere")
				link, err := a.ns.Netlink().LinkByName(a.name)
				if err != nil {
					t.Fatal(err)
				}
				if way == "moved and up at once" {
					must(t, a.ns, "ip", "link", "set", "dev", a.name, "up", "netns", fmt.Sprintf("/proc/%d/fd/%d", os.Getpid(), ns.FD()))
				} else if err := a.ns.Netlink().LinkSetNsFd(link, ns.FD()); err != nil {
					t.Fatal(err)
				}
				awaitQuiet(t, ns, a.name)
			}
			mustWith(t, a.ns, fmt.Sprintf("[Interface]\nPrivateKey = %s\nListenPort = %d\n[Peer]\nPublicKey = %s\nEndpoint = %s:9\nAllowedIPs = 0.0.0.0/0, ::/0\n",
				a.private.Encode(), a.port, ends[1].private.Public().Encode(), ends[1].outer[0]), "wg", "setconf", a.name, "/dev/stdin")
			a.up(t, ns)
			for _, conf := range []string{"all", a.name} {
				if got := setting(t, ns, "ipv4/conf/"+conf+"/send_redirects"); got != "0" {
					t.Errorf("send_redirects of %s is %q, want 0", conf, got)
				}
			}
			// Wait for the solicitation, which the kernel sends when the link-local address is there.
			for end := time.Now().Add(patient); ; time.Sleep(5 * time.Millisecond) {
				link, err := ns.Netlink().LinkByName(a.name)
				if err != nil {
					t.Fatal(err)
				}
				if link.Attrs().Statistics.TxPackets > 0 {
					break
				}
				if time.Now().After(end) {
					t.Fatal("the kernel has sent no router solicitation, so this says nothing")
				}
			}
			time.Sleep(time.Second) // for what must not happen
			if got := must(t, a.ns, "wg", "show", a.name, "transfer"); !strings.HasSuffix(got, "\t0\t0\n") {
				t.Errorf("an idle interface has sent: %q", got)
			}
		})
	}
}

// setting reads a setting of the namespace's network.
func setting(t *testing.T, ns *lab.Namespace, path string) string {
	t.Helper()
	var value []byte
	err := ns.Run(func() (err error) {
		value, err = os.ReadFile("/proc/sys/net/" + path)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	return strings.TrimSpace(string(value))
}

// awaitQuiet waits until the program has followed its interface: it is told of the move, not asked.
func awaitQuiet(t *testing.T, ns *lab.Namespace, name string) {
	t.Helper()
	for end := time.Now().Add(patient); setting(t, ns, "ipv4/conf/"+name+"/send_redirects") != "0"; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%s was moved, and its settings were not made anew", name)
		}
	}
}
