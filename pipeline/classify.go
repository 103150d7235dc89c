package pipeline

import "github.com/sluice-vpn/sluice/crypto"

// datagramClass is what a datagram is, judged by its first bytes alone.
type datagramClass uint8

const (
	classOther datagramClass = iota // STUN, ChannelData before it is stripped, noise
	classTransport
	classHandshake
	classMalformed // a WireGuard type with an impossible length
)

// classify tells what a datagram is. WireGuard is tested first: its type word leaves the STUN magic cookie's place to the
// receiver index, which may hold any value. The lengths are those of the kernel's validate_header_len (receive.c).
func classify(b []byte) datagramClass {
	if len(b) < 4 || b[0] == 0 || b[0] > 4 || b[1]|b[2]|b[3] != 0 {
		return classOther
	}
	kind, ok := crypto.Classify(b)
	switch {
	case !ok:
		return classMalformed
	case kind == crypto.MessageTransport:
		return classTransport
	default:
		return classHandshake
	}
}
