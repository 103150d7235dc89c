package ice

import (
	"net/netip"
	"slices"
	"sync"
	"time"
)

// maxOfLink is how many addresses of one family an interface offers: a host has a stable and a temporary IPv6 address
// (RFC 8981), and some have dozens that lead the same way.
const maxOfLink = 2

// anywhere are addresses of the networks for documentation (RFC 5737, RFC 3849). Nobody is there, and nothing is sent to them: the
// way to them is the one that the system takes to whatever it has no better route for.
var anywhere = [...]netip.Addr{netip.MustParseAddr("192.0.2.1"), netip.MustParseAddr("2001:db8::1")}

// Uplinks knows the addresses of a machine and which of them lead where. A machine with containers has dozens of addresses that lead
// to nobody but those, and what is sent from such an address all the same leaves through another interface, where it opens a mapping
// of the NAT that the peer never hears of. Its methods may be called by any goroutine. Make it with NewUplinks.
type Uplinks struct {
	skip  func(name string) bool // frozen; nil skips none
	table routeTable             // frozen

	mu     sync.Mutex // a leaf, but for the system's calls
	leads  map[way]bool
	owners map[netip.Addr]int
	until  time.Time // what leads and owners say counts so long
}

// waysLife is how long an answer of the system about a way counts: pion asks for every pair of addresses 20 times a second. What
// changes meanwhile is noticed by the Watcher.
const (
	waysLife = time.Second
	maxWays  = 4096
)

// way is from a local address to that of a peer.
type way struct{ from, to netip.Addr }

// routeTable is the system's side of Uplinks.
type routeTable interface {
	// source is the address and the interface from which a datagram to an address leaves if it is bound to none.
	source(to netip.Addr) (source, bool)
	// link is the interface through which a datagram with that source leaves; 0: none. To an address of the machine itself that is the
	// loopback interface. Not ok: the system does not tell.
	link(w way) (index int, ok bool)
	// addresses are those that the machine has now.
	addresses() []localAddress
	close()
}

// source is an address with its interface.
type source struct {
	addr netip.Addr
	link int
}

// localAddress is an address of the machine: of an interface that is up, in the system's order.
type localAddress struct {
	source
	name string // of the interface
	// pointToPoint interfaces are tunnels, and dial-up lines.
	pointToPoint bool
	// bridge interfaces join others, for the most part those of containers and virtual machines.
	bridge bool
	// loopback: on the loopback interface, where a machine has the addresses that routers lead to it whatever its uplinks are, and those
	// of services that others have too.
	loopback bool
}

// NewUplinks looks at the network namespace of the calling thread. skip names interfaces that are never offered, as the tunnel's own;
// mark is the fwmark of what the sockets send, by which the system may route it another way.
func NewUplinks(skip func(name string) bool, mark uint32) (*Uplinks, error) {
	table, err := newRouteTable(mark)
	if err != nil {
		return nil, err
	}
	return &Uplinks{skip: skip, table: table, leads: map[way]bool{}}, nil
}

// Close lets go of what the system has lent. Later calls know nothing.
func (u *Uplinks) Close() error {
	u.mu.Lock()
	defer u.mu.Unlock()
	u.table.close()
	return nil
}

// Addresses lists the local addresses that may be offered, the best first (RFC 8445, section 5.1.1.1): those from which the machine
// reaches servers and whatever it has no better route for, then others of the same interfaces, then those of other interfaces,
// bridges last. Tunnels and dial-up lines are among them only if the way leads there, those of the loopback interface only if they are
// the sources of ways.
func (u *Uplinks) Addresses(servers []netip.Addr) []netip.Addr {
	u.mu.Lock()
	defer u.mu.Unlock()
	var sources []source
	for _, to := range append(slices.Clone(servers), anywhere[:]...) {
		if s, ok := u.table.source(to.Unmap()); ok && !slices.Contains(sources, s) {
			sources = append(sources, s)
		}
	}
	return rank(u.own(), sources)
}

// All lists the same addresses in the system's order: a change of it is a change of the network.
func (u *Uplinks) All() []netip.Addr {
	u.mu.Lock()
	defer u.mu.Unlock()
	var list []netip.Addr
	for _, a := range u.own() {
		list = append(list, a.addr)
	}
	return list
}

// own are the machine's addresses without those of interfaces that are skipped, and without those that mean nothing elsewhere: IPv6
// addresses of the link, and 127.0.0.0/8 and ::1. The lock is held.
func (u *Uplinks) own() []localAddress {
	return slices.DeleteFunc(u.table.addresses(), func(a localAddress) bool {
		return u.skip != nil && u.skip(a.name) || a.addr.Is6() && a.addr.IsLinkLocalUnicast() || a.addr.IsLoopback()
	})
}

// Leads tells whether what is sent from one of the machine's addresses leaves through the interface that has it, or is what the
// system would send from there by itself. Where the system does not tell, it does.
func (u *Uplinks) Leads(from, to netip.Addr) bool {
	u.mu.Lock()
	defer u.mu.Unlock()
	if now := time.Now(); now.After(u.until) || len(u.leads) >= maxWays {
		clear(u.leads)
		u.owners = make(map[netip.Addr]int)
		for _, a := range u.table.addresses() {
			if !a.loopback { // through which nothing leaves
				u.owners[a.addr] = a.link
			}
		}
		u.until = now.Add(waysLife)
	}
	w := way{from, to}
	leads, known := u.leads[w]
	if !known {
		leads = u.ask(w)
		u.leads[w] = leads
	}
	return leads
}

// ask looks at the system's routes. The lock is held.
func (u *Uplinks) ask(w way) bool {
	link, ok := u.table.link(w)
	if !ok || link != 0 && link == u.owners[w.from] {
		return true
	}
	// An address that routers lead to, on a loopback or dummy interface, is sent from where the route says so. An address of this machine
	// is sent to from that address only: where both hosts have containers in 172.17.0.0/16 the peer's 172.17.0.1 is our own.
	s, ok := u.table.source(w.to)
	return ok && link != 0 && s.addr == w.from
}

// rank orders addresses, see Uplinks.Addresses.
func rank(all []localAddress, sources []source) []netip.Addr {
	of := func(a localAddress) int {
		same := func(s source) bool { return s.link == a.link && s.addr.Is4() == a.addr.Is4() }
		// The way's interface need not be the one that has the address: an uplink may have addresses of the link only.
		first := slices.IndexFunc(sources, func(s source) bool { return s.addr == a.addr })
		switch {
		case first >= 0:
			return first
		case a.loopback:
			return -1
		case slices.ContainsFunc(sources, same):
			return len(sources)
		case a.pointToPoint:
			return -1
		case a.bridge:
			return len(sources) + 2
		}
		return len(sources) + 1
	}
	slices.SortStableFunc(all, func(a, b localAddress) int { return of(a) - of(b) })
	var list []netip.Addr
	type place struct {
		link int
		v4   bool
	}
	taken := make(map[place]int)
	for _, a := range all {
		at := place{a.link, a.addr.Is4()}
		if of(a) < 0 || taken[at] == maxOfLink {
			continue
		}
		taken[at]++
		list = append(list, a.addr)
	}
	return list
}
