//go:build linux && !sluice_portable

package tun

import (
	"encoding/binary"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// Attributes of RTM_SETLINK (include/uapi/linux/if_link.h, ip.h).
const (
	attrAFSpec       = unix.IFLA_AF_SPEC
	attrInetConf     = 1 // IFLA_INET_CONF
	confSendRedirect = 6 // IPV4_DEVCONF_SEND_REDIRECTS
	attrAddrGenMode  = 8 // IFLA_INET6_ADDR_GEN_MODE
	addrGenModeNone  = 1 // IN6_ADDR_GEN_MODE_NONE

	ifaddrmsgLen = unix.SizeofIfAddrmsg // struct ifaddrmsg: family, prefix length, flags, scope, index
)

// quieten keeps the host from sending into the tunnel, or because of it, what nobody asked for, as the kernel's WireGuard does
// (device.c, wg_open): no link-local address, whose router solicitations would begin handshakes, and no ICMP redirects to who is
// sent from one peer to another. The settings belong to the device's namespace and are made anew there. What cannot be set (no
// IPv6, /proc/sys read-only) stays as it is: the tunnel works all the same.
func quieten(fd int) {
	_ = inDeviceNamespace(fd, func() error {
		index := deviceIndex(fd)
		if index == 0 {
			return nil // it is on its way elsewhere, and we shall hear of it
		}
		netlink, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.NETLINK_ROUTE)
		if err != nil {
			return err
		}
		defer unix.Close(netlink)
		to := &unix.SockaddrNetlink{Family: unix.AF_NETLINK}
		for _, request := range quietRequests(uint32(index)) {
			_ = unix.Sendto(netlink, request, 0, to)
		}
		for _, request := range linkLocalRemovals(uint32(index)) { // it may have come up as it was moved
			_ = unix.Sendto(netlink, request, 0, to)
		}
		// Redirects are sent if the device or "all" says so (IN_DEV_TX_REDIRECTS).
		return os.WriteFile("/proc/sys/net/ipv4/conf/all/send_redirects", []byte("0"), 0)
	})
}

// quietRequests are the requests for a device, one for each family: where the kernel lacks one the other still counts.
func quietRequests(index uint32) [2][]byte {
	redirects := appendAttr(nil, confSendRedirect, binary.NativeEndian.AppendUint32(nil, 0))
	set := func(family uint16, settings []byte) []byte {
		body := make([]byte, unix.SizeofIfInfomsg)
		binary.NativeEndian.PutUint32(body[4:], index)
		return appendRequest(nil, unix.RTM_SETLINK, appendAttr(body, attrAFSpec, appendAttr(nil, family, settings)))
	}
	return [2][]byte{
		set(unix.AF_INET, appendAttr(nil, attrInetConf, redirects)),
		set(unix.AF_INET6, appendAttr(nil, attrAddrGenMode, []byte{addrGenModeNone})),
	}
}

// linkLocalRemovals are the requests that remove the link-local addresses which the kernel has made for the device (net/ipv6/addrconf.c,
// addrconf_addr_gen), not those that somebody gave it. The thread is in the device's namespace.
func linkLocalRemovals(index uint32) (requests [][]byte) {
	table, err := syscall.NetlinkRIB(unix.RTM_GETADDR, unix.AF_INET6)
	if err != nil {
		return nil
	}
	messages, err := syscall.ParseNetlinkMessage(table)
	if err != nil {
		return nil
	}
	for _, m := range messages {
		b := m.Data
		if m.Header.Type != unix.RTM_NEWADDR || len(b) < ifaddrmsgLen || b[3] != unix.RT_SCOPE_LINK || binary.NativeEndian.Uint32(b[4:]) != index {
			continue
		}
		flags, addr := findAttr(b[ifaddrmsgLen:], unix.IFA_FLAGS), findAttr(b[ifaddrmsgLen:], unix.IFA_ADDRESS)
		if len(flags) == 4 && binary.NativeEndian.Uint32(flags)&unix.IFA_F_STABLE_PRIVACY != 0 {
			requests = append(requests, appendRequest(nil, unix.RTM_DELADDR, appendAttr(b[:ifaddrmsgLen:ifaddrmsgLen], unix.IFA_ADDRESS, addr)))
		}
	}
	return requests
}
