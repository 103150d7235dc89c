package ice

import (
	"sync/atomic"

	"github.com/sluice-vpn/sluice/pipeline"
)

// dropReason names why a datagram went no further. Each is a counter; nothing is logged for a datagram.
type dropReason uint8

// The drop reasons, in packet order: validate, the mux, checks on their way out.
const (
	dropNone             dropReason = iota
	dropNotSTUN                     // no STUN header
	dropMalformed                   // STUN of a form that we do not take, see validate
	dropNotBinding                  // another method than Binding
	dropUnknownAttribute            // an attribute that had to be understood
	dropFingerprint                 // FINGERPRINT is wrong
	dropIndication                  // indications carry no proof of who sent them
	dropSource                      // from an address that nobody can have
	dropUnknownUsername             // a request for no agent of ours
	dropUnauthentic                 // MESSAGE-INTEGRITY is wrong
	dropLocalAddress                // a request at an address that the agent did not offer
	dropTooManyRemotes              // an agent would have to remember too many addresses
	dropInboxFull                   // pion did not take its messages in time
	dropTransaction                 // an answer to nothing we asked, or too late
	dropErrorResponse               // a check was refused
	dropDestination                 // a check to where no check may go
	dropInterface                   // a check whose way is not through the interface of its address
	dropPaced                       // a check that came too soon after the last one to an address that is silent
	dropUnanswered                  // a check beyond the bound for an address that does not answer
	dropAddressCap                  // the same over all agents
	dropGlobalCap                   // a check beyond what all agents may send to silent addresses
	dropChecksFull                  // too many pairs of one agent wait to be checked
	dropTransactionsFull            // too many requests of one agent are unanswered
	dropSendFailed                  // the socket refused it
	dropTaken                       // none: the mux itself has asked for it. Not counted
	dropReasons
)

var dropNames = [dropReasons]string{
	"", "not_stun", "malformed", "not_binding", "unknown_attribute", "fingerprint", "indication", "source",
	"unknown_username", "unauthentic", "local_address", "too_many_remotes", "inbox_full", "unknown_transaction",
	"error_response", "destination", "interface", "paced", "unanswered", "address_cap", "global_cap", "checks_full",
	"transactions_full", "send_failed", "",
}

// counters counts what the mux did. Written and read by any goroutine.
type counters struct {
	drops                                   [dropReasons]atomic.Uint64
	requests, answers                       atomic.Uint64 // received and given to an agent
	checksSent, answersSent, probesSent     atomic.Uint64
	agentsStarted, agentsFailed, pathsFound atomic.Uint64
	trials, moves                           atomic.Uint64 // see roam.go
}

func (c *counters) drop(r dropReason) { c.drops[r].Add(1) }

// Counters returns what was counted, by name: drops as drop_ice_REASON, the rest with the prefix ice_. ice_agents is how many
// there are now.
func (m *Mux) Counters() []pipeline.Counter {
	c := &m.counters
	m.mu.Lock()
	agents := len(m.members)
	m.mu.Unlock()
	list := []pipeline.Counter{
		{Name: "ice_agents", Value: uint64(agents)},
		{Name: "ice_requests", Value: c.requests.Load()},
		{Name: "ice_answers", Value: c.answers.Load()},
		{Name: "ice_checks_sent", Value: c.checksSent.Load()},
		{Name: "ice_answers_sent", Value: c.answersSent.Load()},
		{Name: "ice_probes_sent", Value: c.probesSent.Load()},
		{Name: "ice_agents_started", Value: c.agentsStarted.Load()},
		{Name: "ice_agents_failed", Value: c.agentsFailed.Load()},
		{Name: "ice_paths_found", Value: c.pathsFound.Load()},
		{Name: "ice_trials", Value: c.trials.Load()},
		{Name: "ice_moves", Value: c.moves.Load()},
	}
	for r := dropNone + 1; r < dropTaken; r++ {
		list = append(list, pipeline.Counter{Name: "drop_ice_" + dropNames[r], Value: c.drops[r].Load()})
	}
	return list
}
