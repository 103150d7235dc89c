//go:build linux && !sluice_portable

package tun

import (
	"errors"
	"fmt"
	"os"
	"sync/atomic"

	"golang.org/x/sys/unix"
)

const clonePath = "/dev/net/tun"

// Offload flags of TUNSETOFFLOAD (include/uapi/linux/if_tun.h). USO is known since Linux 6.2; both families are granted
// together or not at all.
const (
	offloadTCP = unix.TUN_F_CSUM | unix.TUN_F_TSO4 | unix.TUN_F_TSO6 | unix.TUN_F_TSO_ECN
	offloadUDP = unix.TUN_F_USO4 | unix.TUN_F_USO6
)

// linuxDevice is a TUN device of the kernel.
type linuxDevice struct {
	// Frozen.
	name    string
	maxMTU  int // 0: any
	queues  []*linuxQueue
	views   []Queue
	events  chan Event
	monitor *monitor
	errors  *errorSender

	// Atomic.
	mtu          atomic.Int32
	capabilities atomic.Uint32 // bits
	closed       atomic.Bool
}

// Bits of linuxDevice.capabilities.
const (
	bitVNET = 1 << iota
	bitTSO4
	bitTSO6
	bitUSO
)

func open(o Options) (Device, error) {
	d := &linuxDevice{maxMTU: o.MaxMTU, events: make(chan Event, eventBacklog)}
	err := d.attach(o)
	if err == nil {
		err = d.configure(o)
	}
	if err == nil {
		d.monitor, err = startMonitor(d, d.queues[0].fd)
	}
	if err != nil {
		d.release(o.FD)
		return nil, err
	}
	quieten(d.queues[0].fd)
	d.errors = startErrorSender(d.queues[0].fd)
	return d, nil
}

// release closes what a failed open has opened, but not an adopted descriptor.
func (d *linuxDevice) release(adopted int) {
	for _, q := range d.queues {
		if adopted <= 0 {
			unix.Close(q.fd)
		}
	}
}

// attach opens the queues, or adopts one, and sets name and the VNETHeader capability.
func (d *linuxDevice) attach(o Options) error {
	if o.FD > 0 {
		return d.adopt(o.FD)
	}
	flags := uint16(unix.IFF_TUN | unix.IFF_NO_PI)
	if !o.NoOffload {
		flags |= unix.IFF_VNET_HDR
		d.capabilities.Store(bitVNET)
	}
	if o.Queues > 1 {
		flags |= unix.IFF_MULTI_QUEUE
	}
	d.name = o.Name
	for i := range max(1, o.Queues) {
		fd, err := openClone()
		if err != nil {
			return err
		}
		d.addQueue(fd)
		now := flags
		if i == 0 && o.Queues > 1 {
			// Without this we would silently become one more queue of somebody's device.
			now |= unix.IFF_TUN_EXCL
		}
		if d.name, err = setInterface(fd, d.name, now); err != nil {
			return err
		}
	}
	return nil
}

func (d *linuxDevice) addQueue(fd int) {
	q := newLinuxQueue(d, fd)
	d.queues = append(d.queues, q)
	d.views = append(d.views, q)
}

func openClone() (int, error) {
	fd, err := unix.Open(clonePath, unix.O_RDWR|unix.O_CLOEXEC|unix.O_NONBLOCK, 0)
	switch {
	case err == nil:
		return fd, nil
	case errors.Is(err, unix.ENOENT) || errors.Is(err, unix.ENODEV) || errors.Is(err, unix.ENXIO):
		return -1, fmt.Errorf("tun: %w: %s is missing; run modprobe tun, or make the file visible to this program: %w",
			ErrNoDriver, clonePath, err)
	case errors.Is(err, os.ErrPermission):
		return -1, fmt.Errorf("tun: %w: cannot open %s; run as root, or let this user open it as most systems do (mode 0666): %w",
			ErrPermission, clonePath, err)
	}
	return -1, fmt.Errorf("tun: open %s: %w", clonePath, err)
}

// setInterface makes or joins the interface and returns its name.
func setInterface(fd int, name string, flags uint16) (string, error) {
	request, err := unix.NewIfreq(name)
	if err != nil {
		return name, fmt.Errorf("tun: %w: %q", ErrName, name)
	}
	request.SetUint16(flags)
	err = unix.IoctlIfreq(fd, unix.TUNSETIFF, request)
	switch {
	case err == nil:
		return request.Name(), nil
	case errors.Is(err, unix.EPERM):
		return name, fmt.Errorf("tun: %w: cannot make interface %q; run as root or with CAP_NET_ADMIN: %w",
			ErrPermission, name, err)
	case errors.Is(err, unix.EBUSY) || errors.Is(err, unix.EEXIST):
		return name, fmt.Errorf("tun: %w: interface %q exists; choose another name or stop the program that has it: %w",
			ErrBusy, name, err)
	case errors.Is(err, unix.EINVAL) && name != "":
		// EINVAL is also the answer where an interface that is no TUN device has the name (tun_set_iff).
		if request, err := unix.NewIfreq(name); err == nil && socketIoctl(unix.SIOCGIFFLAGS, request) == nil {
			return name, fmt.Errorf("tun: %w: interface %q exists and is not a TUN device of this kind", ErrBusy, name)
		}
		return name, fmt.Errorf("tun: %w: %q: %w", ErrName, name, err)
	}
	return name, fmt.Errorf("tun: make interface %q: %w", name, err)
}

// adopt takes over a descriptor made by someone else.
func (d *linuxDevice) adopt(fd int) error {
	request, err := unix.NewIfreq("")
	if err == nil {
		err = unix.IoctlIfreq(fd, unix.TUNGETIFF, request)
	}
	if err != nil {
		return fmt.Errorf("tun: descriptor %d is not an attached TUN device: %w", fd, err)
	}
	flags := request.Uint16()
	// IFF_NO_PI must be set too, but TUNGETIFF does not tell: IFF_NOFILTER, which it adds, is the same bit.
	if flags&unix.IFF_TUN == 0 {
		return fmt.Errorf("tun: descriptor %d must be made with IFF_TUN and IFF_NO_PI", fd)
	}
	if err := unix.SetNonblock(fd, true); err != nil {
		return fmt.Errorf("tun: descriptor %d: %w", fd, err)
	}
	unix.CloseOnExec(fd)
	if flags&unix.IFF_VNET_HDR != 0 {
		d.capabilities.Store(bitVNET)
	}
	d.name = request.Name()
	d.addQueue(fd)
	return nil
}

// configure probes the offloads and sets the MTU.
func (d *linuxDevice) configure(o Options) error {
	if err := d.setOffload(o); err != nil {
		return err
	}
	request, err := unix.NewIfreq(d.name)
	if err != nil {
		return fmt.Errorf("tun: %w: %q", ErrName, d.name)
	}
	if o.MTU > 0 {
		request.SetUint32(uint32(o.MTU))
		if err := socketIoctl(unix.SIOCSIFMTU, request); err != nil {
			return fmt.Errorf("tun: set MTU of %q to %d: %w", d.name, o.MTU, err)
		}
	}
	d.mtu.Store(DefaultMTU)
	if err := socketIoctl(unix.SIOCGIFMTU, request); err == nil {
		d.mtu.Store(int32(request.Uint32()))
	}
	return nil
}

// setOffload sets header and offloads also where they should be the default: a persistent device keeps those of its last
// user, and without a header superpackets and incomplete checksums could not be told.
func (d *linuxDevice) setOffload(o Options) error {
	vnet, offload := d.capabilities.Load()&bitVNET != 0, 0
	if vnet {
		if err := unix.IoctlSetPointerInt(d.queues[0].fd, unix.TUNSETVNETHDRSZ, virtioHeaderLen); err != nil {
			return fmt.Errorf("tun: set size of virtio-net header: %w", err)
		}
		if !o.NoOffload {
			offload = d.probe()
		}
	}
	for _, q := range d.queues {
		q.vnet = vnet
		// The flags belong to the device, but a queue that joins later may have reset them.
		unix.IoctlSetInt(q.fd, unix.TUNSETOFFLOAD, offload)
	}
	return nil
}

// probe asks for less until the kernel grants it, and returns what it granted.
func (d *linuxDevice) probe() int {
	fd := d.queues[0].fd
	if unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offloadTCP|offloadUDP) == nil {
		d.capabilities.Or(bitTSO4 | bitTSO6 | bitUSO)
		return offloadTCP | offloadUDP
	}
	if unix.IoctlSetInt(fd, unix.TUNSETOFFLOAD, offloadTCP) == nil {
		d.capabilities.Or(bitTSO4 | bitTSO6)
		return offloadTCP
	}
	return 0
}

// socketIoctl runs a request on a socket of this thread's network namespace.
func socketIoctl(code uint, request *unix.Ifreq) error {
	s, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return err
	}
	defer unix.Close(s)
	return unix.IoctlIfreq(s, code, request)
}

func (d *linuxDevice) Name() string         { return d.name }
func (d *linuxDevice) MTU() int             { return int(d.mtu.Load()) }
func (d *linuxDevice) Queues() []Queue      { return d.views }
func (d *linuxDevice) Events() <-chan Event { return d.events }

func (d *linuxDevice) Capabilities() Capabilities {
	bits := d.capabilities.Load()
	return Capabilities{
		VNETHeader: bits&bitVNET != 0,
		TSO4:       bits&bitTSO4 != 0,
		TSO6:       bits&bitTSO6 != 0,
		USO:        bits&bitUSO != 0,
	}
}

// refuse takes a capability back after EINVAL on a run of that type.
func (d *linuxDevice) refuse(t GSOType) {
	switch t {
	case GSOTCPv4:
		d.capabilities.And(^uint32(bitTSO4))
	case GSOTCPv6:
		d.capabilities.And(^uint32(bitTSO6))
	case GSOUDPv4, GSOUDPv6:
		d.capabilities.And(^uint32(bitUSO))
	}
}

// SendError is of ErrorSender.
func (d *linuxDevice) SendError(icmpError []byte) bool { return d.errors.post(icmpError) }

// Close stops the monitor and the sender of errors, waits for them, and closes the queues. A queue whose goroutine is in Read or Write is closed
// when that call returns; every later call returns ErrClosed. The interface goes with its last descriptor, unless it
// was made persistent by someone else.
func (d *linuxDevice) Close() error {
	if d.closed.Swap(true) {
		return nil
	}
	d.monitor.stop()
	d.errors.close()
	for _, q := range d.queues {
		q.close()
	}
	return nil
}
