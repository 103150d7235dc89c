package doctor

import (
	"errors"
	"os"
	"slices"
	"strconv"
	"strings"
	"unsafe"

	"github.com/google/nftables"
	"github.com/safchain/ethtool"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"

	"github.com/sluice-vpn/sluice/pipeline/udp"
	"github.com/sluice-vpn/sluice/tun"
)

// Examine looks at this machine, in the network namespace of the calling thread.
func Examine() Facts {
	f := Facts{OS: "linux", Kernel: kernel(), Root: os.Geteuid() == 0, Admin: mayAdmin(), Subuser: inUserNamespace()}
	f.TUN, f.UDP, f.Links = examineTUN(), examineUDP(), examineLinks()
	f.CorruptsSegments, f.CorruptsGRO = udp.KnownFaults()
	if conn, err := nftables.New(); err != nil {
		f.FilterError = err.Error()
	} else if _, err := conn.ListTables(); err != nil {
		f.FilterError = err.Error()
	} else {
		f.Filter = true
	}
	return f
}

func kernel() string {
	var u unix.Utsname
	if unix.Uname(&u) != nil {
		return ""
	}
	return unix.ByteSliceToString(u.Release[:])
}

// mayAdmin tells whether CAP_NET_ADMIN is among the effective capabilities (proc_pid_status(5)).
func mayAdmin() bool {
	text, _ := os.ReadFile("/proc/self/status") // empty: not known to be
	for line := range strings.Lines(string(text)) {
		if digits, ok := strings.CutPrefix(line, "CapEff:"); ok {
			bits, err := strconv.ParseUint(strings.TrimSpace(digits), 16, 64)
			return err == nil && bits&(1<<unix.CAP_NET_ADMIN) != 0
		}
	}
	return false
}

// inUserNamespace tells whether user 0 here is another one outside (user_namespaces(7)).
func inUserNamespace() bool {
	text, err := os.ReadFile("/proc/self/uid_map")
	return err == nil && !slices.Equal(strings.Fields(string(text)), []string{"0", "0", "4294967295"})
}

func examineTUN() (t TUN) {
	dev, err := tun.Open(tun.Options{Name: "sluicedoc%d"})
	if err != nil {
		t.Error, t.NoDriver, t.Permission = err.Error(), errors.Is(err, tun.ErrNoDriver), errors.Is(err, tun.ErrPermission)
		return t
	}
	defer dev.Close()
	c := dev.Capabilities()
	t.Made, t.Superpackets, t.TSO, t.USO = true, c.VNETHeader, c.TSO4 && c.TSO6, c.USO
	if l, err := netlink.LinkByName(dev.Name()); err == nil {
		t.QueueLength = l.Attrs().TxQLen
	}
	return t
}

func examineUDP() (u UDP) {
	u.ReceiveMost, u.SendMost = number("/proc/sys/net/core/rmem_max"), number("/proc/sys/net/core/wmem_max")
	pairs, err := udp.Listen(udp.Config{ReceiveBuffer: WantedBuffer})
	if err != nil {
		u.Error = err.Error()
		return u
	}
	for _, p := range pairs {
		for _, s := range []udp.Socket{p.V4, p.V6} {
			if s == nil {
				continue
			}
			o := s.Offloads()
			u.Segment, u.GRO, u.ReceiveBuffer, u.SendBuffer = o.SegmentSend, o.GROReceive, o.ReceiveBuffer, o.SendBuffer
			s.Close()
		}
	}
	// What is above the limit was only granted to who may pass it. Where the limit is above what is asked for, nobody needs to.
	u.Force = u.ReceiveMost > 0 && u.ReceiveBuffer > u.ReceiveMost || u.SendMost > 0 && u.SendBuffer > u.SendMost
	return u
}

// examineLinks lists the devices that default routes lead to.
func examineLinks() []Link {
	links := []Link{}
	routes, _ := netlink.RouteList(nil, netlink.FAMILY_ALL) // none: not known
	seen := map[int]bool{}
	tool, err := ethtool.NewEthtool()
	if err != nil {
		tool = nil
	} else {
		defer tool.Close()
	}
	for _, r := range routes {
		if r.Dst != nil && !r.Dst.IP.IsUnspecified() || r.LinkIndex == 0 || seen[r.LinkIndex] {
			continue
		}
		seen[r.LinkIndex] = true
		if l, err := netlink.LinkByIndex(r.LinkIndex); err == nil {
			links = append(links, examineLink(l.Attrs(), tool))
		}
	}
	return links
}

func examineLink(a *netlink.LinkAttrs, tool *ethtool.Ethtool) Link {
	l := Link{Name: a.Name, MTU: a.MTU, QueueLength: a.TxQLen, ReceiveQueues: a.NumRxQueues}
	if tool != nil {
		l.Driver, _ = tool.DriverName(a.Name)
		if features, err := tool.Features(a.Name); err == nil {
			for name, to := range map[string]**bool{"tx-udp-segmentation": &l.UDPSegment, "rx-gro": &l.GRO} {
				if on, known := features[name]; known {
					*to = &on
				}
			}
		}
	}
	l.HashPorts = hashesPorts(a.Name)
	return l
}

// rxnfc is the head of struct ethtool_rxnfc (include/uapi/linux/ethtool.h), with room for what the kernel may write.
type rxnfc struct {
	command, flow uint32
	data          uint64
	rest          [192]byte
}

// Numbers of include/uapi/linux/ethtool.h.
const (
	getReceiveHash = 0x29        // ETHTOOL_GRXFH
	udp4Flow       = 0x02        // UDP_V4_FLOW
	hashesBoth     = 1<<6 | 1<<7 // RXH_L4_B_0_1, RXH_L4_B_2_3: the ports
)

// hashesPorts asks whether a device puts UDP flows that differ in their ports only into different queues.
func hashesPorts(device string) *bool {
	fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		return nil
	}
	defer unix.Close(fd)
	question := rxnfc{command: getReceiveHash, flow: udp4Flow}
	var request struct {
		name [unix.IFNAMSIZ]byte
		data unsafe.Pointer
		rest [16]byte
	}
	copy(request.name[:unix.IFNAMSIZ-1], device)
	request.data = unsafe.Pointer(&question)
	if _, _, errno := unix.Syscall(unix.SYS_IOCTL, uintptr(fd), unix.SIOCETHTOOL, uintptr(unsafe.Pointer(&request))); errno != 0 {
		return nil
	}
	both := question.data&hashesBoth == hashesBoth
	return &both
}

// number reads a file that holds one, 0 if it does not.
func number(path string) int {
	text, err := os.ReadFile(path)
	if err != nil {
		return 0
	}
	n, _ := strconv.Atoi(strings.TrimSpace(string(text)))
	return n
}
