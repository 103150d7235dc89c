package turn

import (
	"sync/atomic"

	"github.com/sluice-vpn/sluice/pipeline/count"
)

// relayCounts counts what Relays did. Written and read by any goroutine.
type relayCounts struct {
	Received       atomic.Uint64 `help:"Datagrams received from TURN servers."`
	Sent           atomic.Uint64 `help:"Datagrams sent to TURN servers."`
	Delivered      atomic.Uint64 `help:"Datagrams of TURN servers given to ICE agents."`
	Allocations    atomic.Uint64 `help:"Allocations made at TURN servers."`
	Losses         atomic.Uint64 `name:"turn_allocations_lost" help:"Allocations at TURN servers that were lost."`
	InboxFull      atomic.Uint64 `name:"drop_turn_inbox_full" drop:"turn inbox_full" help:"Datagrams of TURN servers that came faster than they were read."`
	TooLong        atomic.Uint64 `name:"drop_turn_too_long" drop:"turn too_long" help:"Datagrams of TURN servers longer than any that we take."`
	UnknownServer  atomic.Uint64 `name:"drop_turn_server_gone" drop:"turn server_gone" help:"Datagrams of TURN servers that are not used any more."`
	SendFailed     atomic.Uint64 `name:"drop_turn_send_failed" drop:"turn send_failed" help:"Datagrams to TURN servers that the socket refused."`
	UnknownChannel atomic.Uint64 `name:"drop_turn_stripped_channel" drop:"turn stripped_channel" help:"ChannelData on a channel that nobody holds any more."`
	Unclaimed      atomic.Uint64 `name:"drop_turn_no_agent" drop:"turn no_agent" help:"Datagrams of peers that no ICE agent waits for."`

	facadeLost  atomic.Uint64            // of agents that are gone
	clientDrops [DropCount]atomic.Uint64 // of servers that are gone
}

// Received is how many datagrams have come from the servers: that is more than none where UDP passes and one of them is up, whatever
// it thinks of us.
func (r *Relays) Received() uint64 { return r.counts.Received.Load() }

// Counters returns what was counted, by name: drops as drop_turn_REASON, the rest with the prefix turn_.
func (r *Relays) Counters() []count.Counter {
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
	list := append(count.Of("turn_", c),
		count.Plain(count.Gauge, "turn_agents", "ICE agents that have a part in an allocation.", uint64(agents)),
		dropped("agent", "Datagrams that came faster than an ICE agent read them.", facades))
	for d := DropNone + 1; d < DropCount; d++ {
		list = append(list, dropped(d.String(), "Datagrams of TURN servers dropped for this reason.", drops[d]))
	}
	return list
}

func dropped(reason, help string, n uint64) count.Counter {
	return count.Labeled(count.Dropped, "drop_turn_"+reason, help, n, "stage", "turn", "reason", reason)
}
