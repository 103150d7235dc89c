//go:build linux && !sluice_portable

package tun

import (
	"errors"
	"fmt"
	"time"

	"golang.org/x/sys/unix"
)

// monitorInterval is how often the monitor looks without having been told to.
const monitorInterval = time.Second

// monitor watches the interface's state. It holds on to the device by the descriptor only: the interface may be renamed, or
// moved to another network namespace, which the old one reports as a deletion (RTM_DELLINK). It holds on to no namespace but the one
// that it was made in: one that is deleted takes the interface with it, and what is left of us there would keep both.
//
// A netlink socket is the doorbell; its messages are not read, since they may be lost and are about other interfaces too. While
// the device is away it hears of all namespaces that have an ID here (NETLINK_LISTEN_ALL_NSID). Each ring, and each second, the
// monitor asks: the descriptor for the device's name and namespace, then another socket for what was dropped, flags and MTU.
// Where the program may not ask about the namespace, it is blind, and takes the device to be up unless a write of nothing
// says EIO: who stopped because of a wrong EventDown would never find out, but who writes to a device that is down gets
// ErrDown.
type monitor struct {
	device *linuxDevice
	fd     int // the device's, borrowed until stop
	bell   int // eventfd

	// Owned by run.
	home      uint64 // inode of the namespace of the sockets
	namespace uint64 // inode of the device's; 0 while not known
	news, ask routeSocket
	up        bool
	drops     dropCount

	done chan struct{}
}

func startMonitor(d *linuxDevice, fd int) (*monitor, error) {
	bell, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("tun: eventfd: %w", err)
	}
	home := threadNamespace()
	m := &monitor{device: d, fd: fd, bell: bell, home: home, namespace: home, done: make(chan struct{})}
	if m.news, err = openRouteSocket(unix.RTMGRP_LINK); err == nil {
		if m.ask, err = openRouteSocket(0); err != nil {
			m.news.close()
		}
	}
	if err != nil {
		unix.Close(bell)
		return nil, fmt.Errorf("tun: watch interface: %w", err)
	}
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
	defer m.news.close()
	defer m.ask.close()
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
		{Fd: int32(m.news.fd), Events: unix.POLLIN},
	}
	unix.Poll(fds[:], int(monitorInterval/time.Millisecond))
	var drop [8]byte
	unix.Read(m.bell, drop[:])
	m.news.drain()
}

// gone tells whether the device is deleted.
func (m *monitor) gone() bool {
	_, err := m.name()
	return errors.Is(err, unix.EBADFD)
}

// name is the interface's. The error is EBADFD once the device is deleted (__tun_chr_ioctl).
func (m *monitor) name() (string, error) {
	request, err := unix.NewIfreq("")
	if err == nil {
		err = unix.IoctlIfreq(m.fd, unix.TUNGETIFF, request)
	}
	if err != nil {
		return "", err
	}
	return request.Name(), nil
}

// refused asks by a write of nothing whether the device is down, which older kernels say (EIO). Without a virtio-net header the kernel
// counts it as a packet that it has dropped (tun_get_user), so it is for who is blind only, and sees no such counts.
func (m *monitor) refused() bool {
	_, err := unix.Write(m.fd, nil)
	return errors.Is(err, unix.EIO)
}

// look compares the interface's state with what was told last, and tells.
func (m *monitor) look() {
	up := m.up
	switch l, err := m.query(); {
	case err == nil:
		up = l.up
		if int(m.device.mtu.Swap(int32(l.mtu))) != l.mtu {
			post(m.device.events, EventMTU)
		}
	case !errors.Is(err, unix.ENODEV): // which says that it is being renamed or on its way elsewhere
		up = !m.refused()
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

// query asks for the interface where it is now.
func (m *monitor) query() (link, error) {
	at, leave, err := m.follow()
	if err != nil {
		return link{}, err
	}
	defer leave()
	name, err := m.name()
	if err != nil {
		return link{}, err
	}
	l, err := m.ask.link(name, at)
	if err != nil {
		return link{}, err
	}
	m.drops.tell(l.drops, &m.device.queues[0].stats)
	l.mtu = m.clamp(l.mtu)
	return l, nil
}

// follow returns where the device is. The ID is that of this namespace until leave is called, which is to be soon: so long the
// namespace is kept alive.
func (m *monitor) follow() (at namespaceID, leave func(), err error) {
	namespace, inode, err := deviceNamespace(m.fd)
	if err != nil {
		return at, func() {}, nil // we assume that it has not moved
	}
	at.away = inode != m.home
	if inode != m.namespace {
		m.namespace = inode
		quieten(m.fd)
		m.news.listenToAll(at.away) // a refusal leaves the look of each second
	}
	if at.away {
		at.id, err = m.ask.namespaceID(namespace)
	}
	if err != nil {
		unix.Close(namespace)
		return at, nil, err
	}
	return at, func() { unix.Close(namespace) }, nil
}

// clamp sets the interface's MTU back to the largest that is allowed, and returns what it then is. Where that is not permitted
// it stays, and whoever reads the device has to bear with it.
func (m *monitor) clamp(mtu int) int {
	most := m.device.maxMTU
	if most == 0 || mtu <= most {
		return mtu
	}
	err := inDeviceNamespace(m.fd, func() error {
		request, err := unix.NewIfreq("")
		if err == nil {
			err = unix.IoctlIfreq(m.fd, unix.TUNGETIFF, request)
		}
		if err != nil {
			return err
		}
		request.SetUint32(uint32(most))
		return socketIoctl(unix.SIOCSIFMTU, request)
	})
	if err != nil {
		return mtu
	}
	post(m.device.events, EventMTUClamped)
	return most
}
