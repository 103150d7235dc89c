//go:build linux && !sluice_portable

package tun

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// This file asks for an interface's state with RTM_GETLINK (rtnetlink(7)), from the network namespace where the program has
// begun: an interface elsewhere is named together with its namespace's ID (IFLA_TARGET_NETNSID). A socket over there would keep a
// deleted namespace alive, with all that is in it.

// Of include/uapi/linux/if_link.h and net_namespace.h.
const (
	attrTargetNamespace = unix.IFLA_TARGET_NETNSID
	attrNamespaceID     = 1 // NETNSA_NSID
	attrNamespaceFD     = 3 // NETNSA_FD
	noNamespaceID       = -1

	statsRxDropped = 6 * 8 // byte offsets in struct rtnl_link_stats64
	statsTxDropped = 7 * 8
)

// link is what the kernel says of an interface.
type link struct {
	up    bool
	mtu   int // bytes
	drops linkDrops
}

// linkDrops are tx_dropped and rx_dropped of struct rtnl_link_stats64. What the kernel sends, we read.
type linkDrops struct{ tx, rx uint64 }

// namespaceID names a network namespace to the one where we ask. Home is not named.
type namespaceID struct {
	away bool
	id   int32
}

// routeSocket is a netlink socket for questions. Owned by one goroutine.
type routeSocket struct{ fd int }

// openRouteSocket opens it in the calling thread's namespace; groups are those that it listens to (RTMGRP_LINK).
func openRouteSocket(groups uint32) (routeSocket, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return routeSocket{-1}, err
	}
	if err = unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return routeSocket{-1}, err
	}
	return routeSocket{fd}, nil
}

func (s routeSocket) close() { unix.Close(s.fd) }

// listenToAll has the socket hear of all namespaces that have an ID in its own, or no longer, where that is permitted.
func (s routeSocket) listenToAll(on bool) {
	value := 0
	if on {
		value = 1
	}
	_ = unix.SetsockoptInt(s.fd, unix.SOL_NETLINK, unix.NETLINK_LISTEN_ALL_NSID, value)
}

// drain drops what waits to be read.
func (s routeSocket) drain() {
	var buf [256]byte // the rest of a longer message goes with its beginning
	for {
		// ENOBUFS says that messages were lost, and clears the condition.
		if _, err := unix.Read(s.fd, buf[:]); err != nil && err != unix.ENOBUFS {
			return
		}
	}
}

// ask sends a request and returns the body of the one message that answers it. The answer is there when the request has been sent
// (netlink_unicast to the kernel is a call). An error number is returned as it is.
func (s routeSocket) ask(kind uint16, body []byte) ([]byte, error) {
	s.drain() // so that nothing of before can be taken for the answer
	if err := unix.Sendto(s.fd, appendRequest(nil, kind, body), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return nil, err
	}
	buf := make([]byte, 8192)
	n, err := unix.Read(s.fd, buf)
	if err != nil {
		return nil, err
	}
	return parseAnswer(buf[:n])
}

// parseAnswer returns the body of the first of some messages.
func parseAnswer(b []byte) ([]byte, error) {
	if len(b) < netlinkHeaderLen {
		return nil, unix.EBADMSG
	}
	n := int(binary.NativeEndian.Uint32(b))
	if n < netlinkHeaderLen || n > len(b) {
		return nil, unix.EBADMSG
	}
	body := b[netlinkHeaderLen:n]
	if binary.NativeEndian.Uint16(b[4:]) != unix.NLMSG_ERROR {
		return body, nil
	}
	if len(body) < 4 {
		return nil, unix.EBADMSG
	}
	return nil, unix.Errno(-int32(binary.NativeEndian.Uint32(body)))
}

// link asks for the interface of that name.
func (s routeSocket) link(name string, at namespaceID) (link, error) {
	body, err := s.ask(unix.RTM_GETLINK, appendLinkName(nil, name, at))
	if err != nil {
		return link{}, err
	}
	l, ok := parseLink(body)
	if !ok {
		return link{}, unix.EBADMSG
	}
	return l, nil
}

// namespaceID returns the ID by which the socket's namespace knows that of descriptor namespace. If it has none, one is given: the
// kernel does so itself only for a move straight from here (__dev_change_net_namespace). It goes with the namespace.
func (s routeSocket) namespaceID(namespace int) (int32, error) {
	of := appendAttr(make([]byte, 4), attrNamespaceFD, binary.NativeEndian.AppendUint32(nil, uint32(namespace))) // struct rtgenmsg
	id, err := s.askNamespaceID(of)
	if err != nil || id != noNamespaceID {
		return id, err
	}
	anyID := int32(noNamespaceID)
	create := appendAttr(of, attrNamespaceID, binary.NativeEndian.AppendUint32(nil, uint32(anyID)))
	if err := unix.Sendto(s.fd, appendRequest(nil, unix.RTM_NEWNSID, create), 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return noNamespaceID, err
	}
	// A refusal is drained by the next question, which finds no ID then.
	if id, err = s.askNamespaceID(of); err == nil && id == noNamespaceID {
		err = unix.EPERM
	}
	return id, err
}

func (s routeSocket) askNamespaceID(of []byte) (int32, error) {
	body, err := s.ask(unix.RTM_GETNSID, of)
	if err != nil {
		return noNamespaceID, err
	}
	id := findAttr(body[min(len(body), 4):], attrNamespaceID)
	if len(id) < 4 {
		return noNamespaceID, unix.EBADMSG
	}
	return int32(binary.NativeEndian.Uint32(id)), nil
}

// appendLinkName appends struct ifinfomsg and attributes that name an interface.
func appendLinkName(b []byte, name string, at namespaceID) []byte {
	b = append(b, make([]byte, unix.SizeofIfInfomsg)...)
	b = appendAttr(b, unix.IFLA_IFNAME, append([]byte(name), 0))
	if at.away {
		b = appendAttr(b, attrTargetNamespace, binary.NativeEndian.AppendUint32(nil, uint32(at.id)))
	}
	return b
}

// parseLink reads the body of RTM_NEWLINK.
func parseLink(body []byte) (l link, ok bool) {
	if len(body) < unix.SizeofIfInfomsg {
		return l, false
	}
	l.up = binary.NativeEndian.Uint32(body[8:])&unix.IFF_UP != 0
	attributes := body[unix.SizeofIfInfomsg:]
	mtu, stats := findAttr(attributes, unix.IFLA_MTU), findAttr(attributes, unix.IFLA_STATS64)
	if len(mtu) < 4 || len(stats) < statsTxDropped+8 {
		return l, false
	}
	l.mtu = int(binary.NativeEndian.Uint32(mtu))
	l.drops = linkDrops{tx: binary.NativeEndian.Uint64(stats[statsTxDropped:]), rx: binary.NativeEndian.Uint64(stats[statsRxDropped:])}
	return l, true
}

// dropCount follows the interface's own count of what it dropped.
type dropCount struct {
	begun bool
	first linkDrops // a persistent device has a past
}

func (d *dropCount) tell(now linkDrops, stats *QueueStats) {
	if !d.begun {
		d.begun, d.first = true, now
	}
	stats.ReadDropped.Store(now.tx - d.first.tx)
	stats.WriteDropped.Store(now.rx - d.first.rx)
}

// deviceNamespace returns a descriptor of the network namespace that the device of descriptor fd is in, which the caller closes at
// once, and its inode. An error: before Linux 5.2, or it is being deleted.
func deviceNamespace(fd int) (namespace int, inode uint64, err error) {
	if namespace, err = unix.IoctlRetInt(fd, unix.TUNGETDEVNETNS); err != nil {
		return -1, 0, err
	}
	var stat unix.Stat_t
	if err = unix.Fstat(namespace, &stat); err != nil {
		unix.Close(namespace)
		return -1, 0, err
	}
	return namespace, stat.Ino, nil
}

// threadNamespace is the inode of the calling thread's network namespace, 0 if it cannot be told.
func threadNamespace() uint64 {
	var stat unix.Stat_t
	if unix.Stat("/proc/thread-self/ns/net", &stat) != nil {
		return 0
	}
	return stat.Ino
}
