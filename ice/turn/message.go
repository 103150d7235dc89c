package turn

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/pion/stun/v3"
)

// transactionID is the 96-bit number of a request. It is random, so that who does not see our requests cannot answer them.
type transactionID = [stun.TransactionIDSize]byte

// udpProtocol is UDP's number in REQUESTED-TRANSPORT (RFC 8656, section 18.8).
const udpProtocol = 17

// newRequest begins a request.
func newRequest(method stun.Method, id transactionID) *stun.Message {
	m := &stun.Message{TransactionID: id, Type: stun.NewType(method, stun.ClassRequest), Raw: make([]byte, 0, 256)}
	m.WriteHeader()
	return m
}

// addUint32 adds an attribute of 4 bytes.
func addUint32(m *stun.Message, kind stun.AttrType, v uint32) {
	m.Add(kind, binary.BigEndian.AppendUint32(nil, v))
}

// seconds is a duration as LIFETIME counts it.
func seconds(d time.Duration) uint32 { return uint32(d / time.Second) }

// appendXORAddress appends the value of an XOR address attribute (RFC 8489, section 14.2).
func appendXORAddress(b []byte, id *transactionID, a netip.AddrPort) []byte {
	family := byte(familyIPv6)
	if a.Addr().Is4() {
		family = familyIPv4
	}
	b = append(b, 0, family)
	b = binary.BigEndian.AppendUint16(b, a.Port()^magicCookie>>16)
	from := len(b)
	if family == familyIPv4 {
		ip := a.Addr().As4()
		b = append(b, ip[:]...)
	} else {
		ip := a.Addr().As16()
		b = append(b, ip[:]...)
	}
	xorAddress(b[from:], id)
	return b
}

// xorAddress turns an address of 4 or 16 bytes into its obfuscated form, or back.
func xorAddress(ip []byte, id *transactionID) {
	mask := [16]byte{magicCookie >> 24, magicCookie >> 16 & 0xFF, magicCookie >> 8 & 0xFF, magicCookie & 0xFF}
	copy(mask[4:], id[:])
	for i := range ip {
		ip[i] ^= mask[i]
	}
}

// xorAddressOf reads an XOR address attribute of a message that has passed check. ok is false if it is absent or nothing that
// one can send to.
func xorAddressOf(m *stun.Message, kind stun.AttrType) (a netip.AddrPort, ok bool) {
	v, err := m.Get(kind)
	if err != nil {
		return a, false
	}
	var ip [16]byte
	n := copy(ip[:], v[4:])
	xorAddress(ip[:n], &m.TransactionID)
	addr, _ := netip.AddrFromSlice(ip[:n])
	a = netip.AddrPortFrom(addr.Unmap(), binary.BigEndian.Uint16(v[2:])^magicCookie>>16)
	return a, sendable(a.Addr()) && a.Port() != 0
}

// sendable tells whether an address can be a peer's or a relayed one at all. What may be reached is the server's decision.
func sendable(a netip.Addr) bool {
	return a.IsValid() && a.Zone() == "" && !a.IsUnspecified() && !a.IsMulticast() &&
		a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// lifetimeOf reads LIFETIME.
func lifetimeOf(m *stun.Message) (time.Duration, bool) {
	v, err := m.Get(stun.AttrLifetime)
	if err != nil {
		return 0, false
	}
	return time.Duration(binary.BigEndian.Uint32(v)) * time.Second, true
}

// codeOf reads ERROR-CODE.
func codeOf(m *stun.Message) (stun.ErrorCode, bool) {
	v, err := m.Get(stun.AttrErrorCode)
	if err != nil {
		return 0, false
	}
	return stun.ErrorCode(int(v[2]&7)*100 + int(v[3])), true
}

// maxSend is the largest payload that fits one indication in one datagram.
const maxSend = 65000

// AppendSend appends a Send indication (RFC 8656, section 11.1) to dst: data for the peer, which must be Unmap()ed. Nothing is
// appended if data is longer than 65,000 bytes. It passes the server only if the peer's address was permitted (Bind, Permit).
// id should be random. It allocates only if dst is too small: 36 bytes and the data are needed for an IPv4 peer, 48 and the
// data for an IPv6 peer, and up to 3 bytes of padding.
func AppendSend(dst []byte, id [12]byte, peer netip.AddrPort, data []byte) []byte {
	if len(data) > maxSend {
		return dst
	}
	from := len(dst)
	dst = binary.BigEndian.AppendUint16(dst, stun.NewType(stun.MethodSend, stun.ClassIndication).Value())
	dst = append(dst, 0, 0)
	dst = binary.BigEndian.AppendUint32(dst, magicCookie)
	dst = append(dst, id[:]...)
	size := uint16(addressSizeIPv6)
	if peer.Addr().Is4() {
		size = addressSizeIPv4
	}
	dst = appendAttribute(dst, stun.AttrXORPeerAddress, size)
	dst = appendXORAddress(dst, &id, peer)
	dst = appendAttribute(dst, stun.AttrData, uint16(len(data)))
	dst = append(dst, data...)
	for (len(dst)-from)%4 != 0 {
		dst = append(dst, 0) // zero: padding must not tell what the buffer held before
	}
	binary.BigEndian.PutUint16(dst[from+2:], uint16(len(dst)-from-stunHeaderSize))
	return dst
}

func appendAttribute(b []byte, kind stun.AttrType, size uint16) []byte {
	return binary.BigEndian.AppendUint16(binary.BigEndian.AppendUint16(b, uint16(kind)), size)
}
