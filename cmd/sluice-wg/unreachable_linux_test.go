package main

import (
	"fmt"
	"net/netip"
	"os"
	"regexp"
	"testing"

	"github.com/sluice-vpn/sluice/bench/lab"
)

// TestErrorsBearTheRoutersAddress: who is told that there is no way hears it from the router (RFC 1812, section 4.3.2.4; RFC
// 4443, section 2.2), from the address that the router uses towards it, also where the router has hidden it behind its own
// (kernel net/ipv4/icmp.c, icmp_ndo_send), and where the interface is in another namespace than the program.
func TestErrorsBearTheRoutersAddress(t *testing.T) {
	need(t, "wg", "ping", "nft")
	path := program(t)
	for _, moved := range []bool{false, true} {
		for _, nat := range []string{"", "snat", "masquerade random"} {
			t.Run(fmt.Sprintf("moved %v, NAT %q", moved, nat), func(t *testing.T) {
				ends := newEnds(t, [2]string{path, path})
				router := ends[0].ns
				if moved {
					router = newNamespace(t, "elsewhere")
					link, err := ends[0].ns.Netlink().LinkByName(ends[0].name)
					if err != nil {
						t.Fatal(err)
					}
					if err := ends[0].ns.Netlink().LinkSetNsFd(link, router.FD()); err != nil {
						t.Fatal(err)
					}
				}
				ends[0].upAlone(t, router)
				host := hostBehind(t, router)
				for i, family := range []string{"ip", "ip6"} {
					if nat != "" {
						to := nat
						if nat == "snat" {
							to = "snat to " + ends[0].inner[i].String()
						}
						mustWith(t, router, fmt.Sprintf("table %s n { chain p { type nat hook postrouting priority 100; oif %s %s; }; }", family, ends[0].name, to), "nft", "-f", "-")
					}
					for range 3 {
						wantUnreachableFrom(t, host, ends[1].inner[i], hostRouter[i])
						wantUnreachableFrom(t, router, ends[1].inner[i], ends[0].inner[i])
					}
				}
			})
		}
	}
}

// upAlone brings the interface up in its namespace with no peer at all: nothing has a way.
func (e *end) upAlone(t *testing.T, ns *lab.Namespace) {
	t.Helper()
	mustWith(t, e.ns, fmt.Sprintf("[Interface]\nPrivateKey = %s\nListenPort = %d\n", e.private.Encode(), e.port), "wg", "setconf", e.name, "/dev/stdin")
	e.up(t, ns)
}

var hostRouter = [2]netip.Addr{netip.MustParseAddr("10.77.0.100"), netip.MustParseAddr("fd77::100")}

// hostBehind makes a host whose default routes lead over the router.
func hostBehind(t *testing.T, router *lab.Namespace) *lab.Namespace {
	t.Helper()
	host := newNamespace(t, "host")
	plug := func(ns *lab.Namespace, device string, addrs ...string) lab.Plug {
		p := lab.Plug{Namespace: ns, Device: device}
		for _, a := range addrs {
			p.Addrs = append(p.Addrs, netip.MustParsePrefix(a))
		}
		return p
	}
	err := lab.Connect(lab.Cable{}, plug(router, "lan", hostRouter[0].String()+"/24", hostRouter[1].String()+"/64"), plug(host, "eth0", "10.77.0.1/24", "fd77::1/64"))
	if err != nil {
		t.Fatal(err)
	}
	for i, all := range []string{"0.0.0.0/0", "::/0"} {
		if err := host.AddRoute(netip.MustParsePrefix(all), "eth0", hostRouter[i]); err != nil {
			t.Fatal(err)
		}
	}
	err = router.Run(func() error {
		for _, path := range []string{"ipv4/conf/all/forwarding", "ipv6/conf/all/forwarding"} {
			if err := os.WriteFile("/proc/sys/net/"+path, []byte("1"), 0); err != nil {
				return err
			}
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return host
}

var fromLine = regexp.MustCompile(`(?m)^From ([0-9a-f.:]+)[ :].*(?:Destination Host Unreachable|Address unreachable)`)

// wantUnreachableFrom pings once and wants to be told by that address that there is no way.
func wantUnreachableFrom(t *testing.T, ns *lab.Namespace, to, from netip.Addr) {
	t.Helper()
	out, err := try(ns, nil, "", "ping", "-n", "-c", "1", "-W", "4", to.String())
	got := fromLine.FindStringSubmatch(out)
	if err == nil || got == nil || got[1] != from.String() {
		t.Errorf("ping %v: %v, want an answer from %v:\n%s", to, err, from, out)
	}
}
