package ice

import (
	"errors"
	"fmt"
	"os"
	"slices"
	"strings"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// netlinkBell is a netlink socket that takes notices of links, addresses and routes (rtnetlink(7)). Its messages are not
// read: they may be lost, and what counts is the state after them.
type netlinkBell struct {
	file   *os.File
	handle *netlink.Handle // asks for routes in the same namespace
	buf    [8192]byte
}

func newBell() (bell, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return nil, fmt.Errorf("ice: netlink socket: %w", err)
	}
	groups := uint32(unix.RTMGRP_LINK | unix.RTMGRP_IPV4_IFADDR | unix.RTMGRP_IPV6_IFADDR | unix.RTMGRP_IPV4_ROUTE | unix.RTMGRP_IPV6_ROUTE)
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("ice: subscribe to netlink: %w", err)
	}
	handle, err := netlink.NewHandle(unix.NETLINK_ROUTE)
	if err != nil {
		_ = unix.Close(fd)
		return nil, fmt.Errorf("ice: netlink handle: %w", err)
	}
	return &netlinkBell{file: os.NewFile(uintptr(fd), "netlink"), handle: handle}, nil
}

func (b *netlinkBell) ring() bool {
	_, err := b.file.Read(b.buf[:])
	return err == nil || errors.Is(err, unix.ENOBUFS) // messages were lost: look all the same
}

// routes lists gateway, link, metric and flags of the default routes of the main table. What cannot be read is left out.
func (b *netlinkBell) routes() string {
	var list []string
	for _, family := range [2]int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		filter := &netlink.Route{Table: unix.RT_TABLE_MAIN}
		all, err := b.handle.RouteListFiltered(family, filter, netlink.RT_FILTER_TABLE)
		if err != nil {
			continue
		}
		for _, r := range all {
			if r.Dst == nil || r.Dst.IP.IsUnspecified() && maskBits(&r) == 0 {
				list = append(list, fmt.Sprint(family, r.Gw, r.LinkIndex, r.Priority, r.Flags, len(r.MultiPath)))
			}
		}
	}
	slices.Sort(list)
	return strings.Join(list, "\n")
}

func maskBits(r *netlink.Route) int {
	ones, _ := r.Dst.Mask.Size()
	return ones
}

func (b *netlinkBell) close() {
	_ = b.file.Close()
	b.handle.Close()
}
