//go:build linux && !sluice_portable

package tun

import (
	"errors"
	"fmt"
	"runtime"
	"time"

	"golang.org/x/sys/unix"
)

// monitorInterval is how often the monitor looks without having been told to.
const monitorInterval = time.Second

// monitor watches the interface's state. It holds on to the device by the descriptor only: the interface may be renamed, or
// moved to another network namespace, which the old one reports as a deletion (RTM_DELLINK).
//
// A netlink socket in the device's namespace is the doorbell; its messages are not read, since they may be lost and are
// about other interfaces too. Each ring, and each second, the monitor asks: the descriptor for the device's name and
// namespace, then sockets of that namespace for what was dropped, flags and MTU. Where the program may not enter the namespace, it is
// blind, and takes the device to be up unless a write of nothing says EIO: who stopped because of a wrong EventDown would
// never find out, but who writes to a device that is down gets ErrDown.
type monitor struct {
	device *linuxDevice
	fd     int // the device's, borrowed until stop
	bell   int // eventfd

	// Owned by run.
	namespace uint64 // inode of the namespace of the sockets; 0 while not known
	netlink   int    // -1 while blind
	control   int    // any socket of the namespace; -1 while blind
	up        bool
	refused   bool // the latest write of nothing met EIO
	drops     dropCount

	done chan struct{}
}

func startMonitor(d *linuxDevice, fd int) (*monitor, error) {
	bell, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("tun: eventfd: %w", err)
	}
	m := &monitor{device: d, fd: fd, bell: bell, netlink: -1, control: -1, done: make(chan struct{})}
	m.netlink, m.control, err = openSockets()
	if err != nil {
		unix.Close(bell)
		return nil, fmt.Errorf("tun: watch interface: %w", err)
	}
	m.namespace = inode(unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0))
	// From here on the device's state is known without a wait: an adopted device may be up already.
	m.look()
	go m.run()
	return m, nil
}

// wake makes the monitor look now. Any goroutine, never blocks.
func (m *monitor) wake() {
	one := [8]byte{1, 1, 1, 1, 1, 1, 1, 0} // any count other than zero, in either byte order
	unix.Write(m.bell, one[:])
}

// stop ends the monitor and waits for it.
func (m *monitor) stop() {
	m.wake()
	<-m.done
	unix.Close(m.bell)
}

func (m *monitor) run() {
	defer close(m.done)
	defer m.closeSockets()
	defer close(m.device.events)
	for !m.device.closed.Load() {
		if m.gone() {
			post(m.device.events, EventGone)
			return
		}
		m.look()
		m.wait()
	}
}

// wait returns when something may have changed.
func (m *monitor) wait() {
	fds := [3]unix.PollFd{
		{Fd: int32(m.bell), Events: unix.POLLIN},
		{Fd: int32(m.fd)}, // POLLERR once the device is gone
		{Fd: int32(m.netlink), Events: unix.POLLIN},
	}
	unix.Poll(fds[:], int(monitorInterval/time.Millisecond))
	var drop [8]byte
	unix.Read(m.bell, drop[:])
	m.drain(func([]byte) {})
}

// drain reads what the netlink socket has.
func (m *monitor) drain(use func(messages []byte)) {
	var buf [16384]byte
	for m.netlink >= 0 {
		n, err := unix.Read(m.netlink, buf[:])
		switch {
		case err == nil:
			use(buf[:n])
		case !errors.Is(err, unix.ENOBUFS): // which says that messages were lost, and clears the condition
			return
		}
	}
}

// gone asks by a write of nothing, which changes nothing: EBADFD once the device is deleted, else EINVAL (tun_get_user)
// or, on older kernels while it is down, EIO.
func (m *monitor) gone() bool {
	_, err := unix.Write(m.fd, nil)
	m.refused = errors.Is(err, unix.EIO)
	return errors.Is(err, unix.EBADFD)
}

// look compares the interface's state with what was told last, and tells.
func (m *monitor) look() {
	up, mtu, ok := m.query()
	if !ok {
		up = m.up
		if m.control < 0 {
			up = !m.refused
		}
	}
	if ok && int(m.device.mtu.Swap(int32(mtu))) != mtu {
		post(m.device.events, EventMTU)
	}
	if up == m.up {
		return
	}
	m.up = up
	if up {
		post(m.device.events, EventUp)
	} else {
		post(m.device.events, EventDown)
	}
}

// query asks for flags and MTU in the namespace where the device is. Not ok: we are blind, or it is on its way.
func (m *monitor) query() (up bool, mtu int, ok bool) {
	m.follow()
	if m.control < 0 {
		return false, 0, false
	}
	request, err := unix.NewIfreq("")
	if err != nil || unix.IoctlIfreq(m.fd, unix.TUNGETIFF, request) != nil {
		return false, 0, false
	}
	name := request.Name()
	m.countDrops(name) // which also answers the bell, so what rang is asked for after it
	if request, err = unix.NewIfreq(name); err != nil || unix.IoctlIfreq(m.control, unix.SIOCGIFFLAGS, request) != nil {
		return false, 0, false
	}
	up = request.Uint16()&unix.IFF_UP != 0
	if request, err = unix.NewIfreq(name); err != nil || unix.IoctlIfreq(m.control, unix.SIOCGIFMTU, request) != nil {
		return false, 0, false
	}
	return up, m.clamp(request), true
}

// clamp sets the interface's MTU, which request holds, back to the largest that is allowed, and returns what it then is. Where
// that is not permitted it stays, and whoever reads the device has to bear with it.
func (m *monitor) clamp(request *unix.Ifreq) int {
	mtu, most := int(request.Uint32()), m.device.maxMTU
	if most == 0 || mtu <= most {
		return mtu
	}
	request.SetUint32(uint32(most))
	if unix.IoctlIfreq(m.control, unix.SIOCSIFMTU, request) != nil {
		return mtu
	}
	post(m.device.events, EventMTUClamped)
	return most
}

// follow moves the sockets to the device's namespace.
func (m *monitor) follow() {
	namespace, err := unix.IoctlRetInt(m.fd, unix.TUNGETDEVNETNS)
	if err != nil {
		// Before Linux 5.1, or not permitted: we assume that it has not moved.
		return
	}
	defer unix.Close(namespace)
	var stat unix.Stat_t
	if unix.Fstat(namespace, &stat) != nil || stat.Ino == m.namespace {
		return
	}
	quieten(m.fd)
	m.closeSockets()
	m.namespace = stat.Ino
	if netlink, control, err := openSocketsIn(namespace); err == nil {
		m.netlink, m.control = netlink, control
	}
}

func (m *monitor) closeSockets() {
	for _, fd := range []*int{&m.netlink, &m.control} {
		if *fd >= 0 {
			unix.Close(*fd)
			*fd = -1
		}
	}
}

// inode closes fd and returns the inode that it was open on; 0 if err is set.
func inode(fd int, err error) uint64 {
	if err != nil {
		return 0
	}
	defer unix.Close(fd)
	var stat unix.Stat_t
	if unix.Fstat(fd, &stat) != nil {
		return 0
	}
	return stat.Ino
}

// openSockets opens the doorbell and the control socket in the calling thread's namespace.
func openSockets() (netlink, control int, err error) {
	netlink, err = unix.Socket(unix.AF_NETLINK, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, unix.NETLINK_ROUTE)
	if err != nil {
		return -1, -1, err
	}
	if err = unix.Bind(netlink, &unix.SockaddrNetlink{Family: unix.AF_NETLINK, Groups: unix.RTMGRP_LINK}); err == nil {
		control, err = unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	}
	if err != nil {
		unix.Close(netlink)
		return -1, -1, err
	}
	return netlink, control, nil
}

// openSocketsIn does so in another namespace, on a thread of its own.
func openSocketsIn(namespace int) (netlink, control int, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		runtime.LockOSThread()
		var home int
		home, err = unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
		if err != nil {
			runtime.UnlockOSThread()
			return
		}
		defer unix.Close(home)
		if err = unix.Setns(namespace, unix.CLONE_NEWNET); err == nil {
			netlink, control, err = openSockets()
			if unix.Setns(home, unix.CLONE_NEWNET) != nil {
				return // still locked, so that the thread ends with this goroutine
			}
		}
		runtime.UnlockOSThread()
	}()
	<-done
	return netlink, control, err
}
