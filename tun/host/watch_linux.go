package host

import (
	"encoding/binary"
	"errors"
	"os"
	"strings"
	"sync"
	"syscall"

	"golang.org/x/sys/unix"
)

// Watcher tells when something that [Routing] or [Forwarding] has set up may have been changed: links, addresses, rules, routes of one
// table and default routes, the tables of this package in nftables, and whether IP is forwarded.
type Watcher struct {
	changes chan struct{} // one slot
	files   []*os.File
	readers sync.WaitGroup
}

// rtnetlinkGroups are those of links, addresses, routes, rules and settings (rtnetlink(7)); a group's bit is its number less one.
const rtnetlinkGroups = 1<<(unix.RTNLGRP_LINK-1) | 1<<(unix.RTNLGRP_IPV4_IFADDR-1) | 1<<(unix.RTNLGRP_IPV6_IFADDR-1) |
	1<<(unix.RTNLGRP_IPV4_ROUTE-1) | 1<<(unix.RTNLGRP_IPV6_ROUTE-1) | 1<<(unix.RTNLGRP_IPV4_RULE-1) | 1<<(unix.RTNLGRP_IPV6_RULE-1) |
	1<<(unix.RTNLGRP_IPV4_NETCONF-1) | 1<<(unix.RTNLGRP_IPV6_NETCONF-1)

// NewWatcher starts to watch the network namespace of the calling thread; table is the one whose routes count. Where the kernel
// has no nftables the rest is watched.
func NewWatcher(table int) (*Watcher, error) {
	w := &Watcher{changes: make(chan struct{}, 1)}
	routes, err := openNetlink(unix.NETLINK_ROUTE, rtnetlinkGroups)
	if err != nil {
		return nil, wrap(err, "watch routes")
	}
	w.start(routes, func(m syscall.NetlinkMessage) bool { return aboutRouting(m, table) })
	if rules, err := openNetlink(unix.NETLINK_NETFILTER, 1<<(unix.NFNLGRP_NFTABLES-1)); err == nil {
		w.start(rules, aboutTables)
	}
	return w, nil
}

func openNetlink(protocol int, groups uint32) (*os.File, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, protocol)
	if err != nil {
		return nil, err
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		_ = unix.Close(fd)
		return nil, err
	}
	return os.NewFile(uintptr(fd), "netlink"), nil
}

// start reads notices, and tells of those that matter. Some may be lost, and then something may have changed too.
func (w *Watcher) start(file *os.File, matters func(syscall.NetlinkMessage) bool) {
	w.files = append(w.files, file)
	w.readers.Go(func() {
		buffer := make([]byte, 64<<10)
		for {
			n, err := file.Read(buffer)
			if err != nil && !errors.Is(err, unix.ENOBUFS) {
				return
			}
			if err == nil && !anyMatters(buffer[:n], matters) {
				continue
			}
			select {
			case w.changes <- struct{}{}:
			default:
			}
		}
	})
}

func anyMatters(notices []byte, matters func(syscall.NetlinkMessage) bool) bool {
	list, err := syscall.ParseNetlinkMessage(notices)
	if err != nil {
		return true
	}
	for _, m := range list {
		if matters(m) {
			return true
		}
	}
	return false
}

// aboutRouting leaves out routes that are no business of ours: programs for dynamic routing change many.
func aboutRouting(m syscall.NetlinkMessage, table int) bool {
	if m.Header.Type != unix.RTM_NEWROUTE && m.Header.Type != unix.RTM_DELROUTE || len(m.Data) < unix.SizeofRtMsg {
		return true
	}
	list, err := attributes(m.Data[unix.SizeofRtMsg:])
	if err != nil || m.Data[1] == 0 { // rtm_dst_len of struct rtmsg
		return true
	}
	for _, a := range list {
		if a.kind == unix.RTA_TABLE && len(a.value) == 4 {
			return binary.NativeEndian.Uint32(a.value) == uint32(table)
		}
	}
	return int(m.Data[4]) == table // rtm_table
}

// aboutTables tells whether a notice is about a table of ours. The first attribute of each but that of a new generation is the table's
// name (linux/netfilter/nf_tables.h).
func aboutTables(m syscall.NetlinkMessage) bool {
	const header = 4 // struct nfgenmsg
	if m.Header.Type&0xff == unix.NFT_MSG_NEWGEN || len(m.Data) < header {
		return false
	}
	list, err := attributes(m.Data[header:])
	return err != nil || strings.HasPrefix(find(list, 1), tablePrefix)
}

// Changes delivers a value when something may have changed; changes before it was taken count as one. What this package changes
// itself counts too.
func (w *Watcher) Changes() <-chan struct{} { return w.changes }

// Close ends the Watcher, and waits until it has.
func (w *Watcher) Close() error {
	var err error
	for _, f := range w.files {
		err = errors.Join(err, f.Close())
	}
	w.readers.Wait()
	return err
}
