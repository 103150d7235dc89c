package pipeline

import (
	"reflect"
	"sort"
	"strings"
	"sync/atomic"
	"unicode"
)

// dropReason names why a packet or datagram went no further. Each is a counter; nothing is logged per packet.
type dropReason uint8

// The drop reasons of the data plane, in packet order: outbound, inbound, control.
const (
	dropNotIP             dropReason = iota // TUN packet without a usable IP header
	dropNoRoute                             // no peer's allowed IPs cover the destination
	dropNoEndpoint                          // the peer has no path yet
	dropHousekeeping                        // the host's own router solicitation or group report, and no session yet that it could take
	dropRoutingLoop                         // our own datagram: the route to the peer's endpoint leads into the tunnel
	dropTooBig                              // longer than a UDP datagram can carry
	dropStagedFull                          // too many packets waited for a session: 128 of a peer, or all that a shard keeps
	dropStagedExpired                       // waited for a session that did not come about
	dropSendStalled                         // the socket took nothing for too long, or was closed
	dropFamily                              // no socket of the path's address family
	dropStray                               // not WireGuard and nobody asked for such datagrams
	dropMalformed                           // a WireGuard type with an impossible length
	dropChannelData                         // from a relay, and shorter than it says or than a header
	dropMailboxFull                         // handshake queue full
	dropUnknownIndex                        // receiver index of no session of ours
	dropExpiredKeypair                      // the session is too old
	dropUnauthentic                         // tag wrong
	dropReplayed                            // counter seen before or too old
	dropInnerMalformed                      // decrypted bytes are no IP packet
	dropSourceNotAllowed                    // inner source address belongs to another peer or none
	dropDestinationNotOwn                   // inner destination address is none of those that a client has in the tunnel
	dropECN                                 // congestion mark on an inner packet that is not ECN capable (RFC 6040)
	dropTUNFull                             // the device took nothing more
	dropTUNDown                             // the device failed; while it is merely down the queue counts (tun_write_down)
	dropReasons
)

var dropNames = [dropReasons]string{
	"not_ip", "no_route", "no_endpoint", "housekeeping", "routing_loop", "too_big", "staged_full", "staged_expired", "send_stalled", "no_address_family", "stray",
	"malformed", "channel_data", "mailbox_full", "unknown_index", "expired_keypair", "unauthentic", "replayed", "inner_malformed",
	"source_not_allowed", "destination_not_own", "ecn", "tun_full", "tun_down",
}

// shardStats counts a shard's work. Written by the shard, read by any goroutine.
type shardStats struct {
	Wakes            atomic.Uint64 // returns from waiting
	OutboundBatches  atomic.Uint64 // with at least one packet
	OutboundPackets  atomic.Uint64 // superpackets read
	OutboundSegments atomic.Uint64 // packets sealed
	OutboundBlocked  atomic.Uint64 // flushes that found the socket full
	InboundBatches   atomic.Uint64
	InboundMessages  atomic.Uint64 // messages, each a GRO run
	InboundDatagrams atomic.Uint64 // datagrams in them
	InboundPackets   atomic.Uint64 // packets delivered to the TUN, before coalescing
	InboundRuns      atomic.Uint64 // writes to the TUN, after coalescing
	Keepalives       atomic.Uint64 // received
	ICMPErrors       atomic.Uint64 // ICMP errors sent, by the host or through the TUN
	ChannelSent      atomic.Uint64 // ChannelData made for relays: packets sealed, and control's own messages at the first shard
	ChannelReceived  atomic.Uint64 // well-formed ChannelData of relays, whatever was in it

	drops [dropReasons]atomic.Uint64
}

func (s *shardStats) drop(r dropReason, n int) { s.drops[r].Add(uint64(n)) }

// Counter is one named count. Names are stable; see the constants and the Stats of packages tun and udp.
type Counter struct {
	Name  string
	Value uint64
}

// counterSet sums counters by name.
type counterSet map[string]uint64

// addFields adds every atomic.Uint64 field of the struct that stats points to, as prefix plus the field's name in snake case.
func (c counterSet) addFields(prefix string, stats any) {
	v := reflect.ValueOf(stats).Elem()
	for i := range v.NumField() {
		if f := v.Type().Field(i); f.IsExported() && f.Type == reflect.TypeFor[atomic.Uint64]() {
			c[prefix+snakeCase(f.Name)] += v.Field(i).Addr().Interface().(*atomic.Uint64).Load()
		}
	}
}

func (c counterSet) addDrops(drops *[dropReasons]atomic.Uint64) {
	for i := range drops {
		c["drop_"+dropNames[i]] += drops[i].Load()
	}
}

func (c counterSet) sorted() []Counter {
	list := make([]Counter, 0, len(c))
	for name, value := range c {
		list = append(list, Counter{name, value})
	}
	sort.Slice(list, func(i, j int) bool { return list[i].Name < list[j].Name })
	return list
}

// snakeCase turns a field's name into a counter's: ReceiveGRO is receive_gro.
func snakeCase(s string) string {
	var b strings.Builder
	for i, r := range s {
		if unicode.IsUpper(r) && i > 0 && !unicode.IsUpper(rune(s[i-1])) {
			b.WriteByte('_')
		}
		b.WriteRune(unicode.ToLower(r))
	}
	return b.String()
}
