package ice

import (
	"errors"
	"sync"
	"time"

	"github.com/sluice-vpn/sluice/pipeline"
)

var errNumber = errors.New("no agent of that number")

// Connection is an agent in use and one that is to take over, as whoever owns agents has them.
type Connection struct {
	config AgentConfig

	mu            sync.Mutex
	latest        uint32
	current, next *Agent
	path          *pipeline.Path // stays when the agent in use is closed
	closes        sync.WaitGroup
}

func NewConnection(cfg AgentConfig) *Connection { return &Connection{config: cfg} }

// owners are the connections of agents, and the agents' numbers.
var owners sync.Map

type owner struct {
	*Connection
	number uint32
}

// ownerOf says whose an event is, nil and 0 if nobody's.
func ownerOf(e Event) (*Connection, uint32) {
	if o, ok := owners.Load(e.Agent); ok {
		return o.(owner).Connection, o.(owner).number
	}
	return nil, 0
}

// settle moves to the second agent when it has a path. The lock is held.
func (c *Connection) settle() {
	if c.next != nil && c.next.Path() != nil {
		c.shut(&c.current)
		c.current, c.next = c.next, nil
	}
	if c.current != nil {
		c.path = c.current.Path()
	}
}

// shut closes an agent, if there is one. The lock is held.
func (c *Connection) shut(a **Agent) {
	if old := *a; old != nil {
		c.closes.Go(func() { old.Close() })
	}
	*a = nil
}

// Restart makes an agent beside the one in use; one that was connecting is closed.
func (c *Connection) Restart(number uint32) (Credentials, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.settle()
	a, err := NewAgent(c.config)
	if err != nil {
		return Credentials{}, err
	}
	c.shut(&c.next)
	c.next, c.latest = a, number
	owners.Store(a, owner{c, number})
	return a.Credentials(), nil
}

// agent is the one of that number.
func (c *Connection) agent(number uint32) (*Agent, error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for _, a := range []*Agent{c.next, c.current} {
		if o, ok := owners.Load(a); a != nil && ok && o.(owner).number == number {
			return a, nil
		}
	}
	return nil, errNumber
}

func (c *Connection) Connect(number uint32, remote Credentials) error {
	a, err := c.agent(number)
	if err != nil {
		return err
	}
	return a.Connect(remote)
}

func (c *Connection) AddCandidate(number uint32, text string) error {
	a, err := c.agent(number)
	if err != nil {
		return err
	}
	return a.AddCandidate(text)
}

func (c *Connection) Path() *pipeline.Path {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.settle()
	return c.path
}

// used is the agent in use, nil if there is none.
func (c *Connection) used() *Agent {
	c.mu.Lock()
	defer c.mu.Unlock()
	c.settle()
	return c.current
}

func (c *Connection) LastSeen() (at time.Time, roundTrip time.Duration) {
	if a := c.used(); a != nil {
		return a.LastSeen()
	}
	return at, 0
}

func (c *Connection) Check() {
	if a := c.used(); a != nil {
		a.Check()
	}
}

func (c *Connection) Stray(path pipeline.Path) {
	if a := c.used(); a != nil {
		a.Stray(path)
	}
}

// CloseAgent closes the agent of that number; the path stays.
func (c *Connection) CloseAgent(number uint32) {
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

func (c *Connection) Close() error {
	c.mu.Lock()
	c.shut(&c.next)
	c.shut(&c.current)
	c.path = nil
	c.mu.Unlock()
	c.closes.Wait()
	return nil
}
