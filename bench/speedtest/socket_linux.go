package speedtest

import (
	"fmt"
	"net/netip"
	"runtime"
	"sync"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-vpn/sluice/bench/lab"
)

// openTimeout bounds a connect or accept: one lost handshake initiation is repeated after 5 s.
const openTimeout = 8 * time.Second

// stopTimeout is how long a blocked thread may take to notice that it should end.
const stopTimeout = 100 * time.Millisecond

// threads are load threads of one measurement.
type threads struct{ wg sync.WaitGroup }

// start runs f on a thread of its own. f allocates nothing and ends soon after the flag that it watches is set.
func (t *threads) start(f func()) {
	t.wg.Add(1)
	go func() {
		defer t.wg.Done()
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		f()
	}()
}

func (t *threads) wait() { t.wg.Wait() }

// endpoint is where a socket of the load lives: an address of a namespace of the lab, or of a device of this machine.
type endpoint struct {
	ns     *lab.Namespace // nil: where this process is
	device string         // "" for any
	addr   netip.Addr
}

// run calls f where the endpoint is.
func (e endpoint) run(f func() error) error {
	if e.ns == nil {
		return f()
	}
	return e.ns.Run(f)
}

func (e endpoint) String() string {
	if e.ns == nil {
		return e.addr.String()
	}
	return e.ns.Name()
}

func sockaddr(a netip.AddrPort) unix.Sockaddr {
	if a.Addr().Is6() {
		return &unix.SockaddrInet6{Port: int(a.Port()), Addr: a.Addr().As16()}
	}
	return &unix.SockaddrInet4{Port: int(a.Port()), Addr: a.Addr().As4()}
}

// localPort is the port that the kernel chose for a socket.
func localPort(fd int) (uint16, error) {
	sa, err := unix.Getsockname(fd)
	if err != nil {
		return 0, err
	}
	switch in := sa.(type) {
	case *unix.SockaddrInet4:
		return uint16(in.Port), nil
	case *unix.SockaddrInet6:
		return uint16(in.Port), nil
	}
	return 0, fmt.Errorf("socket has address %T", sa)
}

func setTimeout(fd, option int, d time.Duration) error {
	tv := unix.NsecToTimeval(d.Nanoseconds())
	return unix.SetsockoptTimeval(fd, unix.SOL_SOCKET, option, &tv)
}

// open makes a bound socket at the endpoint, with the timeout for receive, send, connect and accept.
func (e endpoint) open(kind int, timeout time.Duration) (fd int, err error) {
	fd = -1
	family := unix.AF_INET
	if e.addr.Is6() {
		family = unix.AF_INET6
	}
	err = e.run(func() error {
		if fd, err = unix.Socket(family, kind|unix.SOCK_CLOEXEC, 0); err != nil {
			return err
		}
		if e.device != "" {
			if err := unix.BindToDevice(fd, e.device); err != nil {
				return err
			}
		}
		for _, option := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
			if err := setTimeout(fd, option, timeout); err != nil {
				return err
			}
		}
		return unix.Bind(fd, sockaddr(netip.AddrPortFrom(e.addr, 0)))
	})
	if err != nil {
		closeAll(fd)
		return -1, fmt.Errorf("socket in %s: %w", e, err)
	}
	return fd, nil
}

// openUDP makes two UDP sockets that are connected to each other.
func openUDP(from, to endpoint) (a, b int, err error) {
	if a, err = from.open(unix.SOCK_DGRAM, stopTimeout); err != nil {
		return -1, -1, err
	}
	if b, err = to.open(unix.SOCK_DGRAM, stopTimeout); err != nil {
		closeAll(a)
		return -1, -1, err
	}
	join := func(fd, peer int, at netip.Addr) error {
		growBuffers(fd)
		port, err := localPort(peer)
		if err != nil {
			return err
		}
		return unix.Connect(fd, sockaddr(netip.AddrPortFrom(at, port)))
	}
	if err = join(a, b, to.addr); err == nil {
		err = join(b, a, from.addr)
	}
	if err != nil {
		closeAll(a, b)
		return -1, -1, fmt.Errorf("UDP %s to %s: %w", from.addr, to.addr, err)
	}
	return a, b, nil
}

// openTCP makes a TCP connection and returns its two ends.
func openTCP(from, to endpoint) (a, b int, err error) {
	listener, err := to.open(unix.SOCK_STREAM, openTimeout)
	if err != nil {
		return -1, -1, err
	}
	defer unix.Close(listener)
	a, b = -1, -1
	connect := func() error {
		if err := unix.Listen(listener, 1); err != nil {
			return err
		}
		port, err := localPort(listener)
		if err != nil {
			return err
		}
		if a, err = from.open(unix.SOCK_STREAM, openTimeout); err != nil {
			return err
		}
		if err := retry(func() error { return unix.Connect(a, sockaddr(netip.AddrPortFrom(to.addr, port))) }); err != nil {
			return err
		}
		if err := retry(func() error { b, _, err = unix.Accept4(listener, unix.SOCK_CLOEXEC); return err }); err != nil {
			return err
		}
		for _, fd := range []int{a, b} {
			for _, option := range []int{unix.SO_RCVTIMEO, unix.SO_SNDTIMEO} {
				if err := setTimeout(fd, option, stopTimeout); err != nil {
					return err
				}
			}
		}
		return nil
	}
	if err := connect(); err != nil {
		closeAll(a, b)
		return -1, -1, fmt.Errorf("TCP %s to %s: %w", from.addr, to.addr, err)
	}
	return a, b, nil
}

// retry repeats a call that a signal interrupted. A connect that goes on in the background says EALREADY, then EISCONN.
func retry(f func() error) error {
	for deadline := time.Now().Add(openTimeout); ; {
		switch err := f(); err {
		case unix.EINTR, unix.EALREADY:
			if time.Now().After(deadline) {
				return unix.ETIMEDOUT
			}
		case unix.EISCONN:
			return nil
		case unix.EINPROGRESS, unix.EAGAIN:
			return unix.ETIMEDOUT // SO_SNDTIMEO or SO_RCVTIMEO ran out
		default:
			return err
		}
	}
}

func closeAll(fds ...int) {
	for _, fd := range fds {
		if fd >= 0 {
			unix.Close(fd)
		}
	}
}
