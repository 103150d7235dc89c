package turn

import (
	"errors"
	"sync"
	"time"

	"github.com/sluice-vpn/sluice/ice"
	"github.com/sluice-vpn/sluice/pipeline"
)

var errNumber = errors.New("no agent of that number")

// connection is an agent in use and one that is to take over, as whoever owns agents has them.
type connection struct {
	config ice.AgentConfig

	mu            sync.Mutex
	latest        uint32
	current, next *ice.Agent
	path          *pipeline.Path // stays when the agent in use is closed
	closes        sync.WaitGroup
}

func newConnection(cfg ice.AgentConfig) *connection { return &connection{config: cfg} }

// owners are the connections of agents, and the agents' numbers.
var owners sync.Map

type owner struct {
	*connection
	number uint32
}

// ownerOf says whose an event is, nil and 0 if nobody's.
func ownerOf(e ice.Event) (*connection, uint32) {
	if o, ok := owners.Load(e.Agent); ok {
		return o.(owner).connection, o.(owner).number
	}
	return nil, 0
}

// settle moves to the second agent when it has a path. The lock is held.
func (c *connection) settle() {
	if c.next != nil && c.next.Path() != nil {
		c.shut(&c.current)
		c.current, c.next = c.next, nil
	}
	if c.current != nil {
		c.path = c.current.Path()
	}
}

// shut closes an agent, if there is one. The lock is held.
func (c *connection) shut(a **ice.Agent) {
	if old := *a; old != nil {
		c.closes.Go(func() { old.Close() })
	}
	*a = nil
}

// Restart makes an agent beside the one in use; one that was connecting is closed.
func (c *connection) Restart(number uint32) (ice.Credentials, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.settle()
	a, err := ice.NewAgent(c.config)
	if err != nil {
		return ice.Credentials{}, err
	}
	c.shut(&c.next)
	c.next, c.latest = a, number
	owners.Store(a, owner{c, number})
	return a.Credentials(), nil
}

// agent is the one of that number.
func (c *connection) agent(number uint32) (*ice.Agent, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range []*ice.Agent{c.next, c.current} {
		if o, ok := owners.Load(a); a != nil && ok && o.(owner).number == number {
			return a, nil
		}
	}
	return nil, errNumber
}

func (c *connection) Connect(number uint32, remote ice.Credentials) error {
	a, err := c.agent(number)
	if err != nil {
		return err
	}
	return a.Connect(remote)
}

func (c *connection) AddCandidate(number uint32, text string) error {
	a, err := c.agent(number)
	if err != nil {
		return err
	}
	return a.AddCandidate(text)
}

func (c *connection) Path() *pipeline.Path {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.settle()
	return c.path
}

// used is the agent in use, nil if there is none.
func (c *connection) used() *ice.Agent {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.settle()
	return c.current
}

func (c *connection) LastSeen() (at time.Time, roundTrip time.Duration) {
	if a := c.used(); a != nil {
		return a.LastSeen()
	}
	return at, 0
}

func (c *connection) Check() {
	if a := c.used(); a != nil {
		a.Check()
	}
}

func (c *connection) Stray(path pipeline.Path) {
	if a := c.used(); a != nil {
		a.Stray(path)
	}
}

// CloseAgent closes the agent of that number; the path stays.
func (c *connection) CloseAgent(number uint32) {
	a, err := c.agent(number)
	if err != nil {
		return
	}
	c.mu.Lock()
	c.settle()
	switch a {
	case c.next:
		c.next = nil
	case c.current:
		c.current = nil
	}
	c.mu.Unlock()
	_ = a.Close()
}

func (c *connection) Close() error {
	c.mu.Lock()
	c.shut(&c.next)
	c.shut(&c.current)
	c.path = nil
	c.mu.Unlock()
	c.closes.Wait()
	return nil
}
