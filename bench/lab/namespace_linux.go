package lab

import (
	"errors"
	"fmt"
	"net"
	"net/netip"
	"os"
	"os/exec"
	"runtime"
	"sync"
	"syscall"
	"time"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netns"
	"golang.org/x/sys/unix"
)

// Namespace is a network namespace, held by a descriptor. Its methods may be called by any goroutine, but Close by one, and
// last. Closing it frees the namespace once no process, socket or thread is in it.
type Namespace struct {
	name   string
	fd     netns.NsHandle
	handle *netlink.Handle
}

// NewNamespace makes an empty network namespace with the loopback up. The name is for messages only. IPv6 addresses in it
// are usable at once (no duplicate address detection).
func NewNamespace(name string) (*Namespace, error) {
	ns := &Namespace{name: name, fd: -1}
	err := onOwnThread(func() error {
		var err error
		if ns.fd, err = netns.New(); err != nil {
			return err
		}
		for _, scope := range []string{"all", "default"} {
			// A kernel without IPv6 has no such file, and needs none.
			err := os.WriteFile("/proc/sys/net/ipv6/conf/"+scope+"/accept_dad", []byte("0"), 0)
			if err != nil && !errors.Is(err, os.ErrNotExist) {
				return err
			}
		}
		return nil
	})
	if err != nil {
		return nil, fmt.Errorf("lab: namespace %s: %w", name, err)
	}
	if ns.handle, err = netlink.NewHandleAt(ns.fd, unix.NETLINK_ROUTE); err != nil {
		ns.fd.Close()
		return nil, fmt.Errorf("lab: namespace %s: netlink: %w", name, err)
	}
	if err := ns.SetUp("lo"); err != nil {
		ns.Close()
		return nil, err
	}
	return ns, nil
}

// onOwnThread runs f on a thread that may change its network namespace, and brings the thread back afterwards.
func onOwnThread(f func() error) error {
	runtime.LockOSThread()
	home, err := netns.Get()
	if err != nil {
		runtime.UnlockOSThread()
		return err
	}
	defer home.Close()
	err = f()
	if back := netns.Set(home); back != nil {
		// A thread that cannot come back must never run other goroutines: left locked, it ends with this one.
		return errors.Join(err, back)
	}
	runtime.UnlockOSThread()
	return err
}

// Name is the name given to NewNamespace.
func (ns *Namespace) Name() string { return ns.name }

// FD is the descriptor of the namespace; it stays owned by the Namespace.
func (ns *Namespace) FD() int { return int(ns.fd) }

// Netlink is the routing socket of the namespace, for what the methods here do not offer.
func (ns *Namespace) Netlink() *netlink.Handle { return ns.handle }

// Run calls f on a thread that is in the namespace. Sockets that f opens stay in it for their life; goroutines that f
// starts are not in it. f must not unlock its thread.
func (ns *Namespace) Run(f func() error) error {
	return onOwnThread(func() error {
		if err := netns.Set(ns.fd); err != nil {
			return fmt.Errorf("lab: enter %s: %w", ns.name, err)
		}
		return f()
	})
}

// starting is a request to the thread that starts processes.
type starting struct {
	ns   *Namespace
	cmd  *exec.Cmd
	done chan error
}

// starter is a thread that never ends: a child with a death signal dies with the thread that forked it, and any other thread
// of a Go program may end before the program.
var starter = sync.OnceValue(func() chan<- starting {
	requests := make(chan starting)
	go func() {
		runtime.LockOSThread()
		for r := range requests {
			r.done <- r.ns.Run(r.cmd.Start)
		}
	}()
	return requests
})

// Start starts cmd as a process of the namespace. It is killed when the lab dies; the caller waits for it as for any
// command. cmd.SysProcAttr is completed, not replaced.
func (ns *Namespace) Start(cmd *exec.Cmd) error {
	if cmd.SysProcAttr == nil {
		cmd.SysProcAttr = &syscall.SysProcAttr{}
	}
	cmd.SysProcAttr.Pdeathsig = syscall.SIGKILL
	// A group of its own: Ctrl-C reaches the lab, which then stops its processes in order.
	cmd.SysProcAttr.Setpgid = true
	request := starting{ns, cmd, make(chan error)}
	starter() <- request
	return <-request.done
}

// SetUp sets a device up, and returns when the addresses that AddAddr has given it can be reached.
func (ns *Namespace) SetUp(device string) error {
	return ns.withLink(device, "set up", func(l netlink.Link) error {
		if err := ns.handle.LinkSetUp(l); err != nil {
			return err
		}
		return ns.awaitAddrs(l)
	})
}

// addrWait bounds the wait for the kernel's work queue (net/ipv6/addrconf.c, addrconf_dad_work).
const addrWait = 20 * time.Second

// awaitAddrs waits until the kernel takes what comes for the IPv6 addresses of a device that is up for its own: it makes the
// routes for that in a work queue, a moment after the address, and drops what comes before.
func (ns *Namespace) awaitAddrs(l netlink.Link) error {
	addrs, err := ns.handle.AddrList(l, netlink.FAMILY_V6)
	if err != nil {
		return err
	}
	for _, a := range addrs {
		for deadline := time.Now().Add(addrWait); a.Flags&unix.IFA_F_NODAD != 0; time.Sleep(time.Millisecond) {
			routes, err := ns.handle.RouteGet(a.IP)
			if err == nil && len(routes) > 0 && routes[0].Type == unix.RTN_LOCAL {
				break
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("%v cannot be reached after %v (%v)", a.IP, addrWait, err)
			}
		}
	}
	return nil
}

// SetDown sets a device down. The kernel removes its routes; its IPv4 addresses stay.
func (ns *Namespace) SetDown(device string) error {
	return ns.withLink(device, "set down", ns.handle.LinkSetDown)
}

// SetMTU sets the MTU of a device, bytes.
func (ns *Namespace) SetMTU(device string, mtu int) error {
	return ns.withLink(device, "set MTU of", func(l netlink.Link) error { return ns.handle.LinkSetMTU(l, mtu) })
}

// AddAddr gives a device an address with its on-link prefix. It can be used at once.
func (ns *Namespace) AddAddr(device string, prefix netip.Prefix) error {
	return ns.withLink(device, "add "+prefix.String()+" to", func(l netlink.Link) error {
		addr := &netlink.Addr{IPNet: ipNet(prefix)}
		if prefix.Addr().Is6() {
			addr.Flags = unix.IFA_F_NODAD // else it is tentative for a moment even where detection is off
		}
		if err := ns.handle.AddrAdd(l, addr); err != nil || l.Attrs().Flags&net.FlagUp == 0 {
			return err
		}
		return ns.awaitAddrs(l)
	})
}

// Readdress gives a device another address in place of one that it has, as when a lease ends: the old one goes first, and with it
// the routes that need it.
func (ns *Namespace) Readdress(device string, old, next netip.Prefix) error {
	err := ns.withLink(device, "remove "+old.String()+" from", func(l netlink.Link) error {
		return ns.handle.AddrDel(l, &netlink.Addr{IPNet: ipNet(old)})
	})
	if err != nil {
		return err
	}
	return ns.AddAddr(device, next)
}

// AddRoute routes prefix through a device, by way of gateway unless that is the zero Addr.
func (ns *Namespace) AddRoute(prefix netip.Prefix, device string, gateway netip.Addr) error {
	return ns.withLink(device, "route "+prefix.String()+" through", func(l netlink.Link) error {
		return ns.handle.RouteAdd(&netlink.Route{LinkIndex: l.Attrs().Index, Dst: ipNet(prefix), Gw: gateway.AsSlice()})
	})
}

func (ns *Namespace) withLink(device, what string, f func(netlink.Link) error) error {
	l, err := ns.handle.LinkByName(device)
	if err == nil {
		err = f(l)
	}
	if err != nil {
		return fmt.Errorf("lab: %s: %s %s: %w", ns.name, what, device, err)
	}
	return nil
}

// Close gives up the descriptor.
func (ns *Namespace) Close() error {
	if ns.handle != nil {
		ns.handle.Close()
	}
	return ns.fd.Close()
}

func ipNet(p netip.Prefix) *net.IPNet {
	return &net.IPNet{IP: p.Addr().AsSlice(), Mask: net.CIDRMask(p.Bits(), p.Addr().BitLen())}
}
