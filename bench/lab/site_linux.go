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
	// Addr is the node's own address, on device eth0; Public is the router's on device wan.
	Addr, Public netip.Addr
	// Port is the device of the hub that leads to the site.
	Port string
	// Line is its uplink if it was joined by AddDistantSite; direction 0 leads to the hub.
	Line   *Line
	number byte
}

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
	if err := hub.translate(NoNAT, "", netip.Addr{}); err != nil {
		return nil, errors.Join(err, net.Close())
	}
	return net, nil
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
	s := &Site{number: byte(len(i.sites) + 1)}
	s.Port = fmt.Sprintf("site%d", s.number)
	i.sites = append(i.sites, s)
	var err error
	if s.Node, err = NewNamespace(name); err != nil {
		return nil, err
	}
	if s.Router, err = NewNamespace(name + "-router"); err != nil {
		return nil, err
	}
	inner := netip.AddrFrom4([4]byte{192, 168, s.number, 0})
	if kind == NoNAT {
		inner = netip.AddrFrom4([4]byte{198, 19, s.number, 0})
	}
	lan := netip.PrefixFrom(inner, 24)
	wan := netip.PrefixFrom(netip.AddrFrom4([4]byte{198, 18, s.number, 0}), 24)
	s.Addr, s.Public = host(lan, 2), host(wan, 2)
	if err := Connect(Cable{}, plug(s.Router, "lan", host(lan, 1)), plug(s.Node, "eth0", s.Addr)); err != nil {
		return nil, err
	}
	if err := connect(s, plug(s.Router, "wan", s.Public), plug(i.Hub, s.Port, host(wan, 1))); err != nil {
		return nil, err
	}
	everywhere := netip.PrefixFrom(netip.IPv4Unspecified(), 0)
	if err := s.Node.AddRoute(everywhere, "eth0", host(lan, 1)); err != nil {
		return nil, err
	}
	if err := s.Router.AddRoute(everywhere, "wan", host(wan, 1)); err != nil {
		return nil, err
	}
	if kind == NoNAT {
		if err := i.Hub.AddRoute(lan, s.Port, s.Public); err != nil {
			return nil, err
		}
	}
	return s, s.Router.translate(kind, "wan", s.Addr)
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
	for _, s := range i.sites {
		if s.Line != nil {
			errs = append(errs, s.Line.Close())
		}
		for _, ns := range []*Namespace{s.Node, s.Router} {
			if ns != nil {
				errs = append(errs, ns.Close())
			}
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
