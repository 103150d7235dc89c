package turn

import (
	"net/netip"
	"slices"
	"time"

	"github.com/sluice-vpn/sluice/ice/stun"
	"github.com/sluice-vpn/sluice/pipeline/udp"
)

const (
	// markEvery is how far MarkUsed calls for held channels are apart, well below BindingRefresh.
	markEvery = time.Minute
	// leaveAfter is how long a server that is released may take to say so.
	leaveAfter = 10 * time.Second
	// homelessFor is how long those who use an allocation that a NAT has cut us off from may wait for the next; it is about three round
	// trips away.
	homelessFor = 2 * time.Second
	maxFormer   = 4
	// maxBatch is how many datagrams are handled before the timers are looked at.
	maxBatch = 64
)

// work is what other goroutines have left for ours.
type work struct {
	closed bool
	news   bool
	wanted []RelayServer
	probe  bool
	ready  []*tenant
	deltas map[hold]int
}

func (r *Relays) takeWork() work {
	r.mu.Lock()
	defer r.mu.Unlock()
	w := work{r.closed, r.news, r.wanted, r.probe, r.ready, nil}
	r.news, r.probe, r.ready = false, false, nil
	if len(r.deltas) > 0 {
		w.deltas, r.deltas = r.deltas, map[hold]int{}
	}
	for _, t := range w.ready {
		t.pending = false
	}
	return w
}

// run is the goroutine: it owns the clients and the one timer.
func (r *Relays) run() {
	defer close(r.ended)
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		w := r.takeWork()
		now := r.config.Clock()
		if w.closed {
			r.finish(now)
			return
		}
		r.work(now, w)
		r.timeouts(now)
		r.drainAll(now)
		r.tell()
		timer.Reset(r.sleep())
		select {
		case <-r.wake:
		case <-timer.C:
		case a := <-r.inbox:
			r.take(a)
			r.takeMore()
		}
	}
}

// takeMore takes what waits in the inbox besides.
func (r *Relays) takeMore() {
	for range maxBatch {
		select {
		case a := <-r.inbox:
			r.take(a)
		default:
			return
		}
	}
}

// work carries out what was left.
func (r *Relays) work(now time.Duration, w work) {
	if w.news {
		r.setServers(now, w.wanted)
	}
	for h, by := range w.deltas {
		h.server.adjust(now, h.peer, by)
	}
	if w.probe {
		for _, s := range r.servers {
			s.client.Probe(now)
		}
	}
	for _, t := range w.ready {
		if t.server != nil && !t.dead && !t.server.serve(now, t, func() { r.bound = append(r.bound, t) }) {
			r.mu.Lock()
			delete(t.server.tenants, t)
			r.mu.Unlock()
			r.counts.facadeLost.Add(t.facade.Lost())
		}
	}
}

// take handles one datagram and recycles its buffer.
func (r *Relays) take(a *arrived) {
	defer r.buffers.Put(a)
	now, data := r.config.Clock(), a.data[:a.size]
	for _, s := range [2][]*server{r.servers, r.leaving} {
		if i := slices.IndexFunc(s, func(s *server) bool { return s.addr == a.src }); i >= 0 {
			r.handle(now, s[i], a.channel, data)
			r.drain(now, s[i])
			return
		}
	}
	r.counts.UnknownServer.Add(1) // it has left since
}

// handle takes a datagram of one server to its client, and what a peer sent to the agent that it is for.
func (r *Relays) handle(now time.Duration, s *server, channel uint16, data []byte) {
	r.counts.Received.Add(1)
	payload, ok := Payload{}, false
	if channel != 0 {
		payload.Data = data
		payload.Peer, ok = s.client.Peer(channel)
		if !ok {
			r.counts.UnknownChannel.Add(1)
		}
	} else {
		r.answered(now, s, data)
		payload, ok = s.client.Handle(now, s.addr, data)
	}
	if !ok {
		return
	}
	r.deliver(s.interest[payload.Peer.Addr()], payload)
}

// deliver gives a peer's payload to the agent that it is for. It is checked once, whoever that is; what is no message is counted by the
// first.
func (r *Relays) deliver(tenants []*tenant, payload Payload) {
	var m stun.Message
	why := m.Parse(payload.Data, stun.Peer)
	for _, t := range tenants {
		gate := t.facade.gateway()
		if gate == nil {
			continue
		}
		if why != stun.DropNone {
			gate.Refused(why)
			break
		}
		if known, ok := gate.Receive(payload.Peer, &m); ok {
			t.facade.Deliver(known, payload.Data)
			r.counts.Delivered.Add(1)
			return
		}
	}
	r.counts.Unclaimed.Add(1)
}

// answered measures the round trip, if this answers a request that was sent once.
func (r *Relays) answered(now time.Duration, s *server, data []byte) {
	if took, ok := s.flights.landed(now, data); ok {
		r.mu.Lock()
		s.status.RoundTripS = max(took, 1).Seconds()
		r.mu.Unlock()
	}
}

// timeouts lets the clients act on what is due.
func (r *Relays) timeouts(now time.Duration) {
	mark := now >= r.nextMark
	if mark {
		r.nextMark = now + markEvery
	}
	for _, s := range r.servers {
		if mark {
			s.mark(now)
		}
		s.client.HandleTimeout(now)
		if s.homeless != 0 && now >= s.homeless {
			r.end(now, s)
		}
	}
	for _, s := range r.leaving {
		s.client.HandleTimeout(now)
	}
}

// sleep is how long nothing will be due.
func (r *Relays) sleep() time.Duration {
	at := r.nextMark
	for _, s := range r.servers {
		if t, _ := s.client.NextTimeout(); t != 0 {
			at = min(at, t)
		}
		if s.homeless != 0 {
			at = min(at, s.homeless)
		}
	}
	for _, s := range r.leaving {
		at = min(at, s.leaves)
		if t, _ := s.client.NextTimeout(); t != 0 {
			at = min(at, t)
		}
	}
	return max(0, at-r.config.Clock())
}

// drainAll carries out what the clients want, and forgets who has left.
func (r *Relays) drainAll(now time.Duration) {
	for _, s := range r.servers {
		r.drain(now, s)
	}
	n := len(r.leaving)
	r.leaving = slices.DeleteFunc(r.leaving, func(s *server) bool {
		r.drain(now, s)
		if s.client.state != stateReleased && now < s.leaves {
			return false
		}
		r.forget(s)
		return true
	})
	if len(r.leaving) != n {
		r.publish()
	}
}

// drain carries out the outputs of one client.
func (r *Relays) drain(now time.Duration, s *server) {
	for out, ok := s.client.Poll(); ok; out, ok = s.client.Poll() {
		switch out.Kind {
		case SendDatagram:
			r.send(now, s, out.Datagram)
		case ChannelBound:
			for _, t := range s.interest[out.Peer.Addr()] {
				if slices.Contains(t.facade.held, out.Peer) {
					r.bound = append(r.bound, t)
				}
			}
		case Allocated:
			r.counts.Allocations.Add(1)
			r.changed = true
			if s.homeless != 0 {
				s.homeless, r.moved = 0, append(r.moved, s.addr)
			}
		case Failed:
			r.changed = true
			if s.homeless != 0 {
				r.end(now, s)
			}
		case Lost:
			r.counts.Losses.Add(1)
			if out.Reason == ReasonMapped || out.Reason == ReasonMismatch {
				r.evict(now, s)
			} else {
				r.end(now, s)
			}
		}
		r.mu.Lock()
		s.note(out)
		r.mu.Unlock()
	}
	r.mu.Lock()
	s.status.State = s.client.State()
	r.mu.Unlock()
}

func (r *Relays) send(now time.Duration, s *server, b []byte) {
	s.flights.left(now, b)
	if err := r.config.Sender.SendOne(udp.Run{Data: b, SegmentSize: len(b), Dst: s.addr}); err != nil {
		r.counts.SendFailed.Add(1)
		return
	}
	r.counts.Sent.Add(1)
}

// evict has those who use an allocation that is gone wait for another, which the client asks for. What is between us and them stays: each
// channel gets its number again, so nothing of ours need know. Only the peers see another relayed address, and follow us as they follow
// a peer that a NAT maps anew.
func (r *Relays) evict(now time.Duration, s *server) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if s.homeless == 0 {
		s.homeless = now + homelessFor
	}
	if s.status.Relayed.IsValid() {
		s.former = append(s.former[max(0, len(s.former)+1-maxFormer):], s.status.Relayed)
	}
}

// end closes what hangs on an allocation that is gone.
func (r *Relays) end(now time.Duration, s *server) {
	r.mu.Lock()
	tenants := s.tenants
	s.tenants = map[*tenant]struct{}{}
	s.status.Relayed = netip.AddrPort{} // so that nobody moves in
	s.homeless, s.former = 0, nil
	r.mu.Unlock()
	for t := range tenants {
		t.dead = true
		_ = t.facade.Close() // fails only if the agent was first
		t.facade.Drop(now, s.client)
		r.counts.facadeLost.Add(t.facade.Lost())
	}
	clear(s.interest)
	r.lost, r.changed = append(r.lost, s.addr), true
}

// tell calls back. No lock is held.
func (r *Relays) tell() {
	lost, moved, bound, changed := r.lost, r.moved, r.bound, r.changed
	r.lost, r.moved, r.bound, r.changed = nil, nil, nil, false
	for _, s := range lost {
		r.config.Lost(s)
	}
	for _, s := range moved {
		r.config.Moved(s)
	}
	for _, t := range bound {
		t.facade.bound()
	}
	if changed {
		r.config.Changed()
	}
}

// setServers compares what is with what is wanted.
func (r *Relays) setServers(now time.Duration, wanted []RelayServer) {
	var list, gone []*server
	for _, w := range wanted {
		i := slices.IndexFunc(r.servers, func(s *server) bool { return s.addr == w.Addr })
		if i < 0 || r.servers[i].broken {
			list = append(list, r.newServer(now, w))
			continue
		}
		s := r.servers[i]
		if s.credentials != w.Credentials {
			s.setCredentials(now, w)
		}
		list = append(list, s)
	}
	for _, s := range r.servers {
		if !slices.Contains(list, s) {
			gone = append(gone, s)
		}
	}
	r.mu.Lock()
	r.servers = list
	for i, s := range list {
		s.status.Name = wanted[i].Name
	}
	r.mu.Unlock()
	for _, s := range gone {
		r.release(now, s)
		s.leaves = now + leaveAfter
	}
	r.leaving = append(r.leaving, gone...)
	r.publish()
}

// release gives an allocation back.
func (r *Relays) release(now time.Duration, s *server) {
	if _, _, ok := s.client.Allocation(); ok || s.homeless != 0 {
		r.end(now, s)
	}
	s.client.Release(now)
}

// newServer makes a server and asks it for an allocation.
func (r *Relays) newServer(now time.Duration, w RelayServer) *server {
	r.leaving = slices.DeleteFunc(r.leaving, func(s *server) bool {
		if s.addr == w.Addr {
			r.drain(now, s)
			r.forget(s)
		}
		return s.addr == w.Addr
	})
	s := newServer(w, FacadePort+r.nextPort%4096)
	r.nextPort++
	if r.changed = r.changed || s.broken; !s.broken {
		s.client.Start(now)
	}
	return s
}

// forget keeps the counters of a server that has left.
func (r *Relays) forget(s *server) {
	for d := range DropCount {
		r.counts.clientDrops[d].Add(s.client.Dropped(d))
	}
}

// finish ends all: the requests that release the allocations are sent, and nobody waits for their answers.
func (r *Relays) finish(now time.Duration) {
	for _, s := range r.servers {
		r.release(now, s)
	}
	r.drainAll(now)
	for _, s := range slices.Concat(r.servers, r.leaving) {
		r.forget(s)
	}
	r.mu.Lock()
	defer r.mu.Unlock()
	r.servers, r.ready, r.leaving = nil, nil, nil
	r.known.Store(new([]netip.AddrPort))
}
