package pipeline

import (
	"net/netip"
	"slices"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/crypto/aead"
	"github.com/sluice-vpn/sluice/pipeline/flow"
	"github.com/sluice-vpn/sluice/pipeline/frame"
	"github.com/sluice-vpn/sluice/pipeline/udp"
	"github.com/sluice-vpn/sluice/tun"
	"github.com/sluice-vpn/sluice/tun/ip"
)

// inbound carries datagrams from the shard's sockets to its TUN queue. The stages, in order: receive, classify, look up,
// open, check, coalesce, write. Packets are opened where they were received and stay there until written. Owned by the shard.
type inbound struct {
	shard *shard
	crew  *crew

	// receive
	messages [receiveMessages]udp.Datagrams

	// classify, look up, open
	opening []aead.Packet
	groups  []inboundGroup
	lastIn  uint32 // the last receiver index and its keypair
	lastKey *crypto.Keypair
	// stripped counts the ChannelData of the message that is being taken apart.
	stripped int

	// check, coalesce, write
	coalescer *tun.Coalescer
	source    netip.Addr // the last inner source address and the peer it belongs to
	sourceOf  *peer
	own       *[]netip.Addr // the only inner destination addresses, nil: any; and the last that was one of them
	last      netip.Addr
	delivered int
	flows     *flow.View // nil: what nobody has asked for is taken, too
}

// hop is how the relay that sent a datagram has passed it on. Zero: no relay has.
type hop struct {
	channel uint16
	peer    netip.AddrPort // of a Data indication, see Path.Peer
}

// inboundGroup is opening[first:end]: packets of one message, of one keypair, by one hop.
type inboundGroup struct {
	keypair    *crypto.Keypair
	hop        hop
	message    int
	first, end int
	bytes      int
}

// receiveStride is how far apart messages are received. At a distance of a power of two, messages of one datagram each would all
// compete for the same few sets of the caches.
const receiveStride = udp.BufferSize + 17*64

func newInbound(s *shard, workers int, caps tun.Capabilities) *inbound {
	in := &inbound{
		shard:     s,
		crew:      newCrew(workers),
		opening:   make([]aead.Packet, 0, batchPackets),
		groups:    make([]inboundGroup, 0, batchPackets),
		coalescer: tun.NewCoalescer(caps),
	}
	arena := make([]byte, receiveMessages*receiveStride)
	for i := range in.messages {
		in.messages[i].Buf = arena[i*receiveStride : (i+1)*receiveStride]
	}
	return in
}

// run carries one batch from the socket and returns how many messages it received.
func (in *inbound) run(now time.Duration, socket udp.Socket) (int, error) {
	// 1. receive
	n, err := socket.Receive(in.messages[:])
	if n == 0 {
		return 0, err
	}
	st := in.shard.stats
	begin, before := in.shard.sample(st.InboundBatches.Add(1)), st.InboundDatagrams.Load()
	if at := in.messages[0].Arrived; begin != 0 && at != 0 {
		in.shard.arrived(at, wallClock().UnixNano())
	}
	st.InboundMessages.Add(uint64(n))
	in.sourceOf, in.lastKey = nil, nil
	in.own, in.last = in.shard.routes.own.Load(), netip.Addr{}
	in.coalescer.SetCapabilities(in.shard.device.Capabilities()) // the device takes back what the kernel refuses
	for i := range n {
		in.message(now, i)
	}
	in.deliver(now)
	in.shard.observe(st.InboundDatagrams.Load()-before, &st.InboundBatchPackets, begin, &st.InboundSeconds)
	return n, err
}

// message takes the datagrams of one message apart.
func (in *inbound) message(now time.Duration, i int) {
	m := &in.messages[i]
	datagrams, relayed := 0, in.shard.relays.has(m.Src)
	for rest := m.Data; len(rest) > 0; datagrams++ {
		b := rest[:min(m.SegmentSize, len(rest)):min(m.SegmentSize, len(rest))]
		rest = rest[len(b):]
		in.datagram(now, i, b, relayed)
	}
	in.shard.stats.InboundDatagrams.Add(uint64(datagrams))
	if in.stripped > 0 {
		in.shard.stats.ChannelReceived.Add(uint64(in.stripped))
		in.stripped = 0
	}
}

// datagram takes one datagram of message i.
func (in *inbound) datagram(now time.Duration, i int, b []byte, relayed bool) {
	m, via := &in.messages[i], hop{}
	if in.shard.taking.tap != nil {
		in.shard.captureDatagram(m, b)
	}
	// 2. classify; what a relay has put into ChannelData once more, where it lies
	class := classify(b)
	if relayed && class == classOther {
		if frame.IsChannelData(b, frame.LastChannel) {
			var ok bool
			if via.channel, b, ok = frame.ParseChannelData(b, frame.LastChannel); !ok {
				in.shard.discard(dropChannelData)
				return
			}
			in.stripped++
			class = classify(b)
		} else if peer, data, ok := frame.ParseDataIndication(b); ok && classify(data) == classTransport {
			// Of a peer that a NAT maps anew. Handshake messages are repeated, and would be answered to where nothing can be sent.
			via.peer, b, class = peer, data, classTransport
		}
	}
	switch class {
	case classTransport:
		if len(in.opening) == cap(in.opening) {
			in.deliver(now)
		}
		in.lookUp(now, i, b, via)
	case classHandshake:
		in.shard.mail(m, b, via.channel)
	case classMalformed:
		in.shard.discard(dropMalformed)
	default:
		in.shard.stray(m, b, via.channel)
	}
}

// 3. lookUp finds the keypair of a transport data message and queues it to be opened in place.
func (in *inbound) lookUp(now time.Duration, message int, b []byte, via hop) {
	index, counter, _ := crypto.ParseTransport(b)
	if in.lastKey == nil || index != in.lastIn {
		kp := in.shard.table.Lookup(index)
		if kp == nil {
			in.shard.discard(dropUnknownIndex)
			return
		}
		if !kp.Acceptable(now) {
			in.expired(now, kp)
			return
		}
		in.lastKey, in.lastIn = kp, index
	}
	g := len(in.groups) - 1
	if g < 0 || in.groups[g].keypair != in.lastKey || in.groups[g].message != message || in.groups[g].hop != via {
		in.groups = append(in.groups, inboundGroup{keypair: in.lastKey, hop: via, message: message, first: len(in.opening)})
		g++
	}
	body := b[crypto.SizeTransportHeader:]
	in.opening = append(in.opening, aead.Packet{Dst: body[:len(body)-aead.Overhead], Src: body, Counter: counter})
	if t := &in.shard.taking; t.tap != nil {
		t.datagrams = append(t.datagrams, t.datagram)
	}
	in.groups[g].end = len(in.opening)
	in.groups[g].bytes += len(b)
}

// openAtOnce is how many bytes of one keypair are opened together: what stays in the cache until it is checked.
const openAtOnce = 48 << 10

// deliver opens, checks and writes what was queued.
func (in *inbound) deliver(now time.Duration) {
	for groups := in.groups; len(groups) > 0; {
		// 4. open. Datagrams that came alone are opened together: the tags of several are compared at once, and what is forged
		// is then not even decrypted.
		n, bytes := openTogether(groups)
		first, last := &groups[0], &groups[n-1]
		in.crew.add(task{keypair: first.keypair, run: in.opening[first.first:last.end], open: true}, bytes)
		if in.crew.workers == 0 {
			in.checkAll(now, groups[:n]) // while their bytes are in the cache
		}
		groups = groups[n:]
	}
	if in.crew.workers > 0 {
		in.crew.join()
		in.checkAll(now, in.groups)
	}
	in.write()
	clear(in.groups)
	clear(in.opening)
	in.groups, in.opening = in.groups[:0], in.opening[:0]
	in.shard.taking.datagrams = in.shard.taking.datagrams[:0]
}

// openTogether returns how many of the first groups are opened as one run, and how many bytes they have.
func openTogether(groups []inboundGroup) (n, bytes int) {
	bytes = groups[0].bytes
	for n = 1; n < len(groups) && groups[n].keypair == groups[0].keypair && bytes+groups[n].bytes <= openAtOnce; n++ {
		bytes += groups[n].bytes
	}
	return n, bytes
}

func (in *inbound) checkAll(now time.Duration, groups []inboundGroup) {
	for i := range groups {
		in.check(now, &groups[i])
	}
}

// 5. check drops what is forged, replayed, or not this peer's to send, and hands the rest to the coalescer.
func (in *inbound) check(now time.Duration, g *inboundGroup) {
	run := in.opening[g.first:g.end]
	m := &in.messages[g.message]
	p := g.keypair.Owner().(*peer)
	authentic, data := in.window(p, g.keypair, run, g.first)
	if authentic == 0 {
		return
	}
	p.rxBytes.Add(uint64(authentic))
	from := origin(m, g.hop.channel)
	from.Peer = g.hop.peer
	if !from.Peer.IsValid() && p.roam(from) { // before the write to the TUN: the answer must go where this came from
		in.shard.notified.notify(p, signalSource)
	}
	if p.stray(now, from) {
		in.shard.notified.notify(p, signalStray)
	}
	if g.keypair.NeedsConfirm() && g.keypair.MarkConfirmed() {
		p.confirmed.Store(g.keypair)
		in.shard.notified.notify(p, signalConfirmed)
	}
	if p.stamps.received(now, data) {
		in.shard.notified.notify(p, signalActivity)
	}
	if g.keypair.RekeyOnReceive(now) {
		in.shard.notified.notify(p, signalWant)
	}
	for i := range run {
		if run[i].OK {
			in.accept(p, m, run[i].Dst)
		}
	}
}

// window passes the authentic packets of a run through the keypair's replay window, in their order, and clears OK of those
// that it refuses. It returns how many bytes are left, headers included, and whether one packet is not a keepalive. The run begins
// at first in opening.
func (in *inbound) window(p *peer, kp *crypto.Keypair, run []aead.Packet, first int) (authentic int, data bool) {
	unauthentic, replayed := 0, 0
	window := kp.Window()
	p.inbound.mu.Lock()
	for i := range run {
		why := notDropped
		switch {
		case !run[i].OK:
			unauthentic++
			why = dropUnauthentic
		case !window.Accept(run[i].Counter):
			run[i].OK = false
			replayed++
			why = dropReplayed
		default:
			authentic += crypto.SizeTransportHeader + len(run[i].Src)
			data = data || len(run[i].Dst) > 0
		}
		if in.shard.taking.tap != nil {
			in.shard.taking.note(first+i, p, why)
		}
	}
	p.inbound.mu.Unlock()
	if unauthentic+replayed > 0 {
		in.refused(p, unauthentic, replayed)
	}
	return authentic, data
}

// expired counts a packet of a session that is too old. It stands apart, as refused does, so that what carries packets stays small.
//
//go:noinline
func (in *inbound) expired(now time.Duration, kp *crypto.Keypair) {
	in.shard.discard(dropExpiredKeypair)
	kp.Owner().(*peer).drops.note(now, dropExpiredKeypair, 1, nil)
}

// refused counts packets that came by a session of p; of those that are not authentic nobody can tell whether they came from p.
//
//go:noinline
func (in *inbound) refused(p *peer, unauthentic, replayed int) {
	in.shard.stats.drop(dropUnauthentic, unauthentic)
	in.shard.stats.drop(dropReplayed, replayed)
	p.drops.note(in.shard.now, dropUnauthentic, unauthentic, nil)
	p.drops.note(in.shard.now, dropReplayed, replayed, nil)
}

// accept checks one decrypted packet as the kernel's wg_packet_consume_data_done does and coalesces it.
func (in *inbound) accept(p *peer, m *udp.Datagrams, b []byte) {
	if len(b) == 0 {
		in.shard.stats.Keepalives.Add(1)
		return
	}
	n, ok := ip.Length(b)
	if !ok {
		in.drop(dropInnerMalformed, p, b)
		return
	}
	b = b[:n] // without the padding
	src := ip.Source(b)
	if in.sourceOf == nil || src != in.source {
		in.source, in.sourceOf = src, in.shard.routes.lookup(src)
	}
	if in.sourceOf != p {
		in.drop(dropSourceNotAllowed, p, b)
		return
	}
	if in.own != nil {
		if dst := ip.Destination(b); dst != in.last {
			if !slices.Contains(*in.own, dst) {
				in.drop(dropDestinationNotOwn, p, b)
				return
			}
			in.last = dst
		}
	}
	if in.flows != nil && !in.flows.Answers(in.shard.now, b) {
		in.drop(dropUnasked, p, b)
		return
	}
	if m.ECN != 0 {
		mark, drop := ip.DecapsulateECN(ip.Mark(b), ip.ECN(m.ECN))
		if drop {
			in.drop(dropECN, p, b)
			return
		}
		ip.SetMark(b, mark)
	}
	if t := &in.shard.taking; t.tap != nil {
		if r := in.shard.capture(true, p, b, tun.Offload{}, notDropped); r >= 0 {
			t.delivered = append(t.delivered, deliveredPacket{&b[len(b)-1], r})
		}
	}
	in.coalescer.Add(b)
	in.delivered++
}

// drop counts a packet of p that goes no further. It stands apart, as expired does.
//
//go:noinline
func (in *inbound) drop(why dropReason, p *peer, b []byte) {
	in.shard.stats.drop(why, 1)
	p.drops.note(in.shard.now, why, 1, b)
	if in.shard.taking.tap != nil {
		in.shard.capture(true, p, b, tun.Offload{}, why)
	}
}

// 6. write hands the coalesced runs to the device.
func (in *inbound) write() {
	if in.delivered == 0 {
		return
	}
	runs := in.coalescer.Runs()
	in.shard.stats.InboundPackets.Add(uint64(in.delivered))
	in.shard.stats.InboundRuns.Add(uint64(len(runs)))
	in.delivered = 0
	lost, why := in.shard.write(runs)
	if t := &in.shard.taking; t.tap != nil {
		t.lose(lost, why)
		clear(t.delivered)
		t.delivered = t.delivered[:0]
	}
	in.coalescer.Reset()
}
