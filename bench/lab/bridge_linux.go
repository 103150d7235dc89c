package lab

import (
	"fmt"
	"net/netip"

	"github.com/vishvananda/netlink"
)

// AddBridges gives ns n bridges with a port each, as machines have that run containers: br1 has 172.17.0.1 and fd17:1::1, and so on.
// All carry. n is at most 200.
func (ns *Namespace) AddBridges(n int) error {
	for i := 1; i <= n; i++ {
		bridge := &netlink.Bridge{LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprintf("br%d", i)}}
		if err := ns.handle.LinkAdd(bridge); err != nil {
			return fmt.Errorf("lab: %s: add bridge: %w", ns.name, err)
		}
		port := &netlink.Veth{
			LinkAttrs: netlink.LinkAttrs{Name: fmt.Sprintf("port%d", i), MasterIndex: bridge.Index}, PeerName: fmt.Sprintf("inner%d", i),
		}
		if err := ns.handle.LinkAdd(port); err != nil {
			return fmt.Errorf("lab: %s: add port of bridge: %w", ns.name, err)
		}
		for _, device := range []string{port.PeerName, port.Name, bridge.Name} {
			if err := ns.SetUp(device); err != nil {
				return err
			}
		}
		for _, text := range []string{fmt.Sprintf("172.%d.0.1/16", 16+i), fmt.Sprintf("fd17:%d::1/64", i)} {
			if err := ns.AddAddr(bridge.Name, netip.MustParsePrefix(text)); err != nil {
				return err
			}
		}
	}
	return nil
}
