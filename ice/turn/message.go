package turn

import (
	"net/netip"
	"time"

	"github.com/sluice-vpn/sluice/ice/stun"
)

// udpProtocol is UDP's number in REQUESTED-TRANSPORT (RFC 8656, section 18.8).
const udpProtocol = 17

// seconds is a duration as LIFETIME counts it.
func seconds(d time.Duration) uint32 { return uint32(d / time.Second) }

// addressOf reads an address attribute, Unmap()ed. ok is false if it is absent or nothing that one can send to.
func addressOf(m *stun.Message, kind stun.Attr) (a netip.AddrPort, ok bool) {
	a = stun.Unmap(m.Address(kind))
	return a, sendable(a.Addr()) && a.Port() != 0
}

// sendable tells whether an address can be a peer's or a relayed one at all. What may be reached is the server's decision.
func sendable(a netip.Addr) bool {
	return a.IsValid() && a.Zone() == "" && !a.IsUnspecified() && !a.IsMulticast() &&
		a != netip.AddrFrom4([4]byte{255, 255, 255, 255})
}

// lifetimeOf reads LIFETIME.
func lifetimeOf(m *stun.Message) (time.Duration, bool) {
	v, ok := m.Uint32(stun.Lifetime)
	return time.Duration(v) * time.Second, ok
}

// maxSend is the largest payload that fits one indication in one datagram.
const maxSend = 65000

// indication is a Send indication with data for a peer (RFC 8656, section 11.1), or a Data indication with data of one (section 11.3); the
// peer must be Unmap()ed. nil: data is longer than 65,000 bytes. A server passes it on only if the peer's address was permitted (Bind,
// Permit).
func indication(method stun.Method, id stun.ID, peer netip.AddrPort, data []byte) []byte {
	if len(data) > maxSend {
		return nil
	}
	w := stun.Build(make([]byte, 0, 64+len(data)), stun.Indication, method, id)
	w.XORAddress(stun.XORPeerAddress, peer)
	w.Add(stun.Data, data)
	return w.Bytes()
}
