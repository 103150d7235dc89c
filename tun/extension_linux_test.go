//go:build linux && !sluice_portable

package tun

import (
	"fmt"
	"net"
	"net/netip"
	"os"
	"syscall"
	"testing"

	"github.com/sluice-vpn/sluice/tun/host"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// farther are addresses of the second namespace's loopback, which the first sends to by way of those of the device.
var farther = [2]netip.Prefix{netip.MustParsePrefix("10.66.0.2/32"), netip.MustParsePrefix("fd66::2/128")}

// newRoutedJoint is a joint whose namespaces accept source routes and segment routing.
func newRoutedJoint(t *testing.T) *joint {
	t.Helper()
	j := newJoint(t)
	for i, namespace := range j.namespaces {
		inNamespace(t, namespace, func() {
			must(t, host.SetUp("lo"))
			for _, name := range []string{"all", "default", "lo", j.devices[i].Name()} {
				for key, value := range map[string]string{
					"ipv4/conf/%s/accept_source_route": "1", "ipv4/conf/%s/rp_filter": "0",
					"ipv6/conf/%s/accept_source_route": "1", "ipv6/conf/%s/seg6_enabled": "1",
				} {
					if err := os.WriteFile("/proc/sys/net/"+fmt.Sprintf(key, name), []byte(value), 0); err != nil {
						t.Skipf("SKIPPED: this kernel has no segment routing, or /proc/sys is read-only: %v", err)
					}
				}
			}
			link, err := netlink.LinkByName(j.devices[i].Name())
			must(t, err)
			for _, prefix := range farther {
				if i == 1 {
					must(t, host.AddAddress("lo", prefix))
					continue
				}
				must(t, netlink.RouteAdd(&netlink.Route{LinkIndex: link.Attrs().Index, Dst: &net.IPNet{
					IP: prefix.Addr().AsSlice(), Mask: net.CIDRMask(prefix.Bits(), prefix.Bits())}}))
			}
		})
	}
	return j
}

// srh is a segment routing header (RFC 8754, section 2) by way of one address; the kernel puts the last one in.
func srh(by string) string {
	via := netip.MustParseAddr(by).As16()
	return string([]byte{0, 4, 4, 1, 1, 0, 0, 0}) + string(make([]byte, 16)) + string(via[:])
}

// TCP with headers between IP and TCP leaves the kernel in superpackets, and arrives; so do the datagrams of a UDP_SEGMENT send.
func TestLinuxExtensions(t *testing.T) {
	const padded = "\x00\x00\x01\x04\x00\x00\x00\x00" // 8 bytes, all padding
	for _, c := range []struct {
		name          string
		six           bool
		level, option int
		value         string
	}{
		{"IPv4 options", false, unix.IPPROTO_IP, unix.IP_OPTIONS, "\x01\x01\x01\x00"},
		{"IPv4 source route", false, unix.IPPROTO_IP, unix.IP_OPTIONS, "\x83\x07\x04\x0a\x09\x00\x02\x00"},
		{"hop-by-hop options", true, unix.IPPROTO_IPV6, unix.IPV6_HOPOPTS, padded},
		{"destination options", true, unix.IPPROTO_IPV6, unix.IPV6_DSTOPTS, padded},
		{"routing header", true, unix.IPPROTO_IPV6, unix.IPV6_RTHDR, srh("fd09::2")},
	} {
		to := farther[0].Addr()
		if c.six {
			to = farther[1].Addr()
		}
		dialer := net.Dialer{Control: func(_, _ string, raw syscall.RawConn) error {
			var err error
			raw.Control(func(fd uintptr) { err = unix.SetsockoptString(int(fd), c.level, c.option, c.value) })
			return err
		}}
		t.Run(c.name+", TCP", func(t *testing.T) {
			j := newRoutedJoint(t)
			j.transfer(t, to.String(), dialer)
			j.checkRead(t)
		})
		if c.name == "IPv4 source route" {
			continue // Linux sums UDP's pseudo-header with the first hop (udp_sendmsg), and refuses that itself
		}
		t.Run(c.name+", UDP", func(t *testing.T) {
			j := newRoutedJoint(t)
			j.datagrams(t, to.String(), dialer)
			j.checkDrops(t) // Linux 6.12 and newer cut by themselves what has IPv6 extension headers (__udp_gso_segment)
		})
	}
}

// A route inserts the routing header where no socket asked for one (SRv6, RFC 8754, in its inline form).
func TestLinuxSegmentRouting(t *testing.T) {
	j := newRoutedJoint(t)
	inNamespace(t, j.namespaces[0], func() {
		link, err := netlink.LinkByName(j.devices[0].Name())
		must(t, err)
		to := farther[1].Addr().AsSlice()
		must(t, netlink.RouteReplace(&netlink.Route{
			LinkIndex: link.Attrs().Index, MTU: 1300, Dst: &net.IPNet{IP: to, Mask: net.CIDRMask(128, 128)},
			// The first segment is the last one, which the kernel fills in.
			Encap: &netlink.SEG6Encap{Mode: 0, Segments: []net.IP{net.IPv6zero, net.ParseIP("fd09::2")}},
		}))
	})
	j.transfer(t, farther[1].Addr().String(), net.Dialer{})
	j.checkRead(t)
}
