package ice

import (
	"sync"

	"github.com/sluice-vpn/sluice/pipeline"
)

// State is how far an agent has come.
type State uint8

const (
	StateWaiting      State = iota // for the peer's credentials, or for its turn to start
	StateChecking                  // checks are sent
	StateConnected                 // a pair is selected
	StateDisconnected              // the selected pair has been silent for disconnectedTimeout
	StateFailed                    // no pair, or silent for too long: the agent is closed
)

func (s State) String() string {
	return [...]string{
		StateWaiting: "waiting", StateChecking: "checking", StateConnected: "connected", StateDisconnected: "disconnected", StateFailed: "failed",
	}[s]
}

// Event is what is new about an agent since its last event. News are merged: only the latest state and path are told, candidates are
// never left out.
type Event struct {
	Agent *Agent
	// Candidates are new local candidates, as text to be signaled to the peer.
	Candidates []string
	// Gathered: no more will come.
	Gathered bool
	State    State
	// Path is the one that the agent has found, nil: none; frozen. Its Number grows when it is another.
	Path *pipeline.Path
	// Local and Remote are the candidate types of the path: host, srflx, prflx or relay.
	Local, Remote string
}

// Mailbox takes the news of agents to their owner. Callbacks fill it and never wait; an agent is in it at most
// once, so it is bounded by the number of agents. The zero value is not usable; make it with NewMailbox.
type Mailbox struct {
	wake chan struct{}

	mu    sync.Mutex // a leaf
	queue []*Agent
}

// NewMailbox makes a Mailbox for any number of agents.
func NewMailbox() *Mailbox { return &Mailbox{wake: make(chan struct{}, 1)} }

// Wake delivers a value when there is something to Poll after there was nothing.
func (b *Mailbox) Wake() <-chan struct{} { return b.wake }

// Poll returns the next event; ok is false when there is none. It does not wait.
func (b *Mailbox) Poll() (e Event, ok bool) {
	for {
		b.mu.Lock()
		if len(b.queue) == 0 {
			b.mu.Unlock()
			return Event{}, false
		}
		a := b.queue[0]
		b.queue[0] = nil // else a closed agent would stay until the queue moves
		b.queue = b.queue[1:]
		b.mu.Unlock()
		if e, ok := a.takeNews(); ok {
			return e, true
		}
	}
}

// post queues an agent that has news; the agent knows whether it is queued.
func (b *Mailbox) post(a *Agent) {
	b.mu.Lock()
	b.queue = append(b.queue, a)
	b.mu.Unlock()
	select {
	case b.wake <- struct{}{}:
	default:
	}
}
