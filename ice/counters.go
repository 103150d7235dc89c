package ice

import (
	"sync/atomic"

	"github.com/sluice-vpn/sluice/ice/stun"
	"github.com/sluice-vpn/sluice/pipeline/count"
)

// dropReason names why a datagram went no further. Each is a counter; nothing is logged for a datagram.
type dropReason uint8

// The drop reasons, in packet order: the check, the mux, checks on their way out. dropTable says what each means.
const (
	dropNone dropReason = iota
	dropNotSTUN
	dropMalformed
	dropNotBinding
	dropUnknownAttribute
	dropFingerprint
	dropIndication
	dropSource
	dropUnknownUsername
	dropUnauthentic
	dropLocalAddress
	dropTooManyRemotes
	dropInboxFull
	dropTransaction
	dropErrorResponse
	dropDestination
	dropInterface
	dropPaced
	dropUnanswered
	dropAddressCap
	dropGlobalCap
	dropChecksFull
	dropTransactionsFull
	dropSendFailed
	dropTaken // none: the mux itself has asked for it. Not counted
	dropReasons
)

// dropTable declares the counters of drops: the reason, which drop_ice_ begins the name of, and what it means.
var dropTable = [dropReasons]struct{ reason, help string }{
	dropNotSTUN:          {"not_stun", "No STUN header."},
	dropMalformed:        {"malformed", "STUN of a form that we do not take."},
	dropNotBinding:       {"not_binding", "Another method than Binding."},
	dropUnknownAttribute: {"unknown_attribute", "An attribute that had to be understood."},
	dropFingerprint:      {"fingerprint", "FINGERPRINT is wrong."},
	dropIndication:       {"indication", "Indications carry no proof of who sent them."},
	dropSource:           {"source", "From an address that nobody can have."},
	dropUnknownUsername:  {"unknown_username", "A request for no agent of ours."},
	dropUnauthentic:      {"unauthentic", "MESSAGE-INTEGRITY is wrong."},
	dropLocalAddress:     {"local_address", "A request at an address that the agent did not offer."},
	dropTooManyRemotes:   {"too_many_remotes", "An agent would have to remember too many addresses."},
	dropInboxFull:        {"inbox_full", "Pion did not take its messages in time."},
	dropTransaction:      {"unknown_transaction", "An answer to nothing we asked, or too late."},
	dropErrorResponse:    {"error_response", "A check was refused."},
	dropDestination:      {"destination", "A check to where no check may go."},
	dropInterface:        {"interface", "A check whose way is not through the interface of its address."},
	dropPaced:            {"paced", "A check that came too soon after the last one to an address that is silent."},
	dropUnanswered:       {"unanswered", "A check beyond the bound for an address that does not answer."},
	dropAddressCap:       {"address_cap", "The same over all agents."},
	dropGlobalCap:        {"global_cap", "A check beyond what all agents may send to silent addresses."},
	dropChecksFull:       {"checks_full", "Too many pairs of one agent wait to be checked."},
	dropTransactionsFull: {"transactions_full", "Too many requests of one agent are unanswered."},
	dropSendFailed:       {"send_failed", "The socket refused it."},
}

// dropOf names what the check of a message has found.
var dropOf = [stun.DropCount]dropReason{
	stun.DropNotSTUN: dropNotSTUN, stun.DropLength: dropMalformed, stun.DropMethod: dropNotBinding, stun.DropRequest: dropMalformed,
	stun.DropIndication: dropIndication, stun.DropAttribute: dropMalformed, stun.DropOrder: dropMalformed, stun.DropUnknown: dropUnknownAttribute,
	stun.DropAddress: dropMalformed, stun.DropValue: dropMalformed, stun.DropFingerprint: dropFingerprint, stun.DropIncomplete: dropMalformed,
}

// counters counts what the mux did. Written and read by any goroutine.
type counters struct {
	drops         [dropReasons]atomic.Uint64
	Requests      atomic.Uint64   `help:"Checks received and given to an agent."`
	Answers       atomic.Uint64   `help:"Answers received to checks of ours."`
	ChecksSent    atomic.Uint64   `help:"Checks sent."`
	AnswersSent   atomic.Uint64   `help:"Answers sent to checks of peers."`
	ProbesSent    atomic.Uint64   `help:"Questions sent to STUN servers for our address."`
	AgentsStarted atomic.Uint64   `help:"ICE agents started."`
	AgentsFailed  atomic.Uint64   `help:"ICE agents that found no path, or lost it."`
	PathsFound    atomic.Uint64   `help:"Candidate pairs selected."`
	Trials        atomic.Uint64   `help:"Trials whether a peer is to be followed to another address."` // see roam.go
	Moves         atomic.Uint64   `help:"Peers followed to another address."`
	RTTSeconds    count.Histogram `name:"ice_rtt_seconds" unit:"1e-4" help:"Round trips of checks with peers. In SLUICE_STATS in units of 0.1 ms."`
}

func (c *counters) drop(r dropReason) { c.drops[r].Add(1) }

// Counters returns what was counted, by name: drops as drop_ice_REASON, the rest with the prefix ice_. ice_agents is how many
// there are now.
func (m *Mux) Counters() []count.Counter {
	c := &m.counters
	m.mu.Lock()
	agents := len(m.members)
	m.mu.Unlock()
	list := append(count.Of("ice_", c), count.Plain(count.Gauge, "ice_agents", "ICE agents there are.", uint64(agents)))
	for r := dropNone + 1; r < dropTaken; r++ {
		d := dropTable[r]
		list = append(list, count.Labeled(count.Dropped, "drop_ice_"+d.reason, d.help, c.drops[r].Load(), "stage", "ice", "reason", d.reason))
	}
	return list
}
