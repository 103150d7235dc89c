package link

import (
	"log/slog"
	"math/rand/v2"
	"net/netip"
	"time"

	"github.com/sluice-vpn/sluice/ice/signal"
	"github.com/sluice-vpn/sluice/pipeline"
)

// AttemptNumber numbers the attempts of a pair of nodes, from 1, the same on both sides. It is called gen in messages, and generation
// in logs and status.
type AttemptNumber uint32

// AgentNumber numbers the agents of an attempt, from 1, the same on both sides. 0: none.
type AgentNumber uint32

// TaskKind says what a link wants of whoever may wait.
type TaskKind uint8

// The tasks. Which fields are set stands behind each; Peer always is, and Attempt but for TaskAsk.
const (
	// TaskAsk: ask the portal for the peer's present keys, apply them (Pipeline.Edit), then call HandleAnswer.
	TaskAsk TaskKind = iota
	// TaskAgent: start ICE agent number Agent, then call HandleAgent. Controlling is the attempt's role.
	TaskAgent
	// TaskCloseAgent: close it; then call HandleAgentGone.
	TaskCloseAgent
	// TaskCheck: nothing is heard over the pair that agent number Agent has selected; have it checked at once.
	TaskCheck
	// TaskPath: the connection's datagrams go to Path from now on, nil: nowhere. A TURN channel in it must be kept.
	TaskPath
	// TaskStray: agent number Agent is in use, and authentic data of the peer came from Path.Dst to Path.Src, or over our relay at Path.Dst from Path.Peer or, if that
	// is not set, over Path.Channel; and not from where the connection's path leads. If the peer is there now, it is news of the agent.
	TaskStray
	// TaskSend: send Message to the peer, with our public key; then call HandleSent for agent number Agent.
	TaskSend
	// TaskBye: send Message. Nobody waits for what becomes of it.
	TaskBye
	// TaskUp: the first session of the attempt is up.
	TaskUp
	// TaskClosed: the attempt is over, see Closed. Nothing follows for it.
	TaskClosed
)

// Task is one thing that a link wants of the outside. It is frozen.
type Task struct {
	Kind        TaskKind
	Peer        string // its name
	Attempt     AttemptNumber
	Serial      uint64 // of the attempt, which no other of this program has
	Agent       AgentNumber
	Controlling bool
	Path        *pipeline.Path
	Message     signal.Message
	Closed      Closed
}

// Agent is an ICE agent, or what plays one. Its methods are called on the control goroutine and never wait for the network.
type Agent interface {
	// AddCandidate gives it a candidate of the peer, as text. An error: it is not taken.
	AddCandidate(text string) error
	// Connect has it check, with the peer's credentials. It comes once.
	Connect(ufrag, pwd string) error
	// LastHeard is when a valid STUN message was heard by it, once it has selected a pair, on the pipeline's clock; 0: never.
	LastHeard() time.Duration
}

// Started is what came of TaskAgent.
type Started struct {
	Agent      Agent
	Ufrag, Pwd string
	Relays     int // that it was made with
	Err        error
}

// News are what is new about an agent, each told once but for State and Path.
type News struct {
	Agent      AgentNumber
	Candidates []string // to be signaled
	Gathered   bool     // no more will come
	Selected   bool     // it has selected a pair
	Failed     bool     // it has given up
	// Path is the one that it has found, nil: none, with a number that grows when it is another. Local and Remote are the types of its
	// candidates.
	Path          *pipeline.Path
	Local, Remote string
}

// Peer is what the portal says of a peer.
type Peer struct {
	PublicKey [32]byte    // that the pipeline has for it
	Client    bool        // it is one
	Wanted    bool        // a connection with it is to be there without traffic
	Distrust  CloseReason // why there may be no session; CloseUnspecified: there may be
}

// Facts are what all links go by. Owned by control; whoever finds them out writes them there (Pipeline.Edit).
type Facts struct {
	RelaysUp    int           // relays that are up
	RelaysUntil time.Duration // attempts wait for a first relay until then; 0: they do not
	Obstacle    CloseCause    // what keeps us from being reached; CauseNone: nothing that is known
}

// Config describes Links. Name and Task are required.
type Config struct {
	// Name is this node's, and Client its role.
	Name   string
	Client bool
	// Task gets what links want of the outside, on the control goroutine. It must not block, nor call the pipeline's methods: it fills
	// a mailbox.
	Task func(Task)
	// Signaling tells whether messages may reach peers, Reachable whether it makes sense to want them. While it does not, no wish fails.
	// Both are called on the control goroutine and must not block; nil: they may, and it does.
	Signaling, Reachable func() bool
	// Logger is nil to discard; Wall reads the wall clock, nil is the system's; Random spreads what must not come at one moment, nil is
	// math/rand/v2.
	Logger *slog.Logger
	Wall   func() time.Time
	Random func() uint32
}

// Links are the links to all named peers of a pipeline, whose Connector they are. Owned by control.
type Links struct {
	Facts Facts
	// Generations says how far the attempts with each peer are numbered. Of a peer that was removed for good it is forgotten: without
	// memory an old message is taken for a new one.
	Generations *signal.Generations
	config      Config
	named       map[string]*Link
	stats       stats
	serials     uint64
}

// New makes Links for one pipeline.
func New(cfg Config) *Links {
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	if cfg.Wall == nil {
		cfg.Wall = wallClock
	}
	if cfg.Random == nil {
		cfg.Random = rand.Uint32
	}
	yes := func() bool { return true }
	if cfg.Signaling == nil {
		cfg.Signaling = yes
	}
	if cfg.Reachable == nil {
		cfg.Reachable = yes
	}
	return &Links{config: cfg, named: make(map[string]*Link), Generations: signal.NewGenerations()}
}

// Link obeys pipeline.Connector.
func (c *Links) Link(name string) pipeline.Link {
	l := &Link{links: c, name: name}
	c.named[name] = l
	return l
}

// Of is the link of the peer of that name, nil if there is none. Control only.
func (c *Links) Of(name string) *Link { return c.named[name] }

var _ pipeline.Connector = (*Links)(nil)

// spread is a random part of d.
func (c *Links) spread(d time.Duration) time.Duration {
	return d / (1 << 16) * time.Duration(c.config.Random()>>16)
}

// RelayNews says what has become of our relays.
type RelayNews struct {
	Lost, Moved []netip.AddrPort // without an allocation, or with another one than before
	Changed     bool             // Facts.RelaysUp may be another
}
