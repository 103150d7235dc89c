package lab

import (
	"errors"
	"fmt"
	"net/netip"
)

// Internet is a hub with public addresses to which sites are joined, each with a router that may translate. It routes between
// them.
type Internet struct {
	Hub   *Namespace
	void  *Namespace // where the hub's default route ends: nobody is there
	sites []*Site
}

// HubAddr is the hub's own address, HubAddr2 a second one, as of another machine.
var (
	HubAddr  = netip.MustParseAddr("198.18.0.1")
	HubAddr2 = netip.MustParseAddr("198.18.0.2")
	// PublicNet has all addresses that are not private in the lab. It is the benchmark network of RFC 2544, which relays
	// refuse unless they are told that it is allowed.
	PublicNet = netip.MustParsePrefix("198.18.0.0/15")
)

// Site is a node behind a router.
type Site struct {
	Node, Router *Namespace
	// Device is the node's that leads to the router.
	Device string
	// Addr is the node's own address, on Device; Public is the router's on device wan.
	Addr, Public netip.Addr
	// Port is the device of the hub that leads to the site.
	Port string
	// Line is its uplink if it was joined by AddDistantSite; direction 0 leads to the hub.
	Line   *Line
	number byte
	kind   NAT
	uplink bool // of another site's node
}

var everywhere = netip.PrefixFrom(netip.IPv4Unspecified(), 0)

// NewInternet makes a hub without sites.
func NewInternet() (*Internet, error) {
	hub, err := NewNamespace("hub")
	if err != nil {
		return nil, err
	}
	net := &Internet{Hub: hub}
	for _, addr := range []netip.Addr{HubAddr, HubAddr2} {
		if err := hub.AddAddr("lo", netip.PrefixFrom(addr, 32)); err != nil {
			return nil, errors.Join(err, net.Close())
		}
	}
	if err := errors.Join(hub.translate(NoNAT, "", netip.Addr{}), net.addVoid()); err != nil {
		return nil, errors.Join(err, net.Close())
	}
	return net, nil
}

// addVoid gives the hub a default route, so that what goes to nobody is lost on the way and no error of the sender's.
func (i *Internet) addVoid() (err error) {
	if i.void, err = NewNamespace("void"); err != nil {
		return err
	}
	beyond := netip.MustParseAddr("198.19.255.2")
	if err := Connect(Cable{}, plug(i.void, "eth0", beyond), plug(i.Hub, "void", netip.MustParseAddr("198.19.255.1"))); err != nil {
		return err
	}
	return i.Hub.AddRoute(everywhere, "void", beyond)
}

// AddSite joins a site. The node has 192.168.N.2 behind its router, which has 198.18.N.2; without NAT the node's address is
// 198.19.N.2. uplink is the cable between router and hub.
func (i *Internet) AddSite(name string, kind NAT, uplink Cable) (*Site, error) {
	return i.addSite(name, kind, func(_ *Site, router, hub Plug) error { return Connect(uplink, router, hub) })
}

// AddDistantSite is AddSite with an uplink that can be impaired.
func (i *Internet) AddDistantSite(name string, kind NAT, both Impairment) (*Site, error) {
	return i.addSite(name, kind, func(s *Site, router, hub Plug) (err error) {
		if s.Line, err = ConnectLine(Cable{}, router, hub); err == nil {
			s.Line.ImpairBoth(both)
		}
		return err
	})
}

func (i *Internet) addSite(name string, kind NAT, connect func(s *Site, router, hub Plug) error) (*Site, error) {
	node, err := NewNamespace(name)
	if err != nil {
		return nil, err
	}
	s := &Site{Node: node, Device: "eth0"}
	if err := i.addRouter(s, name, kind, connect); err != nil {
		return nil, err
	}
	return s, s.Node.AddRoute(everywhere, s.Device, host(s.lan(), 1))
}

// addRouter joins the node of s by a router of its own; the node has no default route yet.
func (i *Internet) addRouter(s *Site, name string, kind NAT, connect func(s *Site, router, hub Plug) error) (err error) {
	i.sites = append(i.sites, s)
	s.number, s.kind = byte(len(i.sites)), kind
	s.Port = fmt.Sprintf("site%d", s.number)
	if s.Router, err = NewNamespace(name + "-router"); err != nil {
		return err
	}
	s.Addr, s.Public = host(s.lan(), 2), host(s.wan(), 2)
	if err := Connect(Cable{}, plug(s.Router, "lan", host(s.lan(), 1)), plug(s.Node, s.Device, s.Addr)); err != nil {
		return err
	}
	if err := connect(s, plug(s.Router, "wan", s.Public), plug(i.Hub, s.Port, host(s.wan(), 1))); err != nil {
		return err
	}
	if err := s.Router.AddRoute(everywhere, "wan", host(s.wan(), 1)); err != nil {
		return err
	}
	if kind == NoNAT {
		if err := i.Hub.AddRoute(s.lan(), s.Port, s.Public); err != nil {
			return err
		}
	}
	return s.Router.translate(kind, "wan", s.Addr)
}

// lan is the network behind the router, wan the one before it.
func (s *Site) lan() netip.Prefix {
	if s.kind == NoNAT {
		return netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 19, s.number, 0}), 24)
	}
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{192, 168, s.number, 0}), 24)
}

func (s *Site) wan() netip.Prefix {
	return netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, s.number, 0}), 24)
}

// AddHost joins a machine to a node's own network 10.9.N.0/24: the node has .1 on device lan0, the machine .2 on eth0.
func (s *Site) AddHost(name string) (machine *Namespace, network netip.Prefix, err error) {
	network = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 9, s.number, 0}), 24)
	if machine, err = NewNamespace(name); err != nil {
		return nil, network, err
	}
	return machine, network, Connect(Cable{}, plug(s.Node, "lan0", host(network, 1)), plug(machine, "eth0", host(network, 2)))
}

// Close frees all namespaces, but for the machines of AddHost.
func (i *Internet) Close() error {
	errs := []error{i.Hub.Close()}
	if i.void != nil {
		errs = append(errs, i.void.Close())
	}
	for _, s := range i.sites {
		if s.Line != nil {
			errs = append(errs, s.Line.Close())
		}
		if s.Router != nil {
			errs = append(errs, s.Router.Close())
		}
		if !s.uplink {
			errs = append(errs, s.Node.Close())
		}
	}
	return errors.Join(errs...)
}

func plug(ns *Namespace, device string, addr netip.Addr) Plug {
	return Plug{Namespace: ns, Device: device, Addrs: []netip.Prefix{netip.PrefixFrom(addr, 24)}}
}

// host is the nth address of an IPv4 network.
func host(p netip.Prefix, n byte) netip.Addr {
	b := p.Addr().As4()
	b[3] += n
	return netip.AddrFrom4(b)
}
