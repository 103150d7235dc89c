package signal

// retiredRuns is how many earlier runs of a peer are remembered.
const retiredRuns = 4

// Generations tells which messages still matter, when a broker drops, repeats and reorders them and nodes restart. It
// keeps one number for each peer: the newest attempt to connect, whichever side began it.
//
//   - An offer of an older generation is dropped; a newer one becomes the newest; the same once more adds candidates
//     (or is a repetition; offers are idempotent).
//   - An answer or a bye counts only if its generation is the newest one: no other attempt is under way.
//   - An offer of a new run of the peer's program begins counting anew. What still comes from its old run is dropped, unless
//     it is newer than all that this run had sent: then the old run is alive, and the switch was the mistake.
//
// A peer that was away while we tried to reach it has not counted our attempts: its next offer is older than they are, and yet
// no late one. And a peer may take an attempt for the newest that is not. Judge tells these from late messages.
//
// If both sides offer the same generation, both offers are accepted; the caller's roles decide which is followed. No clock
// is involved, so it does not matter how wrong a node's is. Make one with NewGenerations. It belongs to one goroutine, and
// holds less than 200 bytes for each peer until Forget.
type Generations struct {
	peers map[string]*newest
}

// run is one run of a peer's program and how far the generations had come in it.
type run struct{ id, generation uint64 }

// newest is what is known of one peer.
type newest struct {
	run     // the current one; its id is 0 before anything was received
	highest uint64
	offered uint64 // the greatest that the current run has offered
	retired [retiredRuns]run
	next    int // index into retired that is overwritten next
}

// NewGenerations returns an empty table.
func NewGenerations() *Generations { return &Generations{peers: map[string]*newest{}} }

// Next begins an attempt and returns the generation for its offer: one more than any seen from or used with the peer.
func (g *Generations) Next(peer string) uint64 {
	n := g.of(peer)
	if n.highest >= MaxGeneration { // the peer jumped there, nobody counts that far
		*n = newest{}
	}
	n.reach(n.highest + 1)
	return n.generation
}

// Newest returns the newest generation of attempts with peer, 0 if there was none.
func (g *Generations) Newest(peer string) uint64 {
	if n := g.peers[peer]; n != nil {
		return n.generation
	}
	return 0
}

// Worth is what a received message is good for.
type Worth uint8

const (
	// Late: it is about an attempt that was replaced, or of an earlier run of the peer: to be dropped.
	Late Worth = iota
	// Current: it is about the newest attempt, or begins a newer one.
	Current
	// Behind: a peer that does not know how far we have counted begins an attempt. It does not become the newest, but calls for
	// one of ours, whose number the peer accepts. A repetition is Late.
	Behind
	// Astray: the peer answers, or goes on with, an attempt that is not the newest one. It must be told.
	Astray
)

// Judge says what msg is worth, and notes its generation and run if that is Current.
func (g *Generations) Judge(msg *Msg) Worth {
	switch newest := g.Newest(msg.From); {
	case msg.Kind == Bye && msg.Generation != newest:
		return Late
	case msg.Kind == Answer && msg.Generation != newest, msg.Kind == Offer && msg.Agent > 1 && msg.Generation < newest:
		if n := g.peers[msg.From]; n != nil && n.id == msg.Run {
			return Astray
		}
		return Late
	}
	n := g.of(msg.From)
	switch {
	case n.id == 0 || n.id == msg.Run:
		if msg.Generation < n.generation {
			return n.behind(msg.Generation)
		}
		n.id = msg.Run
	case !n.enter(msg.Run, msg.Generation):
		return Late
	}
	n.reach(msg.Generation)
	if msg.Kind == Offer {
		n.offered = max(n.offered, msg.Generation)
	}
	return Current
}

// behind judges an offer of the current run that is older than the newest attempt.
func (n *newest) behind(generation uint64) Worth {
	if generation <= n.offered {
		return Late
	}
	n.offered = generation
	return Behind
}

// Forget removes what is known of a peer. It is for peers that were removed from the configuration, not for closed
// connections: without memory an old message would be taken for a new one.
func (g *Generations) Forget(peer string) { delete(g.peers, peer) }

func (g *Generations) of(peer string) *newest {
	n := g.peers[peer]
	if n == nil {
		n = &newest{}
		g.peers[peer] = n
	}
	return n
}

func (n *newest) reach(generation uint64) {
	n.generation = generation
	n.highest = max(n.highest, generation)
}

// enter makes id the current run, and retires the one before, unless a message of this generation can be a late one.
func (n *newest) enter(id, generation uint64) bool {
	for i := range n.retired {
		if n.retired[i].id != id {
			continue
		}
		if generation <= n.retired[i].generation {
			return false
		}
		n.retired[i], n.run, n.offered = n.run, run{id: id}, 0
		return true
	}
	n.retired[n.next], n.run, n.offered = n.run, run{id: id}, 0
	n.next = (n.next + 1) % retiredRuns
	return true
}
