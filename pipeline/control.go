package pipeline

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/pipeline/count"
	"github.com/sluice-vpn/sluice/pipeline/frame"
	"github.com/sluice-vpn/sluice/pipeline/udp"
	"github.com/sluice-vpn/sluice/tun"
)

// control is the loop around the controller: it feeds it messages, signals, edits and deadlines, and carries out its
// effects. Everything in it is owned by the control goroutine.
type control struct {
	pipeline   *Pipeline
	controller *controller
	alarm      alarm
	log        *slog.Logger
	now        time.Duration // of the input that is being handled

	udp    udp.Config // as edited, with the port that was chosen
	up     bool       // the interface is; without sockets if they could not be opened
	pairs  []udp.Pair // one a shard; nil without sockets
	closed count.Set  // of sockets that are no more
	loss   countWatch // of lossNames
	flood  countWatch // of floodNames
	walk   sourceWalk
}

func newControl(p *Pipeline) *control {
	c := &control{pipeline: p, log: p.config.Logger, udp: p.config.UDP,
		loss: countWatch{names: lossNames[:], least: 1}, flood: countWatch{names: floodNames[:], least: floodLeast}}
	c.controller = &controller{
		local: p.local, routes: &p.routes, effects: c, log: c.log, shards: len(p.shards), lifetime: p.config.HandshakeLifetime,
		connector: p.config.Connector,
	}
	return c
}

// loop runs control. It returns nil when the pipeline is to end in order.
func (c *control) loop(ctx context.Context, failed <-chan error) error {
	if c.pipeline.config.Clock != nil {
		c.alarm = newTimerAlarm()
	} else {
		c.alarm = newSystemAlarm()
	}
	defer c.alarm.stop()
	p := c.pipeline
	for {
		var err error
		select {
		case <-ctx.Done():
			return nil
		case <-p.cancel:
			return nil
		case err = <-failed:
			return c.failure(err)
		case event, ok := <-p.config.Device.Events():
			c.now = p.clock()
			if !ok || event == tun.EventGone {
				c.log.Info("the interface was deleted")
				return nil
			}
			if err = c.handleEvent(event); err != nil {
				return err
			}
		case l := <-p.mailbox:
			c.now = p.clock()
			p.local.NoteQueue(c.now, len(p.mailbox), cap(p.mailbox))
			c.controller.handle(c.now, &l)
		case <-p.notified.wake:
			c.now = p.clock()
			c.noticeAll()
		case f := <-p.calls:
			c.now = p.clock()
			c.noticeAll() // whoever has seen what a packet did, such as an answer to its ping, sees it here too
			f()
		case <-c.routeChanges():
			c.now = p.clock()
			c.walk.start(c.controller.peers)
		case <-c.alarm.due():
			c.now = p.clock()
			c.controller.handleTimeout(c.now)
		}
		c.watchCounters()
		c.walkSources()
		c.alarm.set(c.now, sooner(sooner(c.controller.nextTimeout(c.now), c.loss.deadline()), c.walk.deadline(c.now)))
	}
}

// noticeAll takes what the lanes have signalled so far.
func (c *control) noticeAll() {
	c.pipeline.notified.drain(func(peer *peer, signals uint32) { c.controller.notice(c.now, peer, signals) })
}

// watchCounters writes a line if packets are being lost, and one if there is a flood.
func (c *control) watchCounters() {
	if !c.loss.due(c.now) {
		return
	}
	counts := c.counters().Values()
	if lost := c.loss.look(c.now, counts); lost != nil {
		c.log.Warn("packets were lost", lost...)
	}
	if flood := c.flood.look(c.now, counts); flood != nil {
		c.log.Warn("a flood of datagrams that are no peer's; they are dropped", flood...)
	}
}

// failure says what the end of a shard means: the device going away is the normal end of an interface.
func (c *control) failure(err error) error {
	if errors.Is(err, tun.ErrClosed) {
		return nil
	}
	return fmt.Errorf("pipeline: %w", err)
}

// handleEvent follows the state of the interface: sockets are open while it is up (the kernel's wg_open and wg_stop). That they
// cannot be opened is an error where a Connector needs them; elsewhere whoever configures may set another port.
func (c *control) handleEvent(event tun.Event) error {
	switch event {
	case tun.EventUp:
		c.up = true
		if c.pairs != nil {
			return nil
		}
		if err := c.bind(c.udp); err != nil {
			if c.pipeline.config.Connector != nil {
				return fmt.Errorf("pipeline: %w", err)
			}
			c.log.Error("cannot open the UDP sockets; set another listen port", "port", c.udp.Port, "error", err)
		}
	case tun.EventDown:
		c.up = false
		if c.pairs == nil {
			return nil
		}
		c.controller.setUp(c.now, false)
		c.use(make([]udp.Pair, len(c.pipeline.shards)))
		c.pairs = nil
		c.log.Info("interface down")
	case tun.EventMTU:
		c.noteMTU()
	case tun.EventMTUClamped:
		c.log.Warn("the MTU was too large for a UDP datagram and was set back", "mtu", c.pipeline.config.Device.MTU())
	}
	return nil
}

// noteMTU says so where the MTU lets packets through that no datagram can carry.
func (c *control) noteMTU() {
	mtu := c.pipeline.config.Device.MTU()
	if mtu > MaxMTU {
		c.log.Warn("the MTU is too large for a UDP datagram: longer packets than max_mtu are dropped; set it to that or less",
			"mtu", mtu, "max_mtu", MaxMTU)
		return
	}
	c.log.Debug("MTU changed", "mtu", mtu)
}

// bind opens sockets as asked for and hands them to the shards; on error the old ones stay. The interface is up: with its
// first sockets, sessions may begin. A port that was chosen for us stays ours when the interface goes down and up (kernel
// socket.c, wg_socket_reinit).
func (c *control) bind(cfg udp.Config) error {
	pairs, err := c.pipeline.config.Listen(cfg)
	if err != nil {
		return err
	}
	if err := c.fit(pairs); err != nil {
		c.closePairs(pairs)
		return err
	}
	c.use(pairs)
	c.udp = cfg
	c.udp.Port = c.port()
	c.controller.setUp(c.now, true)
	c.walk.start(c.controller.peers)
	c.log.Info("listening", "port", c.udp.Port)
	if err := pairs[0].NoRoutes; err != nil {
		c.log.Warn("changes of routes are not seen: answers keep their source address, whatever way they leave", "error", err)
	}
	return nil
}

// fit checks that every shard gets sockets that it can wait for together with its queue.
func (c *control) fit(pairs []udp.Pair) error {
	if len(pairs) != len(c.pipeline.shards) {
		return fmt.Errorf("%d TUN queues but %d pairs of sockets: portable sockets serve one queue", len(c.pipeline.shards), len(pairs))
	}
	for i, s := range c.pipeline.shards {
		for _, socket := range [2]udp.Socket{pairs[i].V4, pairs[i].V6} {
			if socket != nil && (socket.FD() < 0) != (s.queue.FD() < 0) {
				return errors.New("the TUN device and the sockets must both be the system's or both be portable")
			}
		}
	}
	return nil
}

// use gives the shards other sockets and closes the old ones once no shard uses them.
func (c *control) use(pairs []udp.Pair) {
	old := c.pairs
	c.pairs = pairs
	if pair := pairs[0]; pair.V4 != nil || pair.V6 != nil {
		c.pipeline.sockets.Store(&pair)
	} else {
		c.pipeline.sockets.Store(nil)
	}
	for i, s := range c.pipeline.shards {
		done := make(chan struct{})
		s.post(command{kind: commandSockets, pair: pairs[i], done: done})
		select {
		case <-done:
		case <-s.ended:
		}
	}
	c.closePairs(old)
}

func (c *control) closePairs(pairs []udp.Pair) {
	for _, pair := range pairs {
		for _, s := range [2]udp.Socket{pair.V4, pair.V6} {
			if s != nil {
				c.closed.Add(count.Of("udp_", s.Stats())...)
				_ = s.Close()
			}
		}
		if pair.Routes != nil {
			_ = pair.Routes.Close()
		}
	}
}

// close ends what is left when the shards have stopped: sockets, staged packets and keys.
func (c *control) close() {
	c.now = c.pipeline.clock()
	for _, s := range c.pipeline.shards {
		s.empty(c.controller.peers)
	}
	for _, p := range c.controller.peers {
		if p.link != nil {
			c.controller.change(c.now, p, ChangeDown)
		}
	}
	c.controller.up = false
	c.pipeline.sockets.Store(nil)
	c.closePairs(c.pairs)
	c.pairs = nil
	c.controller.setPrivateKey(c.now, new(crypto.PrivateKey))
	for _, p := range c.controller.peers {
		c.controller.local.RemovePeer(c.now, p.core)
		c.controller.drain(c.now, p)
	}
	c.controller.wipe()
}

// port is the local port, 0 while none was chosen.
func (c *control) port() uint16 {
	if len(c.pairs) > 0 {
		return c.pairs[0].LocalPort()
	}
	return c.udp.Port
}

// counters are all of the pipeline's.
func (c *control) counters() *count.Set {
	set := c.laneCounters()
	staged := uint64(0)
	for _, p := range c.controller.peers {
		for i := range p.outbound {
			staged += uint64(p.outbound[i].count.Load())
		}
	}
	set.Add(count.Plain(count.Gauge, "staged_packets", "Packets that wait for a session.", staged))
	set.Add(c.controller.counters()...)
	return set
}

// laneCounters are those of shards, queues and sockets, also the ones of before.
func (c *control) laneCounters() *count.Set {
	set := new(count.Set)
	set.Add(count.Of("udp_", new(udp.Stats))...) // while the interface is down there are none
	set.Add(c.closed.List()...)
	for _, s := range c.pipeline.shards {
		set.Add(s.stats.counters()...)
		set.Add(count.Of("tun_", s.queue.Stats())...)
	}
	receive, send := 0, 0
	for _, pair := range c.pairs {
		for _, s := range [2]udp.Socket{pair.V4, pair.V6} {
			if s != nil {
				set.Add(count.Of("udp_", s.Stats())...)
				receive, send = s.Offloads().ReceiveBuffer, s.Offloads().SendBuffer
			}
		}
	}
	set.Add(bufferSize("receive", receive), bufferSize("send", send))
	return set
}

// bufferSize is what the kernel granted a socket.
func bufferSize(of string, size int) count.Counter {
	help := "Bytes that the " + of + " buffer of each UDP socket has, as the kernel counts; 0 while the interface is down."
	return count.Labeled(count.Family{Series: "sluice_udp_" + of + "_buffer_bytes", Help: help, Kind: count.Gauge}, "udp_"+of+"_buffer_size", help, uint64(size))
}

// send sends a datagram of control's own on the first shard's sockets.
func (c *control) send(path *Path, data []byte, tos uint8) bool {
	if c.pairs == nil {
		return false
	}
	socket := c.pairs[0].V4
	if !path.Dst.Addr().Is4() {
		socket = c.pairs[0].V6
	}
	if socket == nil {
		c.pipeline.shards[0].stats.drop(dropFamily, 1)
		return false
	}
	if path.Channel != 0 {
		framed := make([]byte, frame.ChannelHeaderSize, frame.ChannelHeaderSize+len(data))
		frame.PutChannelHeader(framed, path.Channel, uint16(len(data)))
		data = append(framed, data...)
		c.pipeline.shards[0].stats.ChannelSent.Add(1)
	}
	run := path.run(data, tos)
	err := socket.SendOne(run)
	c.pipeline.captureSent(&run, socket.LocalPort(), path.Channel, err)
	return err == nil // else the socket counts why; the protocol's timers retry
}

// release tells the shards that hold packets for the peer that it has a session.
func (c *control) release(p *peer) { c.tell(p, commandRelease) }

// purge tells them that it got none.
func (c *control) purge(p *peer) { c.tell(p, commandPurge) }

// inherit tells them that p has become heir.
func (c *control) inherit(p, heir *peer) {
	for i, s := range c.pipeline.shards {
		if p.outbound[i].count.Load() > 0 || s.epoch.Load()%2 == 1 {
			s.post(command{kind: commandInherit, peer: p, heir: heir})
		}
	}
}

// tell tells the shards that hold packets for p, and those in a batch: they may be about to, by what was published before.
func (c *control) tell(p *peer, kind commandKind) {
	for i, s := range c.pipeline.shards {
		if p.outbound[i].count.Load() > 0 || s.epoch.Load()%2 == 1 {
			s.post(command{kind: kind, peer: p})
		}
	}
}

// letGo notes which shards are in a batch; each of them has let go when its epoch has moved on.
func (c *control) letGo() func() bool {
	type busy struct {
		shard *shard
		epoch uint64
	}
	var in []busy
	for _, s := range c.pipeline.shards {
		if e := s.epoch.Load(); e%2 == 1 {
			in = append(in, busy{s, e})
		}
	}
	return func() bool {
		for len(in) > 0 && in[0].shard.epoch.Load() != in[0].epoch {
			in = in[1:]
		}
		return len(in) == 0
	}
}
