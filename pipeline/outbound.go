package pipeline

import (
	"errors"
	"net/netip"
	"slices"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/crypto/aead"
	"github.com/sluice-vpn/sluice/pipeline/flow"
	"github.com/sluice-vpn/sluice/pipeline/frame"
	"github.com/sluice-vpn/sluice/tun"
	"github.com/sluice-vpn/sluice/tun/ip"
)

// outboundLane is a peer's lane from the TUN to the socket on one shard, owned by that shard.
type outboundLane struct {
	staged
	first, last int16         // chain of the peer's packets in the batch, by outbound.next
	asked       time.Duration // when control was last asked for a session
}

// wantInterval is how soon a lane asks control again for a session that does not come.
const wantInterval = 100 * time.Millisecond

// outbound carries packets from the shard's TUN queue to its sockets. The stages, in order: read, route, then for each
// peer segment, seal, and for all together send. Owned by the shard.
type outbound struct {
	shard *shard
	crew  *crew

	// read and route
	readArena []byte
	packets   [readPackets]tun.Superpacket
	next      [readPackets]int16
	lanes     []*peer    // that have packets in this batch, in order of their first
	flows     *flow.View // nil: nobody asks what was sent

	// segment and seal
	segmenter tun.Segmenter
	arena     []byte // what is sealed and sent; used is owned by runs until flushed
	used      int
	sealing   []aead.Packet
	unsealed  int // sealing[unsealed:] has not been given to the crew
	bytes     int // of sealing[unsealed:]
	keypair   *crypto.Keypair

	// send
	runs4, runs6 sendQueue
	loop         datagramID // of our own datagram whose first fragment came in last
	icmp         tokenBucket
	reply        []byte
}

// newOutbound makes the outbound lane of a shard.
func newOutbound(s *shard, workers int) *outbound {
	return &outbound{
		shard:     s,
		crew:      newCrew(workers),
		readArena: make([]byte, readBytes+tun.ReadBufferSize),
		arena:     make([]byte, sendBytes),
		lanes:     make([]*peer, 0, readPackets),
		sealing:   make([]aead.Packet, 0, batchPackets),
		runs4:     newSendQueue(),
		runs6:     newSendQueue(),
		reply:     make([]byte, 0, 1280),
	}
}

// run carries one batch and returns how many packets it read. While the socket is full nothing more is read: the TUN's
// queue is where packets wait.
func (o *outbound) run(now time.Duration) (int, error) {
	if o.full().any() && !o.flush() {
		return 0, nil
	}
	n, err := o.read()
	if n == 0 {
		return 0, err
	}
	st := o.shard.stats
	begin, before := o.shard.sample(st.OutboundBatches.Add(1)), st.OutboundSegments.Load()
	st.OutboundPackets.Add(uint64(n))
	o.route(now, n)
	for _, p := range o.lanes {
		o.carry(now, p)
	}
	clear(o.lanes)
	o.lanes = o.lanes[:0]
	o.flush() // what a full socket leaves for later is not waited for
	o.shard.observe(st.OutboundSegments.Load()-before, &st.OutboundBatchPackets, begin, &st.OutboundSeconds)
	return n, err
}

// 1. read drains the queue into the read arena, packets close together, until it is dry or the batch is full.
func (o *outbound) read() (int, error) {
	used, n := 0, 0
	for n < readPackets && used < readBytes {
		o.packets[n].Buf = o.readArena[used : used+tun.ReadBufferSize]
		got, err := o.shard.queue.Read(o.packets[n : n+1])
		if got == 0 || err != nil {
			if errors.Is(err, tun.ErrDown) {
				err = nil
			}
			return n, err
		}
		used += (tun.ReadHeadroom + len(o.packets[n].Data) + 63) &^ 63
		n++
	}
	return n, nil
}

// 2. route sorts the batch's packets into chains, one a peer, in their order.
func (o *outbound) route(now time.Duration, n int) {
	var lastDst netip.Addr
	var lastPeer *peer
	var own ownDatagrams
	for i := range n {
		if _, ok := ip.Length(o.packets[i].Data); !ok {
			o.drop(dropNotIP, nil, &o.packets[i])
			continue
		}
		dst := ip.Destination(o.packets[i].Data)
		if lastPeer == nil || lastDst != dst {
			lastPeer, lastDst = o.shard.routes.lookup(dst), dst
			own = o.ownDatagrams(now, lastPeer, dst)
		}
		if lastPeer == nil {
			o.drop(dropNoRoute, nil, &o.packets[i])
			o.unreachable(&o.packets[i])
			continue
		}
		if own.path != nil && own.include(o.packets[i].Data) {
			o.drop(dropRoutingLoop, lastPeer, &o.packets[i])
			o.looped(now, lastPeer)
			continue
		}
		if o.flows != nil {
			o.flows.Sent(now, o.packets[i].Data)
		}
		lane := &lastPeer.outbound[o.shard.id]
		o.next[i] = -1
		if lane.first < 0 {
			lane.first = int16(i)
			o.lanes = append(o.lanes, lastPeer)
		} else {
			o.next[lane.last] = int16(i)
		}
		lane.last = int16(i)
	}
}

// carry segments, seals and queues the batch's packets of one peer, or stages them until there is a session.
func (o *outbound) carry(now time.Duration, p *peer) {
	lane := &p.outbound[o.shard.id]
	i := lane.first
	lane.first = -1
	path, kp := p.way(now)
	if path == nil || kp == nil {
		o.hold(now, p, path, i)
		return
	}
	sealed := o.release(now, p, lane, path, kp)
	for ; i >= 0 && sealed; i = o.next[i] {
		if sealed = o.seal(path, kp, p, &o.packets[i]); !sealed {
			break
		}
	}
	for ; i >= 0; i = o.next[i] { // the keypair's counter ran out
		o.stage(p, &o.packets[i])
	}
	if !sealed || kp.RekeyOnSend(now) {
		o.want(now, p, lane)
	}
	o.sent(now, p)
}

// hold does what there is to do with the chain of packets from i on while there is no session: it stages them and asks for one, or
// answers that there is no way. What the host sends to its link of its own accord is no reason for a session, so that an interface
// that nobody uses stays silent (the kernel's WireGuard has no link-local address to send such from: device.c, wg_open).
func (o *outbound) hold(now time.Duration, p *peer, path *Path, i int16) {
	lane, reach, wanted := &p.outbound[o.shard.id], Reach(p.reach.Load()), false
	for ; i >= 0; i = o.next[i] {
		sp := &o.packets[i]
		switch {
		case ip.IsHousekeeping(sp.Data):
			o.drop(dropHousekeeping, p, sp)
			continue
		case path == nil && reach != ReachStage:
			o.drop(dropNoEndpoint, p, sp)
			o.unreachable(sp)
		default:
			o.stage(p, sp)
		}
		wanted = true
	}
	if wanted && (path != nil || reach != ReachNone) {
		o.want(now, p, lane)
	}
}

// release seals what was staged, ahead of anything newer. It returns false if the keypair's counter ran out; what is left
// stays staged.
func (o *outbound) release(now time.Duration, p *peer, lane *outboundLane, path *Path, kp *crypto.Keypair) bool {
	if len(lane.packets) == 0 {
		return true
	}
	o.sent(now, p)
	for len(lane.packets) > 0 {
		if !o.seal(path, kp, p, &lane.packets[0]) {
			return false
		}
		_, bytes := lane.pop()
		o.shard.staged -= bytes
	}
	lane.clear() // gives the memory back
	return true
}

// sent stamps that data left for the peer.
func (o *outbound) sent(now time.Duration, p *peer) {
	if p.stamps.sent(now, true) {
		o.shard.notified.notify(p, signalActivity)
	}
}

// stage keeps a copy of the packet until there is a session.
func (o *outbound) stage(p *peer, sp *tun.Superpacket) {
	lane := &p.outbound[o.shard.id]
	if o.shard.staged >= stagedBytes {
		o.drop(dropStagedFull, p, sp)
		return
	}
	var before []tun.Superpacket
	if o.shard.taking.tap != nil {
		before = slices.Clone(lane.packets)
	}
	oldest := sp.Data
	if len(lane.packets) > 0 {
		oldest = lane.packets[0].Data // which gives way first
	}
	dropped, grown := lane.push(sp)
	o.shard.staged += grown
	o.shard.stats.drop(dropStagedFull, dropped)
	p.drops.note(o.shard.now, dropStagedFull, dropped, oldest)
	for i := range max(0, len(before)+1-len(lane.packets)) { // the oldest have given way
		if i < len(before) {
			o.shard.capture(false, p, before[i].Data, before[i].Offload, dropStagedFull)
		}
	}
}

// drop counts a packet that goes no further, of p or nobody. It stands apart, so that what carries packets stays small.
//
//go:noinline
func (o *outbound) drop(why dropReason, p *peer, sp *tun.Superpacket) {
	n := segmentCount(sp)
	o.shard.stats.drop(why, n)
	if p != nil {
		p.drops.note(o.shard.now, why, n, sp.Data)
	}
	if o.shard.taking.tap != nil {
		o.shard.capture(false, p, sp.Data, sp.Offload, why)
	}
}

// segmentCount is how many packets the superpacket stands for.
func segmentCount(sp *tun.Superpacket) int {
	if sp.SegmentSize == 0 {
		return 1
	}
	return max(1, (len(sp.Data)-int(sp.HeaderLen)+int(sp.SegmentSize)-1)/int(sp.SegmentSize))
}

// want asks control for a session, not more often than it makes sense.
func (o *outbound) want(now time.Duration, p *peer, lane *outboundLane) {
	if lane.asked == 0 || now-lane.asked >= wantInterval {
		lane.asked = now
		o.shard.notified.notify(p, signalWant)
	}
}

// 3. seal cuts a superpacket into the arena, each segment behind a transport data header, to be sealed in place there. It
// returns false if the keypair has no counters left; nothing was taken then.
func (o *outbound) seal(path *Path, kp *crypto.Keypair, p *peer, sp *tun.Superpacket) bool {
	if err := o.segmenter.Init(sp); err != nil {
		o.drop(dropNotIP, p, sp)
		return true
	}
	n := o.segmenter.Count()
	if o.segmenter.Len(0) > MaxMTU-path.overhead() {
		o.drop(dropTooBig, p, sp)
		o.tooBig(sp, MaxMTU-path.overhead())
		return true
	}
	ttl, ok := nestedTTL(sp.Data)
	if !ok {
		o.drop(dropRoutingLoop, p, sp)
		o.looped(o.shard.now, p)
		return true
	}
	counter, ok := kp.Reserve(n)
	if !ok {
		return false
	}
	if o.shard.taking.tap != nil {
		o.shard.capture(false, p, sp.Data, sp.Offload, notDropped)
	}
	if kp != o.keypair || o.bytes >= sealAtOnce {
		o.sealPending()
		o.keypair = kp
	}
	q := &o.runs4
	if !path.Dst.Addr().Is4() {
		q = &o.runs6
	}
	to := owner{peer: p, path: path, at: o.shard.now}
	outer := outerMarks{tos: uint8(ip.Mark(sp.Data)), ttl: ttl}
	for k := range n {
		o.segment(q, to, kp, counter+uint64(k), k, outer)
	}
	o.shard.stats.OutboundSegments.Add(uint64(n))
	if path.Channel != 0 {
		o.shard.stats.ChannelSent.Add(uint64(n))
	}
	return true
}

// sealAtOnce is how many bytes are cut before they are sealed: what stays in the cache between the two.
const sealAtOnce = 48 << 10

// segment writes one sealed-to-be packet into the arena. On a relayed path the message follows a ChannelData header, so that
// a run of them is a run of datagrams to the relay.
func (o *outbound) segment(q *sendQueue, to owner, kp *crypto.Keypair, counter uint64, k int, outer outerMarks) {
	length, header := o.segmenter.Len(k), to.path.overhead()
	message := crypto.SizeTransportHeader + o.pad(length, MaxMTU-header) + aead.Overhead
	size := header + message
	if o.used+size > len(o.arena) || len(o.sealing) == cap(o.sealing) || len(q.runs) == cap(q.runs) {
		o.flushMidBatch()
		o.keypair = kp
	}
	if header > 0 {
		frame.PutChannelHeader(o.arena[o.used:], to.path.Channel, uint16(message))
	}
	msg := o.arena[o.used+header : o.used+size : o.used+size]
	crypto.PutTransportHeader(msg, kp.RemoteIndex, counter)
	o.segmenter.Cut(k, msg[crypto.SizeTransportHeader:])
	o.sealing = append(o.sealing, aead.Packet{
		Dst:     msg[crypto.SizeTransportHeader:],
		Src:     msg[crypto.SizeTransportHeader : crypto.SizeTransportHeader+length],
		Counter: counter,
	})
	q.append(to, o.arena, o.used, size, outer)
	o.used += size
	o.bytes += size
}

// pad returns the length that a plaintext is padded to: the next multiple of 16, but never above the MTU (the kernel's
// calculate_skb_padding) or what a datagram can carry (most), so that padding never makes a packet too big.
func (o *outbound) pad(length, most int) int {
	padded := (length + 15) &^ 15
	return min(padded, max(length, min(o.shard.mtu, most)))
}

// sealPending gives the packets that were cut to the crew.
func (o *outbound) sealPending() {
	if run := o.sealing[o.unsealed:]; len(run) > 0 {
		o.crew.add(task{keypair: o.keypair, run: run}, o.bytes)
	}
	o.unsealed, o.bytes = len(o.sealing), 0
}

// full tells for which sockets runs wait for room.
func (o *outbound) full() families {
	return families{v4: o.runs4.sent < len(o.runs4.runs), v6: o.runs6.sent < len(o.runs6.runs)}
}

// 4. flush seals what is left and sends. It returns false if a socket is full; the rest goes with the next flush.
func (o *outbound) flush() bool {
	o.sealPending()
	o.crew.join()
	clear(o.sealing)
	o.sealing, o.unsealed, o.keypair = o.sealing[:0], 0, nil
	pair := o.shard.pair
	done4 := o.runs4.send(o.shard, pair.V4)
	done6 := o.runs6.send(o.shard, pair.V6)
	if !done4 || !done6 {
		o.shard.stats.OutboundBlocked.Add(1)
		return false
	}
	o.used = 0
	return true
}

// stallLimit is how long a full socket may hold up a batch that does not fit the arena.
const stallLimit = 5 * time.Millisecond

// flushMidBatch makes room in the arena. Where the socket stays full the packets are dropped, as a NIC's queue would.
func (o *outbound) flushMidBatch() {
	if o.flush() {
		return
	}
	o.shard.waiter.writable(o.full(), stallLimit)
	if o.flush() {
		return
	}
	o.runs4.abandon(o.shard, dropSendStalled)
	o.runs6.abandon(o.shard, dropSendStalled)
	o.used = 0
}

// unreachable answers a packet that has nowhere to go with ICMP host unreachable or ICMPv6 address unreachable, as the
// kernel's wg_xmit does, at a bounded rate.
func (o *outbound) unreachable(sp *tun.Superpacket) {
	if o.icmp.take(o.shard.now) {
		o.answer(ip.AppendUnreachable(o.reply[:0], sp.Data, netip.Addr{}))
	}
}

// tooBig asks the sender of a packet for ones of at most mtu bytes.
func (o *outbound) tooBig(sp *tun.Superpacket, mtu int) {
	if o.icmp.take(o.shard.now) {
		o.answer(ip.AppendTooBig(o.reply[:0], sp.Data, netip.Addr{}, mtu))
	}
}

// answer has an ICMP error sent by the host, or else writes it to the TUN; it is empty where none may be sent.
func (o *outbound) answer(reply []byte) {
	if len(reply) == 0 {
		return
	}
	o.shard.stats.ICMPErrors.Add(1)
	if sender, ok := o.shard.device.(tun.ErrorSender); !ok || !sender.SendError(reply) {
		o.shard.writeOne(reply)
	}
}

// tokenBucket bounds ICMP errors to icmpRate a second with bursts of as many.
type tokenBucket struct {
	tokens int
	at     time.Duration
}

const icmpRate = 50

func (b *tokenBucket) take(now time.Duration) bool {
	if since := now - b.at; b.at == 0 || since >= time.Second {
		b.tokens, b.at = icmpRate, now
	} else if n := int(since / (time.Second / icmpRate)); n > 0 {
		b.tokens = min(icmpRate, b.tokens+n)
		b.at += time.Duration(n) * (time.Second / icmpRate)
	}
	if b.tokens == 0 {
		return false
	}
	b.tokens--
	return true
}
