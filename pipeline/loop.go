package pipeline

import (
	"encoding/binary"
	"net/netip"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/pipeline/frame"
	"github.com/sluice-vpn/sluice/tun/ip"
)

// This file stops routing loops: where the route to a peer's endpoint leads into the tunnel to that peer (a host route that was
// lost, allowed IPs that are too wide), each datagram that we send comes back in at the TUN, would be sealed and sent again, and
// one packet would become a storm. So our own datagrams to the endpoint of the very peer that their destination selects are
// dropped. Those to another peer's endpoint are not: carrying one peer's datagrams through another is onion routing.
//
// What is ours is known by what only we send, rather than by ports: a host behind us may speak WireGuard to the same server
// from the same port, and a NAT on the way may have changed ours.

// loopInterval is how often a peer's routing loop is told.
const loopInterval = 10 * time.Minute

// datagramID is what the fragments of one datagram share.
type datagramID struct {
	src, dst netip.Addr
	id       uint32
}

// ownDatagrams tells our own datagrams among the packets to one destination that selected a peer. It holds for one batch; the
// zero value is of a destination that is not the peer's endpoint.
type ownDatagrams struct {
	path    *Path // nil: the destination is not the peer's endpoint
	peer    *peer
	table   *crypto.IndexTable
	session *crypto.Keypair // that is sent with now, or nil
	port    uint16          // ours
	last    *datagramID     // of the datagram of ours whose first fragment came last
}

// ownDatagrams returns what tells our own datagrams to dst, which selected p (or nobody, nil): one comparison unless dst is p's
// endpoint.
func (o *outbound) ownDatagrams(now time.Duration, p *peer, dst netip.Addr) ownDatagrams {
	if p == nil {
		return ownDatagrams{}
	}
	path := p.path.Load()
	if path == nil || path.Dst.Addr() != dst {
		return ownDatagrams{}
	}
	return ownDatagrams{
		path: path, peer: p, table: o.shard.table, session: p.sending(now), port: o.shard.pair.LocalPort(), last: &o.loop,
	}
}

// include reports whether an IP packet for which ip.Length was ok is one of them, or a fragment of one. Fragments have neither
// ports nor content but for the first; they leave the kernel one behind the other, so the rest is told by the first one's
// identification. One that is not recognised goes around once more, as a whole datagram.
func (d *ownDatagrams) include(packet []byte) bool {
	t, ok := ip.FindTransport(packet)
	if !ok {
		return false
	}
	id := datagramID{ip.Source(packet), ip.Destination(packet), t.ID}
	if !t.First { // its protocol may be that of an extension header in front of UDP
		return *d.last == id
	}
	if t.Protocol != ip.ProtocolUDP || !d.sent(id.src, packet[t.Offset:]) {
		return false
	}
	if t.Fragment {
		*d.last = id
	}
	return true
}

// sent reports whether the UDP datagram, or what its first fragment has of it, is one that we have sent. It is transport data of
// the peer's session, an initiation or response with one of our indices, or, whatever it is (STUN, a cookie reply), from our own
// port and the address that the path begins at.
func (d *ownDatagrams) sent(src netip.Addr, datagram []byte) bool {
	if len(datagram) < ip.UDPHeaderLen || ip.UDP(datagram).DestinationPort() != d.path.Dst.Port() {
		return false
	}
	message := datagram[ip.UDPHeaderLen:]
	if d.path.Channel != 0 && frame.IsChannelData(message, frame.LastChannel) && len(message) >= frame.ChannelHeaderSize {
		message = message[frame.ChannelHeaderSize:]
	}
	switch kind, ok := crypto.Classify(message); {
	case ok && kind == crypto.MessageTransport && d.session != nil && crypto.Index(message) == d.session.RemoteIndex:
		return true
	case ok && (kind == crypto.MessageInitiation || kind == crypto.MessageResponse) && d.table.Owns(d.peer.core, crypto.Index(message)):
		return true
	}
	return src == d.path.Src && ip.UDP(datagram).SourcePort() == d.port
}

// looped tells control of a loop, once in a long while.
func (o *outbound) looped(now time.Duration, p *peer) {
	told := p.looped.Load()
	if (told == 0 || now-time.Duration(told) >= loopInterval) && p.looped.CompareAndSwap(told, int64(now)) {
		o.shard.notified.notify(p, signalLoop)
	}
}

// warnOfLoop says what is wrong and what helps.
func (c *controller) warnOfLoop(p *peer) {
	name := shortKey(p.key)
	if p.link != nil {
		name = *p.title.Load()
	}
	path := p.path.Load()
	if path == nil {
		return // nor is there a loop any more
	}
	c.log.Warn("routing loop: the route to the peer's endpoint leads into this tunnel, at once or by another one; give the endpoint a route of its own, "+
		"or take it out of the allowed IPs that cover it. What comes back is dropped", "peer", name, "endpoint", path.Dst)
}

// outerMarks are the fields of the outer header that follow from the inner packet.
type outerMarks struct {
	tos uint8
	ttl uint8 // 0: the host's default
}

// nestHops is what it costs, in hops of TTL, to carry the transport data of a tunnel in a tunnel. It ends loops that one peer's
// lane cannot see, of two peers or two programs whose endpoints have routes into each other's tunnels: each lap would wrap
// the packet once more with a fresh TTL, and when it has outgrown the MTU double it. With the usual TTL of 64 there are six laps,
// and a tunnel in a tunnel in a tunnel still has 44 hops to go.
const nestHops = 10

// nestedTTL returns the TTL for what carries a packet for which ip.Length was ok: 0, unless that is transport data itself. Not
// ok: its hops are used up.
func nestedTTL(packet []byte) (ttl uint8, ok bool) {
	if !isTransport(packet) {
		return 0, true
	}
	if ttl = packet[7]; packet[0]>>4 == 4 {
		ttl = packet[8]
	}
	if ttl <= nestHops {
		return 0, false
	}
	return ttl - nestHops, true
}

// isTransport reports whether an IP packet has the type word of WireGuard transport data at the beginning of its UDP payload, or
// behind a ChannelData header there. A later fragment has none, and starts anew, but small.
func isTransport(packet []byte) bool {
	header := ip.IPv6HeaderLen
	switch {
	case packet[0]>>4 == 4:
		h := ip.IPv4(packet)
		if h.Protocol() != ip.ProtocolUDP || h.FragmentOffset() != 0 {
			return false
		}
		header = h.HeaderLen()
	case packet[6] != ip.ProtocolUDP:
		if packet[6] == ip.ProtocolTCP { // the usual
			return false
		}
		t, ok := ip.FindTransport(packet)
		if !ok || !t.First || t.Protocol != ip.ProtocolUDP {
			return false
		}
		header = t.Offset
	}
	at := header + ip.UDPHeaderLen
	if len(packet) < at+frame.ChannelHeaderSize+crypto.SizeTransportHeader {
		return false
	}
	message := packet[at:]
	if frame.IsChannelData(message, frame.LastChannel) {
		message = message[frame.ChannelHeaderSize:]
	}
	return binary.LittleEndian.Uint32(message) == uint32(crypto.MessageTransport)
}
