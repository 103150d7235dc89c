package pipeline

import (
	"sync/atomic"

	"github.com/sluice-vpn/sluice/pipeline/count"
)

// dropReason names why a packet or datagram went no further. Each is a counter; nothing is logged per packet.
type dropReason uint8

// The drop reasons of the data plane, in packet order: outbound, inbound. dropTable says what each means.
const (
	dropNotIP dropReason = iota
	dropNoRoute
	dropNoEndpoint
	dropHousekeeping
	dropRoutingLoop
	dropTooBig
	dropStagedFull
	dropStagedExpired
	dropSendStalled
	dropFamily
	dropStray
	dropMalformed
	dropChannelData
	dropMailboxFull
	dropUnknownIndex
	dropExpiredKeypair
	dropUnauthentic
	dropReplayed
	dropInnerMalformed
	dropSourceNotAllowed
	dropDestinationNotOwn
	dropUnasked
	dropECN
	dropTUNFull
	dropTUNDown
	dropReasons
)

// dropTable declares the counters of drops: the stage, the reason, which drop_ begins the name of, and what it means.
var dropTable = [dropReasons]struct{ stage, reason, help string }{
	dropNotIP:             {"outbound", "not_ip", "TUN packet without a usable IP header."},
	dropNoRoute:           {"outbound", "no_route", "No peer's allowed IPs cover the destination."},
	dropNoEndpoint:        {"outbound", "no_endpoint", "The peer has no path yet."},
	dropHousekeeping:      {"outbound", "housekeeping", "The host's own router solicitation or group report, and no session yet that it could take."},
	dropRoutingLoop:       {"outbound", "routing_loop", "Our own datagram: the route to the peer's endpoint leads into the tunnel."},
	dropTooBig:            {"outbound", "too_big", "Longer than a UDP datagram can carry."},
	dropStagedFull:        {"outbound", "staged_full", "Too many packets waited for a session: 128 of a peer, or all that a shard keeps."},
	dropStagedExpired:     {"outbound", "staged_expired", "Waited for a session that did not come about."},
	dropSendStalled:       {"outbound", "send_stalled", "The socket took nothing for too long, or was closed."},
	dropFamily:            {"outbound", "no_address_family", "No socket of the path's address family."},
	dropStray:             {"inbound", "stray", "Not WireGuard and nobody asked for such datagrams."},
	dropMalformed:         {"inbound", "malformed", "A WireGuard type with an impossible length."},
	dropChannelData:       {"inbound", "channel_data", "From a relay, and shorter than it says or than a header."},
	dropMailboxFull:       {"inbound", "mailbox_full", "Handshake queue full."},
	dropUnknownIndex:      {"inbound", "unknown_index", "Receiver index of no session of ours."},
	dropExpiredKeypair:    {"inbound", "expired_keypair", "The session is too old."},
	dropUnauthentic:       {"inbound", "unauthentic", "Tag wrong."},
	dropReplayed:          {"inbound", "replayed", "Counter seen before or too old."},
	dropInnerMalformed:    {"inbound", "inner_malformed", "Decrypted bytes are no IP packet."},
	dropSourceNotAllowed:  {"inbound", "source_not_allowed", "Inner source address belongs to another peer or none."},
	dropDestinationNotOwn: {"inbound", "destination_not_own", "Inner destination address is none of those that a client has in the tunnel."},
	dropUnasked:           {"inbound", "unasked", "Answers nothing that this node has sent, and it takes only answers."},
	dropECN:               {"inbound", "ecn", "Congestion mark on an inner packet that is not ECN capable (RFC 6040)."},
	dropTUNFull:           {"inbound", "tun_full", "The device took nothing more."},
	dropTUNDown:           {"inbound", "tun_down", "The device failed; while it is merely down the queue counts (tun_write_down)."},
}

// shardStats counts a shard's work. Written by the shard, read by any goroutine.
type shardStats struct {
	Wakes            atomic.Uint64 `help:"Returns of shards from waiting."`
	OutboundBatches  atomic.Uint64 `help:"Batches read from the TUN device, with at least one packet."`
	OutboundPackets  atomic.Uint64 `help:"Packets to send, as read from the TUN device; a superpacket is one."`
	OutboundSegments atomic.Uint64 `help:"Packets sealed."`
	OutboundBlocked  atomic.Uint64 `help:"Flushes that found the socket full."`
	InboundBatches   atomic.Uint64 `help:"Batches received from UDP sockets."`
	InboundMessages  atomic.Uint64 `help:"Messages received, each a run of datagrams."`
	InboundDatagrams atomic.Uint64 `help:"Datagrams in the messages received."`
	InboundPackets   atomic.Uint64 `help:"Packets opened and given to the TUN device, before coalescing."`
	InboundRuns      atomic.Uint64 `help:"Packets given to the TUN device, after coalescing."`
	Keepalives       atomic.Uint64 `help:"Keepalives received."`
	ICMPErrors       atomic.Uint64 `help:"ICMP errors sent, by the host or through the TUN device."`
	ChannelSent      atomic.Uint64 `help:"ChannelData made for relays."` // packets sealed, and control's own messages at the first shard
	ChannelReceived  atomic.Uint64 `help:"Well-formed ChannelData of relays, whatever was in it."`

	OutboundBatchPackets count.Histogram `help:"Packets in a batch read from the TUN device, after segmentation."`
	InboundBatchPackets  count.Histogram `help:"Datagrams in a batch received from a UDP socket."`
	OutboundSeconds      count.Histogram `unit:"1e-6" help:"From a batch read from the TUN device to its last datagram given to the socket; of one batch in 64, where that is on. In SLUICE_STATS in microseconds."`
	ReceiveSeconds       count.Histogram `unit:"1e-6" help:"From a batch's first datagram in the kernel to the batch received; of one batch in 64, where that is on and the kernel tells. In SLUICE_STATS in microseconds."`
	InboundSeconds       count.Histogram `unit:"1e-6" help:"From a batch received to its last packet written to the TUN device; of one batch in 64, where that is on. In SLUICE_STATS in microseconds."`

	drops [dropReasons]atomic.Uint64
}

func (s *shardStats) drop(r dropReason, n int) { s.drops[r].Add(uint64(n)) }

// counters are all of them.
func (s *shardStats) counters() []count.Counter {
	list := count.Of("", s)
	for r, d := range dropTable {
		list = append(list, count.Labeled(count.Dropped, "drop_"+d.reason, d.help, s.drops[r].Load(), "stage", d.stage, "reason", d.reason))
	}
	return list
}
