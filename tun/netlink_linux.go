//go:build linux && !sluice_portable

package tun

import (
	"encoding/binary"

	"golang.org/x/sys/unix"
)

// Netlink messages (include/uapi/linux/netlink.h), bytes to bytes.
const (
	netlinkHeaderLen = 16 // struct nlmsghdr
	attrHeaderLen    = 4  // struct nlattr
	attrTypeMask     = 0x3fff
)

// appendRequest appends a request without an answer but for what it asks for, and errors.
func appendRequest(b []byte, kind uint16, body []byte) []byte {
	b = binary.NativeEndian.AppendUint32(b, uint32(netlinkHeaderLen+len(body)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = binary.NativeEndian.AppendUint16(b, unix.NLM_F_REQUEST)
	b = append(b, 0, 0, 0, 0, 0, 0, 0, 0) // sequence and port
	return append(b, body...)
}

// appendAttr appends a netlink attribute, padded to four bytes.
func appendAttr(b []byte, kind uint16, value []byte) []byte {
	b = binary.NativeEndian.AppendUint16(b, uint16(attrHeaderLen+len(value)))
	b = binary.NativeEndian.AppendUint16(b, kind)
	b = append(b, value...)
	for len(b)%attrHeaderLen != 0 {
		b = append(b, 0)
	}
	return b
}

// findAttr returns the value of the first attribute of a kind, nil if there is none.
func findAttr(b []byte, kind uint16) []byte {
	for len(b) >= attrHeaderLen {
		n := int(binary.NativeEndian.Uint16(b))
		if n < attrHeaderLen || n > len(b) {
			return nil
		}
		if binary.NativeEndian.Uint16(b[2:])&attrTypeMask == kind {
			return b[attrHeaderLen:n]
		}
		b = b[min(len(b), (n+attrHeaderLen-1)&^(attrHeaderLen-1)):]
	}
	return nil
}
