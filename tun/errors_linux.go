//go:build linux && !sluice_portable

package tun

import (
	"bytes"
	"errors"
	"net/netip"
	"runtime"
	"sync/atomic"

	"golang.org/x/sys/unix"

	"github.com/sluice-vpn/sluice/tun/ip"
)

// errorSender sends ICMP errors from the network namespace that the device is in, as the kernel's WireGuard does with icmp_ndo_send:
// their source is the address that the host would use towards the packet's sender, whom it knows also where a NAT of its own has
// put an address of its own in the sender's place. A raw socket takes them, so that connection tracking translates them
// back on their way out.
//
// It has a goroutine, since each error takes a dozen system calls; callers limit the rate. No socket is kept open: it would keep
// the device's namespace alive.
type errorSender struct {
	fd      int // the device's, borrowed until close
	queue   chan []byte
	stop    chan struct{}
	done    chan struct{}
	refused atomic.Bool // the program may not do this here; then nothing is taken any more
}

// errorBacklog is how many errors may wait.
const errorBacklog = 64

func startErrorSender(fd int) *errorSender {
	s := &errorSender{fd: fd, queue: make(chan []byte, errorBacklog), stop: make(chan struct{}), done: make(chan struct{})}
	go s.run()
	return s
}

// close ends the goroutine and waits for it.
func (s *errorSender) close() {
	close(s.stop)
	<-s.done
}

// post is ErrorSender.SendError.
func (s *errorSender) post(icmpError []byte) bool {
	if s.refused.Load() {
		return false
	}
	select {
	case s.queue <- bytes.Clone(icmpError):
	default:
	}
	return true
}

func (s *errorSender) run() {
	defer close(s.done)
	for {
		select {
		case <-s.stop:
			return
		case icmpError := <-s.queue:
			err := inDeviceNamespace(s.fd, func() error { return s.sendAll(icmpError) })
			if errors.Is(err, unix.EPERM) || errors.Is(err, unix.EACCES) {
				s.refused.Store(true)
			}
		}
	}
}

// sendAll sends an error and those that wait behind it. The thread is in the device's namespace.
func (s *errorSender) sendAll(icmpError []byte) error {
	for {
		if err := sendError(icmpError, deviceIndex(s.fd)); err != nil {
			return err
		}
		select {
		case icmpError = <-s.queue:
		default:
			return nil
		}
	}
}

// sendError sends one error from the address that the host would use towards whom it is for. The device's index is the scope of
// link-local addresses.
func sendError(icmpError []byte, ifIndex int) error {
	to := ip.Destination(icmpError)
	sender := to
	if original, ok := originalSource(ip.Quoted(icmpError)); ok {
		sender = original
	}
	src, err := sourceTowards(sender, ifIndex)
	if err != nil {
		return nil // there is no way to the sender, so nobody to tell
	}
	ip.SetErrorSource(icmpError, src)
	fd, err := unix.Socket(socketFamily(to), unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW) // takes whole packets, receives nothing
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	_ = unix.Sendto(fd, icmpError, unix.MSG_DONTWAIT, socketAddress(netip.AddrPortFrom(to, 0), ifIndex)) // as good as lost on its way
	return nil
}

// sourceTowards returns the source address that the host's routes choose.
func sourceTowards(to netip.Addr, ifIndex int) (netip.Addr, error) {
	fd, err := unix.Socket(socketFamily(to), unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return netip.Addr{}, err
	}
	defer unix.Close(fd)
	if err := unix.Connect(fd, socketAddress(netip.AddrPortFrom(to, 9), ifIndex)); err != nil { // sends nothing
		return netip.Addr{}, err
	}
	name, err := unix.Getsockname(fd)
	switch name := name.(type) {
	case *unix.SockaddrInet4:
		return netip.AddrFrom4(name.Addr), nil
	case *unix.SockaddrInet6:
		return netip.AddrFrom16(name.Addr), nil
	}
	return netip.Addr{}, err
}

func socketFamily(addr netip.Addr) int {
	if addr.Is4() {
		return unix.AF_INET
	}
	return unix.AF_INET6
}

func socketAddress(to netip.AddrPort, ifIndex int) unix.Sockaddr {
	if to.Addr().Is4() {
		return &unix.SockaddrInet4{Addr: to.Addr().As4(), Port: int(to.Port())}
	}
	name := &unix.SockaddrInet6{Addr: to.Addr().As16(), Port: int(to.Port())}
	if to.Addr().IsLinkLocalUnicast() {
		name.ZoneId = uint32(ifIndex)
	}
	return name
}

// deviceIndex is the index of the device in the thread's namespace, 0 if it is not there.
func deviceIndex(fd int) int {
	request, err := unix.NewIfreq("")
	if err != nil || unix.IoctlIfreq(fd, unix.TUNGETIFF, request) != nil {
		return 0
	}
	if request, err = unix.NewIfreq(request.Name()); err != nil || socketIoctl(unix.SIOCGIFINDEX, request) != nil {
		return 0
	}
	return int(request.Uint32())
}

// inDeviceNamespace runs f on a thread in the network namespace that the device of descriptor fd is in now.
func inDeviceNamespace(fd int, f func() error) error {
	namespace, inode, err := deviceNamespace(fd)
	if err != nil {
		return f() // we assume that it has not moved
	}
	defer unix.Close(namespace)
	if inode == threadNamespace() {
		return f()
	}
	done := make(chan error)
	go func() { done <- visit(namespace, f) }()
	return <-done
}

// visit runs f on this goroutine's thread in another network namespace. The thread comes back: it would keep a deleted namespace
// alive, and if it is the process's first one it does not even end with its goroutine.
func visit(namespace int, f func() error) error {
	runtime.LockOSThread()
	home, err := unix.Open("/proc/thread-self/ns/net", unix.O_RDONLY|unix.O_CLOEXEC, 0)
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer unix.Close(home)
	if err = unix.Setns(namespace, unix.CLONE_NEWNET); err == nil {
		err = f()
		if unix.Setns(home, unix.CLONE_NEWNET) != nil {
			return err // locked for ever, so that nobody else runs over there
		}
	}
	runtime.UnlockOSThread()
	return err
}
