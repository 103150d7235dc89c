package turn

import (
	"sync/atomic"

	"github.com/sluice-vpn/sluice/pipeline"
)

// relayCounts counts what Relays did. Written and read by any goroutine.
type relayCounts struct {
	received, sent, delivered                     atomic.Uint64
	allocations, losses                           atomic.Uint64
	inboxFull, tooLong, unknownServer, sendFailed atomic.Uint64
	unknownChannel, unclaimed                     atomic.Uint64
	facadeLost                                    atomic.Uint64            // of agents that are gone
	clientDrops                                   [DropCount]atomic.Uint64 // of servers that are gone
}

// Received is how many datagrams have come from the servers: that is more than none where UDP passes and one of them is up, whatever
// it thinks of us.
func (r *Relays) Received() uint64 { return r.counts.received.Load() }

// Counters returns what was counted, by name: drops as drop_turn_REASON, the rest with the prefix turn_.
func (r *Relays) Counters() []pipeline.Counter {
	c := &r.counts
	facades, agents := c.facadeLost.Load(), 0
	var drops [DropCount]uint64
	for d := range DropCount {
		drops[d] = c.clientDrops[d].Load()
	}
	r.mu.Lock()
	for _, s := range r.servers {
		for d := range DropCount {
			drops[d] += s.client.Dropped(d)
		}
		agents += len(s.tenants)
		for t := range s.tenants {
			facades += t.facade.Lost()
		}
	}
	r.mu.Unlock()
	list := []pipeline.Counter{
		{Name: "turn_received", Value: c.received.Load()},
		{Name: "turn_sent", Value: c.sent.Load()},
		{Name: "turn_delivered", Value: c.delivered.Load()},
		{Name: "turn_allocations", Value: c.allocations.Load()},
		{Name: "turn_allocations_lost", Value: c.losses.Load()},
		{Name: "turn_agents", Value: uint64(agents)}, // now
		{Name: "drop_turn_inbox_full", Value: c.inboxFull.Load()},
		{Name: "drop_turn_too_long", Value: c.tooLong.Load()},
		{Name: "drop_turn_server_gone", Value: c.unknownServer.Load()},
		{Name: "drop_turn_send_failed", Value: c.sendFailed.Load()},
		{Name: "drop_turn_stripped_channel", Value: c.unknownChannel.Load()},
		{Name: "drop_turn_no_agent", Value: c.unclaimed.Load()},
		{Name: "drop_turn_agent", Value: facades},
	}
	for d := DropNone + 1; d < DropCount; d++ {
		list = append(list, pipeline.Counter{Name: "drop_turn_" + d.String(), Value: drops[d]})
	}
	return list
}
