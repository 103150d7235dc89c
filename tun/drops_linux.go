//go:build linux && !sluice_portable

package tun

import (
	"encoding/binary"
	"syscall"

	"golang.org/x/sys/unix"
)

// dropCount follows the interface's own count of what it dropped. Owned by the monitor.
type dropCount struct {
	begun bool
	first linkDrops // a persistent device has a past
}

// linkDrops are tx_dropped and rx_dropped of struct rtnl_link_stats64 (include/uapi/linux/if_link.h). What the kernel sends, we
// read.
type linkDrops struct{ tx, rx uint64 }

// Byte offsets in struct rtnl_link_stats64.
const (
	statsRxDropped = 6 * 8
	statsTxDropped = 7 * 8
)

// countDrops asks for the interface's statistics. The answer is there when the request has been sent (netlink_unicast to the
// kernel is a call); if the socket has no room for it, the next second's will do.
func (m *monitor) countDrops(name string) {
	if unix.Sendto(m.netlink, linkRequest(name), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}) != nil {
		return
	}
	m.drain(func(messages []byte) {
		if drops, ok := parseDrops(messages, name); ok {
			m.tellDrops(drops)
		}
	})
}

func (m *monitor) tellDrops(now linkDrops) {
	d := &m.drops
	if !d.begun {
		d.begun, d.first = true, now
	}
	stats := &m.device.queues[0].stats
	stats.ReadDropped.Store(now.tx - d.first.tx)
	stats.WriteDropped.Store(now.rx - d.first.rx)
}

// linkRequest is RTM_GETLINK for the interface of that name (rtnetlink(7)).
func linkRequest(name string) []byte {
	attribute := unix.SizeofRtAttr + len(name) + 1
	b := make([]byte, unix.SizeofNlMsghdr+unix.SizeofIfInfomsg+(attribute+3)&^3)
	native := binary.NativeEndian
	native.PutUint32(b[0:], uint32(len(b)))
	native.PutUint16(b[4:], unix.RTM_GETLINK)
	native.PutUint16(b[6:], unix.NLM_F_REQUEST)
	a := b[unix.SizeofNlMsghdr+unix.SizeofIfInfomsg:]
	native.PutUint16(a[0:], uint16(attribute))
	native.PutUint16(a[2:], unix.IFLA_IFNAME)
	copy(a[unix.SizeofRtAttr:], name)
	return b
}

// parseDrops finds what messages say of the interface of that name: the answer to a request, or news, which are as good.
func parseDrops(messages []byte, name string) (d linkDrops, ok bool) {
	list, err := syscall.ParseNetlinkMessage(messages)
	if err != nil {
		return d, false
	}
	for i := range list {
		if list[i].Header.Type != unix.RTM_NEWLINK {
			continue
		}
		if of, drops, found := parseLink(&list[i]); found && of == name {
			d, ok = drops, true
		}
	}
	return d, ok
}

func parseLink(m *syscall.NetlinkMessage) (name string, d linkDrops, ok bool) {
	attributes, err := syscall.ParseNetlinkRouteAttr(m)
	if err != nil {
		return "", d, false
	}
	for _, a := range attributes {
		switch {
		case a.Attr.Type == unix.IFLA_IFNAME:
			name = unix.ByteSliceToString(a.Value)
		case a.Attr.Type == unix.IFLA_STATS64 && len(a.Value) >= statsTxDropped+8:
			d.rx = binary.NativeEndian.Uint64(a.Value[statsRxDropped:])
			d.tx = binary.NativeEndian.Uint64(a.Value[statsTxDropped:])
			ok = true
		}
	}
	return name, d, ok
}
