package lab

import "net/netip"

// This file is what a node's network goes through while the node moves about.

// AddUplink joins the node of a site to another router, of that kind, on device eth1. The device is down at first: Join moves
// the node there.
func (i *Internet) AddUplink(of *Site, name string, kind NAT) (*Site, error) {
	s := &Site{Node: of.Node, Device: "eth1", uplink: true}
	err := i.addRouter(s, name, kind, func(_ *Site, router, hub Plug) error { return Connect(Cable{}, router, hub) })
	if err != nil {
		return nil, err
	}
	return s, s.Leave()
}

// Leave takes the node off the router: its device is down, and the default route is gone with it.
func (s *Site) Leave() error { return s.Node.SetDown(s.Device) }

// Join brings it back. When it returns, the link carries and is the default route.
func (s *Site) Join() error {
	if err := s.Node.SetUp(s.Device); err != nil {
		return err
	}
	if err := s.Node.waitCarrier(s.Device); err != nil {
		return err
	}
	return s.Node.AddRoute(everywhere, s.Device, host(s.lan(), 1))
}

// Readdress gives the node the next address of its network, as another lease does. Not for a Cone, whose router knows the
// address.
func (s *Site) Readdress() error {
	old := s.Addr
	s.Addr = s.Addr.Next()
	return readdress(s.Node, s.Device, old, s.Addr, host(s.lan(), 1))
}

// Renumber gives the router the next public address, as a provider does when it connects anew. The node's system hears nothing
// of it. Not for NoNAT, behind which the hub would look for the node at the old one.
func (s *Site) Renumber() error {
	old := s.Public
	s.Public = s.Public.Next()
	if err := readdress(s.Router, "wan", old, s.Public, host(s.wan(), 1)); err != nil {
		return err
	}
	return s.Router.ForgetMappings()
}

func readdress(ns *Namespace, device string, old, next, gateway netip.Addr) error {
	if err := ns.Readdress(device, netip.PrefixFrom(old, 24), netip.PrefixFrom(next, 24)); err != nil {
		return err
	}
	return ns.AddRoute(everywhere, device, gateway)
}
