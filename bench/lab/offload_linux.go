package lab

import (
	"encoding/binary"
	"errors"
	"fmt"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// Offload is the kernel's name of a device feature, net/ethtool/common.c netdev_features_strings.
type Offload string

// Offloads that matter to a tunnel.
const (
	TCPSegmentation Offload = "tx-tcp-segmentation"  // TSO for IPv4
	TCP6Segment     Offload = "tx-tcp6-segmentation" // TSO for IPv6
	UDPSegmentation Offload = "tx-udp-segmentation"  // UDP_SEGMENT passed on whole
	ReceiveGRO      Offload = "rx-gro"
	ReceiveUDPGRO   Offload = "rx-udp-gro-forwarding"
	TransmitCsum    Offload = "tx-checksum-ip-generic"
)

// genlHeader is struct genlmsghdr.
type genlHeader struct{ command, version uint8 }

func (h genlHeader) Len() int          { return 4 }
func (h genlHeader) Serialize() []byte { return []byte{h.command, h.version, 0, 0} }

// ethtool asks the ethtool family of generic netlink about one device. It runs in the namespace of the calling thread.
func ethtool(command uint8, flags int, device string, more ...*nl.RtAttr) ([][]byte, error) {
	family, err := genlFamily("ethtool")
	if err != nil {
		return nil, fmt.Errorf("ethtool netlink family (CONFIG_ETHTOOL_NETLINK, Linux 5.6): %w", err)
	}
	req := nl.NewNetlinkRequest(family, flags)
	req.AddData(genlHeader{command: command, version: 1})
	header := nl.NewRtAttr(unix.ETHTOOL_A_FEATURES_HEADER|unix.NLA_F_NESTED, nil)
	header.AddRtAttr(unix.ETHTOOL_A_HEADER_DEV_NAME, nl.ZeroTerminated(device))
	req.AddData(header)
	for _, attr := range more {
		req.AddData(attr)
	}
	return req.Execute(unix.NETLINK_GENERIC, 0)
}

// genlFamily asks for the number of a family of generic netlink. (netlink.GenlFamilyGet reads beyond its two bytes of header, into
// memory of other goroutines.)
func genlFamily(name string) (int, error) {
	req := nl.NewNetlinkRequest(unix.GENL_ID_CTRL, 0)
	req.AddData(genlHeader{command: unix.CTRL_CMD_GETFAMILY, version: 1})
	req.AddData(nl.NewRtAttr(unix.CTRL_ATTR_FAMILY_NAME, nl.ZeroTerminated(name)))
	replies, err := req.Execute(unix.NETLINK_GENERIC, 0)
	if err != nil {
		return 0, err
	}
	for _, reply := range replies {
		for _, id := range descend(reply[min(4, len(reply)):], unix.CTRL_ATTR_FAMILY_ID) {
			if len(id) >= 2 {
				return int(binary.NativeEndian.Uint16(id)), nil
			}
		}
	}
	return 0, errors.New("no answer")
}

// SetOffload switches an offload of a device on or off (ETHTOOL_MSG_FEATURES_SET). A feature that the device does not have
// or that is fixed is an error.
func (ns *Namespace) SetOffload(device string, o Offload, on bool) error {
	wanted := nl.NewRtAttr(unix.ETHTOOL_A_FEATURES_WANTED|unix.NLA_F_NESTED, nil)
	bits := wanted.AddRtAttr(unix.ETHTOOL_A_BITSET_BITS|unix.NLA_F_NESTED, nil)
	bit := bits.AddRtAttr(unix.ETHTOOL_A_BITSET_BITS_BIT|unix.NLA_F_NESTED, nil)
	bit.AddRtAttr(unix.ETHTOOL_A_BITSET_BIT_NAME, nl.ZeroTerminated(string(o)))
	if on {
		bit.AddRtAttr(unix.ETHTOOL_A_BITSET_BIT_VALUE, nil)
	}
	err := ns.Run(func() error {
		_, err := ethtool(unix.ETHTOOL_MSG_FEATURES_SET, unix.NLM_F_ACK, device, wanted)
		return err
	})
	if err == nil {
		// The kernel acknowledges also what it did not change.
		var now bool
		if now, err = ns.Offload(device, o); err == nil && now != on {
			err = errors.New("the device does not allow it")
		}
	}
	if err != nil {
		return fmt.Errorf("lab: %s: switch %s of %s: %w", ns.name, o, device, err)
	}
	return nil
}

// Offload reports whether an offload of a device is active (ETHTOOL_MSG_FEATURES_GET).
func (ns *Namespace) Offload(device string, o Offload) (bool, error) {
	var replies [][]byte
	err := ns.Run(func() (err error) {
		replies, err = ethtool(unix.ETHTOOL_MSG_FEATURES_GET, unix.NLM_F_ACK, device)
		return err
	})
	if err != nil {
		return false, fmt.Errorf("lab: %s: offloads of %s: %w", ns.name, device, err)
	}
	for _, reply := range replies {
		if len(reply) < 4 {
			continue
		}
		for _, bit := range descend(reply[4:], unix.ETHTOOL_A_FEATURES_ACTIVE, unix.ETHTOOL_A_BITSET_BITS, unix.ETHTOOL_A_BITSET_BITS_BIT) {
			for _, name := range descend(bit, unix.ETHTOOL_A_BITSET_BIT_NAME) {
				if nl.BytesToString(name) == string(o) {
					return true, nil
				}
			}
		}
	}
	return false, nil
}

// descend returns the payloads of all attributes at the end of a path of nested attribute types.
func descend(b []byte, path ...uint16) [][]byte {
	var found [][]byte
	for len(b) >= 4 {
		size := int(binary.NativeEndian.Uint16(b))
		kind := binary.NativeEndian.Uint16(b[2:]) &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER)
		if size < 4 || size > len(b) {
			break
		}
		if kind == path[0] {
			if len(path) == 1 {
				found = append(found, b[4:size])
			} else {
				found = append(found, descend(b[4:size], path[1:]...)...)
			}
		}
		b = b[min(len(b), (size+3)&^3):]
	}
	return found
}
