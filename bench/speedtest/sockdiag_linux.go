package speedtest

import (
	"encoding/binary"

	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"

	"github.com/sluice-vpn/sluice/bench/lab"
)

// From include/uapi/linux/inet_diag.h and sock_diag.h.
const (
	inetDiagSKMemory  = 7  // INET_DIAG_SKMEMINFO
	inetDiagReplySize = 72 // struct inet_diag_msg
	skMemoryRcvbuf    = 1  // index SK_MEMINFO_RCVBUF
	skMemorySndbuf    = 3  // index SK_MEMINFO_SNDBUF
)

// diagRequest is struct inet_diag_req_v2 without a socket id: all UDP sockets of a family.
type diagRequest struct{ family uint8 }

func (diagRequest) Len() int { return 56 }

func (r diagRequest) Serialize() []byte {
	b := make([]byte, 56)
	b[0], b[1], b[2] = r.family, unix.IPPROTO_UDP, 1<<(inetDiagSKMemory-1)
	binary.NativeEndian.PutUint32(b[4:], ^uint32(0)) // every state
	return b
}

// udpBuffers asks the kernel for the buffers of the UDP socket that is bound to port in ns, bytes; the largest if there are
// several. Zero if the kernel does not say (no udp_diag module).
func udpBuffers(ns *lab.Namespace, port uint16) (receive, send int) {
	_ = ns.Run(func() error {
		for _, family := range []uint8{unix.AF_INET, unix.AF_INET6} {
			req := nl.NewNetlinkRequest(nl.SOCK_DIAG_BY_FAMILY, unix.NLM_F_DUMP)
			req.AddData(diagRequest{family})
			replies, err := req.Execute(unix.NETLINK_INET_DIAG, 0)
			if err != nil {
				continue
			}
			for _, reply := range replies {
				r, s := parseDiag(reply, port)
				receive, send = max(receive, r), max(send, s)
			}
		}
		return nil
	})
	return receive, send
}

// parseDiag reads the buffers out of one inet_diag_msg with its attributes, if the socket has that port.
func parseDiag(b []byte, port uint16) (receive, send int) {
	if len(b) < inetDiagReplySize || binary.BigEndian.Uint16(b[4:]) != port {
		return 0, 0
	}
	for b = b[inetDiagReplySize:]; len(b) >= 4; {
		size := int(binary.NativeEndian.Uint16(b))
		if size < 4 || size > len(b) {
			return 0, 0
		}
		if binary.NativeEndian.Uint16(b[2:]) == inetDiagSKMemory && size >= 4+4*(skMemorySndbuf+1) {
			word := func(i int) int { return int(binary.NativeEndian.Uint32(b[4+4*i:])) }
			return word(skMemoryRcvbuf), word(skMemorySndbuf)
		}
		b = b[min(len(b), (size+3)&^3):]
	}
	return 0, 0
}
