package host

import (
	"errors"
	"net"
	"net/netip"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Connections lists the TCP connections and connected UDP sockets of this machine's programs from local addresses that one of these contains.
// Those of others, which this machine forwards, are not among them.
func Connections(local []netip.Prefix) (list []Connection, err error) {
	for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
		for protocol, dump := range map[uint8]func(uint8) ([]*netlink.Socket, error){
			unix.IPPROTO_TCP: netlink.SocketDiagTCP, unix.IPPROTO_UDP: netlink.SocketDiagUDP,
		} {
			sockets, e := retry(func() ([]*netlink.Socket, error) { return dump(family) })
			err = errors.Join(err, e)
			for _, s := range sockets {
				c := Connection{protocol, addrPort(s.ID.Source, s.ID.SourcePort), addrPort(s.ID.Destination, s.ID.DestinationPort)}
				if c.Remote.Port() != 0 && containsAddr(local, c.Local.Addr()) {
					list = append(list, c)
				}
			}
		}
	}
	return list, wrap(err, "list connections")
}

func addrPort(ip net.IP, port uint16) netip.AddrPort { return netip.AddrPortFrom(addrOf(ip), port) }
