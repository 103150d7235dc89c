package pipeline

import (
	"errors"
	"fmt"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/pipeline/count"
	"github.com/sluice-vpn/sluice/pipeline/udp"
	"github.com/sluice-vpn/sluice/tun"
)

// shard is one core's share of the data plane: a TUN queue, the sockets of both families and the lanes between them, run
// to completion by one goroutine. Everything in it is owned by that goroutine, except what stands under "shared".
type shard struct {
	id       int
	queue    tun.Queue
	pair     udp.Pair
	waiter   waiter
	outbound *outbound
	inbound  *inbound
	now      time.Duration
	mtu      int
	staged   int // bytes that the lanes hold for peers without a session
	taking   taking
	one      [1]tun.Run
	piece    [1][]byte

	// frozen
	clock    func() time.Duration
	device   tun.Device
	routes   *routes
	table    *crypto.IndexTable
	notified *notified
	mailbox  chan letter
	strays   func(Stray)
	relays   *relays
	sampled  bool // Config.SampleDelays
	tap      *atomic.Pointer[Capture]

	// shared
	stats *shardStats
	// epoch is odd while a batch is under way. What control has unpublished is out of use once epoch is even or has moved.
	epoch atomic.Uint64
	// mu guards commands; a leaf. posted says without the lock that there are some.
	mu       sync.Mutex
	commands []command
	posted   atomic.Bool
	ended    chan struct{} // closed when the loop has returned
}

// command is what control asks of a shard, between two batches.
type command struct {
	kind commandKind
	peer *peer         // release, purge, inherit
	heir *peer         // inherit
	pair udp.Pair      // sockets
	done chan struct{} // sockets: closed when obeyed
}

type commandKind uint8

const (
	commandRelease commandKind = iota // a session is up: send what was staged
	commandPurge                      // no session came about: drop what was staged
	commandInherit                    // the peer has another key: what was staged waits for a session of heir
	commandSockets                    // use other sockets from now on
	commandStop
)

// letter is a handshake message on its way to control.
type letter struct {
	message [crypto.SizeInitiation]byte
	length  int
	src     Path // where an answer goes
	relay   bool // its address is a relay's
}

// post gives the shard a command and wakes it.
func (s *shard) post(c command) {
	s.mu.Lock()
	s.commands = append(s.commands, c)
	s.posted.Store(true)
	s.mu.Unlock()
	s.waiter.wake()
}

var errStop = errors.New("stop")

// loop runs the shard until it is told to stop or an edge fails. Inbound comes first: it makes room in the network,
// outbound fills it.
func (s *shard) loop() error {
	defer s.end()
	for {
		s.epoch.Add(1)
		s.now, s.mtu = s.clock(), s.device.MTU()
		s.taking.begin(s.tap.Load())
		work, err := s.batch()
		s.taking.end()
		s.epoch.Add(1)
		if errors.Is(err, errStop) {
			return nil
		}
		if err != nil {
			return err
		}
		if work == 0 {
			s.waiter.wait(s.outbound.full())
			s.stats.Wakes.Add(1)
		}
	}
}

// sampleEvery is how many batches of a direction there are for each that is timed.
const sampleEvery = 64

// sample begins to time the nth batch, if it is one that is timed; 0: it is not.
func (s *shard) sample(n uint64) time.Duration {
	if !s.sampled || n%sampleEvery != 0 {
		return 0
	}
	return s.clock()
}

// observe counts a batch of n packets that has gone its way, and how long it took if it was timed from begin on.
func (s *shard) observe(n uint64, sizes *count.Histogram, begin time.Duration, delays *count.Histogram) {
	sizes.Observe(n)
	if begin != 0 {
		delays.Observe(uint64(max(s.clock()-begin, 0) / time.Microsecond))
	}
}

// maxWait is the longest time in the kernel that is believed. The shard reads far sooner; what is longer, or below 0, is a step of the
// wall clock, or the machine was suspended.
const maxWait = 10 * time.Second

// arrived counts how long a datagram has waited in the kernel, which took it in at arrived, until now: both in nanoseconds since 1970 by the
// system's wall clock, whatever Config.Wall is. 0: the kernel has not told.
func (s *shard) arrived(arrived, now int64) {
	if wait := time.Duration(now - arrived); arrived != 0 && wait >= 0 && wait <= maxWait {
		s.stats.ReceiveSeconds.Observe(uint64(wait / time.Microsecond))
	}
}

// batch obeys commands and carries one batch in each direction; it returns how much there was to carry.
func (s *shard) batch() (work int, err error) {
	if s.posted.Load() {
		if err := s.obey(); err != nil {
			return 0, err
		}
	}
	for _, socket := range [2]udp.Socket{s.pair.V4, s.pair.V6} {
		if socket == nil {
			continue
		}
		n, err := s.inbound.run(s.now, socket)
		if err != nil && !errors.Is(err, udp.ErrClosed) {
			return 0, fmt.Errorf("receiving: %w", err)
		}
		work += n
	}
	n, err := s.outbound.run(s.now)
	if err != nil {
		return 0, err
	}
	return work + n, nil
}

func (s *shard) obey() error {
	s.mu.Lock()
	commands := s.commands
	s.commands = nil
	s.posted.Store(false)
	s.mu.Unlock()
	for _, c := range commands {
		switch c.kind {
		case commandRelease:
			s.release(c.peer)
		case commandPurge:
			s.purge(c.peer)
		case commandInherit:
			s.inherit(c.peer, c.heir)
			s.release(c.heir) // who may have a session by now
		case commandSockets:
			s.pair = c.pair
			s.waiter.sockets(c.pair)
			close(c.done)
		case commandStop:
			return errStop
		}
	}
	return nil
}

// end ends the shard's workers.
func (s *shard) end() {
	close(s.ended)
	s.outbound.crew.stop()
	s.inbound.crew.stop()
}

// empty drops what the lanes still hold, when the loop has ended.
func (s *shard) empty(peers []*peer) {
	for _, p := range peers {
		s.purge(p)
	}
	for _, c := range s.commands { // of peers that are no more
		if c.kind == commandPurge {
			s.purge(c.peer)
		}
	}
	s.commands = nil
}

// release sends what is staged for the peer, if it has a session.
func (s *shard) release(p *peer) {
	lane := &p.outbound[s.id]
	path, kp := p.way(s.now)
	if path == nil || kp == nil {
		return
	}
	if !s.outbound.release(s.now, p, lane, path, kp) {
		s.outbound.want(s.now, p, lane)
	}
	s.outbound.flush()
}

// inherit gives what is staged for p to heir.
func (s *shard) inherit(p, heir *peer) {
	dropped, bytes := heir.outbound[s.id].inherit(&p.outbound[s.id].staged)
	s.staged -= bytes
	s.stats.drop(dropStagedFull, dropped)
	heir.drops.note(s.now, dropStagedFull, dropped, nil)
}

// purge drops what is staged for the peer.
func (s *shard) purge(p *peer) {
	if s.taking.tap != nil {
		for i := range p.outbound[s.id].packets {
			sp := &p.outbound[s.id].packets[i]
			s.capture(false, p, sp.Data, sp.Offload, dropStagedExpired)
		}
	}
	var last []byte
	if packets := p.outbound[s.id].packets; len(packets) > 0 {
		last = packets[len(packets)-1].Data
	}
	segments, bytes := p.outbound[s.id].clear()
	s.staged -= bytes
	s.stats.drop(dropStagedExpired, segments)
	p.drops.note(s.now, dropStagedExpired, segments, last)
}

// mail puts a handshake message into control's mailbox.
func (s *shard) mail(m *udp.Datagrams, b []byte, channel uint16) {
	l := letter{length: len(b), src: origin(m, channel), relay: s.relays.at(m.Src.Addr())}
	copy(l.message[:], b)
	select {
	case s.mailbox <- l:
	default:
		s.discard(dropMailboxFull)
	}
}

// stray passes on a datagram that is not WireGuard.
func (s *shard) stray(m *udp.Datagrams, b []byte, channel uint16) {
	if s.strays == nil {
		s.discard(dropStray)
		return
	}
	s.strays(Stray{Data: b, Src: m.Src, Channel: channel, Dst: m.Dst, IfIndex: m.IfIndex})
}

// write writes runs to the TUN; what it does not take is dropped and counted, as a network card's full queue would, and returned.
func (s *shard) write(runs []tun.Run) (lost []tun.Run, why dropReason) {
	for tries := 0; len(runs) > 0; tries++ {
		n, err := s.queue.Write(runs)
		runs = runs[n:]
		switch {
		case err != nil:
			why = dropTUNDown
		case n == 0 && tries > 0:
			why = dropTUNFull
		default:
			continue
		}
		s.stats.drop(why, packetCount(runs))
		return runs, why
	}
	return nil, notDropped
}

// packetCount is how many packets are in runs: each gave one piece.
func packetCount(runs []tun.Run) (n int) {
	for i := range runs {
		n += len(runs[i].Pieces)
	}
	return n
}

// writeOne writes one packet of our own to the TUN.
func (s *shard) writeOne(packet []byte) {
	s.piece[0] = packet
	s.one[0] = tun.Run{Pieces: s.piece[:]}
	s.write(s.one[:])
}
