//go:build !linux

package ice

import (
	"net"
	"net/netip"
)

// socketRoutes learns the source of a route from a socket that is connected and sends nothing; more this system does not tell.
type socketRoutes struct{}

func newRouteTable(uint32) (routeTable, error) { return socketRoutes{}, nil }

func (socketRoutes) close() {}

func (socketRoutes) source(to netip.Addr) (source, bool) {
	conn, err := net.DialUDP("udp", nil, net.UDPAddrFromAddrPort(netip.AddrPortFrom(to, 9)))
	if err != nil {
		return source{}, false
	}
	defer conn.Close()
	from := conn.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
	for _, a := range (socketRoutes{}).addresses() {
		if a.addr == from {
			return a.source, true
		}
	}
	return source{}, false
}

func (socketRoutes) link(way) (int, bool) { return 0, false }

func (socketRoutes) addresses() (list []localAddress) {
	interfaces, err := net.Interfaces()
	if err != nil {
		return nil
	}
	for _, i := range interfaces {
		if i.Flags&net.FlagUp == 0 || i.Flags&net.FlagRunning == 0 {
			continue
		}
		addrs, err := i.Addrs()
		if err != nil {
			continue // it went away
		}
		for _, a := range addrs {
			if p, err := netip.ParsePrefix(a.String()); err == nil {
				list = append(list, localAddress{
					source: source{p.Addr().Unmap(), i.Index}, name: i.Name, pointToPoint: i.Flags&net.FlagPointToPoint != 0,
					loopback: i.Flags&net.FlagLoopback != 0,
				})
			}
		}
	}
	return list
}
