package turn

import (
	"fmt"
	"io"
	"net/netip"
	"sync/atomic"
	"time"

	"github.com/sluice-vpn/sluice/ice/stun"
)

// Client keeps one allocation on one server up. It belongs to one goroutine, but for Dropped, which any may call. The times that
// it is given may have any origin after which now is positive, but must not go back. After each call drain Poll, then
// look at NextTimeout.
type Client struct {
	// frozen
	server   netip.AddrPort
	family   Family
	lifetime time.Duration
	random   io.Reader

	// credentials: in use, and newer ones that are to be used
	inUse, next  Credentials
	tied         bool // the server does not let the allocation go over to next
	realm, nonce string
	key          *stun.Key // of inUse and realm; nil: the server has not asked yet

	// the allocation
	state           state
	relayed, mapped netip.AddrPort
	allocatedAt     time.Duration
	expires         time.Duration
	doubtful        bool // lost by silence only: the server may still know it
	deleted         bool // a stranger's allocation on our 5-tuple was given back in this attempt
	failures        int  // attempts in a row, for the back-off
	losses          int  // in a row, after each of which another allocation was asked for at once
	quiet           bool // silence was reported and nothing heard since

	// requests
	allocation, keepalive, silence operation
	transactions                   map[stun.ID]*operation
	deadlines                      deadlines

	// channels and permissions
	bindings    map[netip.AddrPort]*binding // by peer; port 0: permission only
	list        []*binding                  // the same, in an order that does not depend on chance
	numbers     map[uint16]*binding
	permitted   map[netip.Addr]int // bindings that are held, by address
	nextNumber  uint16
	permissions int        // of bindings, those without a channel
	waiting     []*binding // for a place among maxInFlight
	inFlight    int

	message stun.Message // of the datagram that is handled now
	outputs []Output

	// atomic
	drops [DropCount]atomic.Uint64
}

type state uint8

const (
	stateIdle       state = iota // not started
	stateWaiting                 // for the back-off
	stateAllocating              // Allocate is in flight
	stateConfirming              // 437 to Allocate after silence: is it ours, still?
	stateDeleting                // 437 to Allocate: an allocation of an earlier process is given back
	stateAllocated
	stateRefused   // nothing is likely to change before SetCredentials
	stateReleasing // Refresh with lifetime 0 is in flight, or will be
	stateReleased
)

var stateNames = [...]string{
	stateIdle: "idle", stateWaiting: "waiting", stateAllocating: "allocating", stateConfirming: "confirming",
	stateDeleting: "deleting", stateAllocated: "allocated", stateRefused: "refused", stateReleasing: "releasing",
	stateReleased: "released",
}

// New makes a client that does nothing before Start.
func New(config Config) (*Client, error) {
	if err := config.check(); err != nil {
		return nil, err
	}
	c := &Client{
		server: config.Server, family: config.Family, lifetime: config.Lifetime.Truncate(time.Second), random: config.Random,
		inUse: config.Credentials, next: config.Credentials,
		transactions: make(map[stun.ID]*operation),
		bindings:     make(map[netip.AddrPort]*binding),
		numbers:      make(map[uint16]*binding),
		permitted:    make(map[netip.Addr]int),
	}
	for _, op := range []*operation{&c.allocation, &c.keepalive, &c.silence} {
		op.index = unscheduled
	}
	return c, nil
}

// Format prints the server and the state only, since a client holds secrets.
func (c *Client) Format(f fmt.State, _ rune) { _, _ = fmt.Fprintf(f, "%v %s", c.server, c.State()) }

// State names what the client is about, for status: idle, waiting, allocating, confirming, deleting, allocated, refused,
// releasing or released.
func (c *Client) State() string { return stateNames[c.state] }

// Server is the server's address.
func (c *Client) Server() netip.AddrPort { return c.server }

// Allocation returns the relayed address and our own as the server sees it. ok is false if there is none at present.
func (c *Client) Allocation() (relayed, mapped netip.AddrPort, ok bool) {
	if c.state != stateAllocated {
		return relayed, mapped, false
	}
	return c.relayed, c.mapped, true
}

// Dropped returns how many datagrams were dropped for this reason. Any goroutine may call it.
func (c *Client) Dropped(d Drop) uint64 {
	if d >= DropCount {
		return 0
	}
	return c.drops[d].Load()
}

// Start asks for an allocation, unless there is one or one is being asked for.
func (c *Client) Start(now time.Duration) {
	switch c.state {
	case stateIdle, stateRefused, stateReleasing, stateReleased:
		c.stop(&c.allocation)
		c.failures, c.losses, c.deleted, c.doubtful, c.quiet = 0, 0, false, false, false
		c.allocate(now)
	}
}

// SetCredentials gives newer credentials. The next Refresh is made with them: a server that knows them for the same user's, as
// ice/relay does, takes them from then on, and the allocation may outlive the older ones. One that ties an allocation to the
// credentials it was made with (441; RFC 8656, section 5) gets those on, and the newer ones with the next allocation. A
// client that was refused tries again.
func (c *Client) SetCredentials(now time.Duration, next Credentials) error {
	if err := next.check(); err != nil {
		return err
	}
	c.next, c.tied = next, false
	if c.state == stateRefused {
		c.Start(now)
	}
	return nil
}

// Release gives the allocation back and never waits: the request is there to poll when the call returns, and who has no time may
// forget the client then. Who goes on driving it gets Released within a few seconds. Channels and permissions are
// forgotten without a word each.
func (c *Client) Release(now time.Duration) {
	if c.state == stateReleasing || c.state == stateReleased {
		return
	}
	held := c.state == stateAllocated || c.state == stateConfirming || c.doubtful
	pending := c.state == stateAllocating && c.allocation.signed
	c.forgetBindings()
	c.stop(&c.keepalive)
	c.unschedule(&c.silence)
	switch {
	case held:
		c.stop(&c.allocation)
		c.state = stateReleasing
		c.allocation.begin()
		c.request(now, &c.allocation, stun.Refresh)
	case pending:
		c.state = stateReleasing // an answer to Allocate is released when it comes
	default:
		c.released()
	}
}

func (c *Client) released() {
	c.stop(&c.allocation)
	c.state = stateReleased
	c.doubtful = false
	c.relayed, c.mapped = netip.AddrPort{}, netip.AddrPort{}
	c.emit(Output{Kind: Released})
}

// Probe asks the server for a sign of life now, whether it still has the allocation, and where it sees us: not every server answers a
// Refresh from a 5-tuple that has none. It is for when a path over the server is in doubt: a dead server is reported after SilentAfter
// and not only when the next keepalive is due.
func (c *Client) Probe(now time.Duration) {
	if c.state != stateAllocated {
		return
	}
	if !c.allocation.running {
		c.refresh(now)
	}
	if !c.keepalive.running {
		c.request(now, &c.keepalive, stun.Binding)
	}
}

// Poll returns the next output. ok is false when there is none.
func (c *Client) Poll() (out Output, ok bool) {
	if len(c.outputs) == 0 {
		return Output{}, false
	}
	out = c.outputs[0]
	c.outputs[0] = Output{}
	c.outputs = c.outputs[1:]
	if len(c.outputs) == 0 {
		c.outputs = nil
	}
	return out, true
}

func (c *Client) emit(out Output) { c.outputs = append(c.outputs, out) }

// NextTimeout returns when HandleTimeout must be called next, and what for. 0: not until something else happens.
func (c *Client) NextTimeout() (at time.Duration, why Why) {
	if len(c.deadlines) == 0 {
		return 0, WhyNothing
	}
	return c.deadlines[0].at, c.deadlines[0].why
}

// HandleTimeout acts on everything that is due.
func (c *Client) HandleTimeout(now time.Duration) {
	for len(c.deadlines) > 0 && c.deadlines[0].at <= now {
		op := c.deadlines[0]
		c.unschedule(op)
		switch {
		case op == &c.silence:
			c.silent(now)
		case op.running:
			c.retransmit(now, op)
		case op == &c.allocation:
			c.allocationDue(now)
		case op == &c.keepalive:
			c.request(now, op, stun.Binding)
		default:
			c.bindingDue(now, op.binding)
		}
	}
	c.pump(now)
}

// silent: nothing was heard for SilentAfter although we asked. It is reported once.
func (c *Client) silent(now time.Duration) {
	c.quiet = true
	if c.state == stateAllocated {
		c.lose(now, ReasonSilent, 0)
		return
	}
	c.emit(Output{Kind: Failed, Reason: ReasonSilent})
}

// heard: the server has answered something that we asked.
func (c *Client) heard(now time.Duration) {
	c.quiet = false
	c.unschedule(&c.silence)
	if len(c.transactions) > 0 {
		c.listen(now)
	}
}

// listen begins to count silence, unless that goes on already.
func (c *Client) listen(now time.Duration) {
	if !c.quiet && c.silence.index == unscheduled && c.state != stateReleasing {
		c.schedule(&c.silence, now+SilentAfter, WhySilence)
	}
}
