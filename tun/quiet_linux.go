//go:build linux && !sluice_portable

package tun

import (
	"encoding/binary"
	"os"

	"golang.org/x/sys/unix"
)

// Attributes of RTM_SETLINK (include/uapi/linux/if_link.h, ip.h).
const (
	attrAFSpec       = unix.IFLA_AF_SPEC
	attrInetConf     = 1 // IFLA_INET_CONF
	confSendRedirect = 6 // IPV4_DEVCONF_SEND_REDIRECTS
)

// quieten keeps the host from sending ICMP redirects to who is sent from one peer to another, as the kernel's WireGuard does
// (device.c, wg_open). The settings belong to the device's namespace and are made anew there. What cannot be set (/proc/sys
// read-only) stays as it is: the tunnel works all the same.
//
// The kernel's also gets no link-local address, so that no router solicitations begin handshakes. A TUN device keeps its own: the
// test that wireguard-go brings along counts on its packets; package pipeline sees to it that they begin nothing.
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
		_ = unix.Sendto(netlink, noRedirects(uint32(index)), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK})
		// Redirects are sent if the device or "all" says so (IN_DEV_TX_REDIRECTS).
		return os.WriteFile("/proc/sys/net/ipv4/conf/all/send_redirects", []byte("0"), 0)
	})
}

// noRedirects is the request for a device.
func noRedirects(index uint32) []byte {
	body := make([]byte, unix.SizeofIfInfomsg)
	binary.NativeEndian.PutUint32(body[4:], index)
	setting := appendAttr(nil, confSendRedirect, binary.NativeEndian.AppendUint32(nil, 0))
	family := appendAttr(nil, unix.AF_INET, appendAttr(nil, attrInetConf, setting))
	return appendRequest(nil, unix.RTM_SETLINK, appendAttr(body, attrAFSpec, family))
}
