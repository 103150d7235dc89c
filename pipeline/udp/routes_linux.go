package udp

import (
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// routeGroups are the changes that may lead a datagram elsewhere. A device that goes down takes IPv4 routes with it without
// a word about them.
const routeGroups = 1<<(unix.RTNLGRP_LINK-1) | 1<<(unix.RTNLGRP_NEXTHOP-1) |
	1<<(unix.RTNLGRP_IPV4_IFADDR-1) | 1<<(unix.RTNLGRP_IPV4_ROUTE-1) | 1<<(unix.RTNLGRP_IPV4_RULE-1) |
	1<<(unix.RTNLGRP_IPV6_IFADDR-1) | 1<<(unix.RTNLGRP_IPV6_ROUTE-1) | 1<<(unix.RTNLGRP_IPV6_RULE-1)

// linuxRoutes asks the kernel by RTM_GETROUTE (rtnetlink(7)) and hears of changes on a socket of its own.
type linuxRoutes struct {
	// Frozen.
	port    uint16
	fd      int      // for questions
	news    *os.File // for changes
	changed chan struct{}
	closed  chan struct{} // closed by Close
	ended   chan struct{} // closed when watch has returned

	// Owned.
	sequence uint32
	request  []byte
	answer   [1024]byte
}

var _ Routes = (*linuxRoutes)(nil)

// openRoutes opens the Routes of the calling thread's namespace, for datagrams from port.
func openRoutes(port uint16) (Routes, error) {
	fd, err := routeSocket(0)
	if err != nil {
		return nil, err
	}
	news, err := routeSocket(routeGroups)
	if err != nil {
		unix.Close(fd)
		return nil, err
	}
	// The kernel counts no more than a few messages while nobody reads, then only that there were more (netlink_overrun):
	// however many routes change, each reading is short.
	_ = unix.SetsockoptInt(news, unix.SOL_SOCKET, unix.SO_RCVBUF, 1)
	s := &linuxRoutes{
		port: port, fd: fd, news: os.NewFile(uintptr(news), "rtnetlink"), request: make([]byte, 0, routeRequestSize),
		changed: make(chan struct{}), closed: make(chan struct{}), ended: make(chan struct{}),
	}
	go s.watch()
	return s, nil
}

func routeSocket(groups uint32) (int, error) {
	fd, err := unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return -1, os.NewSyscallError("socket", err)
	}
	if err := unix.Bind(fd, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: groups}); err != nil {
		unix.Close(fd)
		return -1, os.NewSyscallError("bind", err)
	}
	return fd, nil
}

// SourceHolds asks the kernel, see [Routes].
func (s *linuxRoutes) SourceHolds(r Run, mark uint32) bool {
	return sourceHolds(&r, routeQuestion{port: s.port, mark: mark}, s.ask)
}

// ask asks one question. The answer is there when the request has been sent (netlink_unicast to the kernel is a call).
func (s *linuxRoutes) ask(q routeQuestion) (ifIndex int, routed, ok bool) {
	s.sequence++
	s.request = appendRouteRequest(s.request[:0], s.sequence, q)
	if err := unix.Sendto(s.fd, s.request, 0, &unix.SockaddrNetlink{Family: unix.AF_NETLINK}); err != nil {
		return 0, false, false
	}
	for { // past answers that were cut short by an error
		n, err := unix.Read(s.fd, s.answer[:])
		if err == unix.EINTR {
			continue
		}
		if err != nil {
			return 0, false, false
		}
		ifIndex, errno, ok := parseRouteAnswer(s.answer[:n], s.sequence)
		switch {
		case !ok:
			continue
		case oneOf(syscall.Errno(errno), unix.EPERM, unix.EOPNOTSUPP, unix.ENOBUFS, unix.ENOMEM): // of the question, not of the route
			return 0, false, false
		}
		return ifIndex, errno == 0, true
	}
}

// Changed delivers after routes, rules, addresses or links have changed, see [Routes].
func (s *linuxRoutes) Changed() <-chan struct{} { return s.changed }

// watch waits for news until Close.
func (s *linuxRoutes) watch() {
	defer close(s.ended)
	conn, err := s.news.SyscallConn()
	for err == nil {
		if err = conn.Read(func(fd uintptr) bool { return drain(int(fd)) }); err != nil {
			return
		}
		select {
		case s.changed <- struct{}{}:
		case <-s.closed:
			return
		}
	}
}

// drain drops the messages that wait to be read and tells whether there were any. What they say does not matter, and they may be
// lost: ENOBUFS says so, and is news as well.
func drain(fd int) (any bool) {
	var b [1]byte // the rest of a message goes with its beginning
	for {
		if _, err := unix.Read(fd, b[:]); err != nil && err != unix.ENOBUFS && err != unix.EINTR {
			return any
		}
		any = true
	}
}

// Close ends the watching. The sockets are closed when it returns: they would keep a deleted namespace alive.
func (s *linuxRoutes) Close() error {
	close(s.closed)
	err := s.news.Close()
	<-s.ended
	unix.Close(s.fd)
	return err
}
