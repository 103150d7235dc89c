package lab

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/vishvananda/netlink"
)

// Cable is a veth pair. The zero value is a cable with an MTU of 1500 bytes and every offload that the kernel gives it.
type Cable struct {
	MTU        int // bytes; 0 is 1500
	QueueLimit int // transmit queue length, packets; 0 is the kernel's default
	// Off lists offloads to switch off on both ends, by the kernel's names (net/ethtool/common.c): a cable without
	// tx-tcp-segmentation and tx-udp-segmentation carries packets of the MTU, as most real ones do.
	Off []Offload
}

// Plug is one end of a cable: the device's name in its namespace, and its addresses.
type Plug struct {
	Namespace *Namespace
	Device    string
	Addrs     []netip.Prefix
}

// carrierWait bounds the wait for a cable to carry; the kernel's link watch works once a second (net/core/link_watch.c).
const carrierWait = 5 * time.Second

// Connect lays a cable between two namespaces and sets both ends up with their addresses. When it returns, the cable
// carries.
func Connect(cable Cable, a, b Plug) error {
	if cable.MTU == 0 {
		cable.MTU = 1500
	}
	attrs := netlink.NewLinkAttrs()
	attrs.Name = a.Device
	attrs.MTU = cable.MTU
	attrs.Namespace = netlink.NsFd(a.Namespace.FD())
	if cable.QueueLimit > 0 {
		attrs.TxQLen = cable.QueueLimit
	}
	veth := netlink.NewVeth(attrs)
	veth.PeerName = b.Device
	veth.PeerNamespace = netlink.NsFd(b.Namespace.FD())
	veth.PeerMTU = uint32(cable.MTU)
	if cable.QueueLimit > 0 {
		veth.PeerTxQLen = cable.QueueLimit
	}
	if err := netlink.LinkAdd(veth); err != nil {
		return fmt.Errorf("lab: cable %s %s - %s %s: %w", a.Namespace.name, a.Device, b.Namespace.name, b.Device, err)
	}
	for _, p := range []Plug{a, b} {
		for _, off := range cable.Off {
			if err := p.Namespace.SetOffload(p.Device, off, false); err != nil {
				return err
			}
		}
		for _, addr := range p.Addrs {
			if err := p.Namespace.AddAddr(p.Device, addr); err != nil {
				return err
			}
		}
		if err := p.Namespace.SetUp(p.Device); err != nil {
			return err
		}
	}
	for _, p := range []Plug{a, b} {
		if err := p.Namespace.waitCarrier(p.Device); err != nil {
			return err
		}
	}
	return nil
}

// waitCarrier waits until a device is operational. Before that the kernel drops what is sent, without an error.
func (ns *Namespace) waitCarrier(device string) error {
	return ns.withLink(device, "wait for", func(l netlink.Link) error {
		for deadline := time.Now().Add(carrierWait); ; time.Sleep(time.Millisecond) {
			now, err := ns.handle.LinkByIndex(l.Attrs().Index)
			if err != nil {
				return err
			}
			if now.Attrs().OperState == netlink.OperUp {
				return nil
			}
			if time.Now().After(deadline) {
				return fmt.Errorf("no carrier after %v", carrierWait)
			}
		}
	})
}
