package broker

import (
	"cmp"
	"crypto/rand"
	"crypto/subtle"
	"log/slog"
	"maps"
	"net"
	"slices"
	"sync"

	"github.com/nats-io/nats-server/v2/server"

	"github.com/sluice-vpn/sluice/ice/signal"
)

// authenticator decides for the server who a connection is. It implements server.Authentication.
type authenticator struct {
	// Frozen.
	callback func(token string) (name string, allowed []string, err error)
	own      string // the portal's own token, known to this process only
	system   string // the same for the server's own account, by which a cluster is changed
	log      *serverLog
	signedIn func(from string)    // is told of each connection that is accepted
	alive    func(id uint64) bool // whether the server still has this connection
	end      func(id uint64) error

	systemAccount func() *server.Account

	// mu is held for reading while a connection is authenticated, so that Kick, which holds it for writing, misses none.
	// Lock order: mu, then table.
	mu    sync.RWMutex
	table sync.Mutex
	names map[string]map[uint64]Client // connections by node; those that have ended go when the node connects again
}

func newAuthenticator(callback func(string) (string, []string, error), log *serverLog, signedIn func(string)) *authenticator {
	return &authenticator{
		callback: callback, own: rand.Text() + rand.Text(), system: rand.Text() + rand.Text(), log: log, signedIn: signedIn, names: map[string]map[uint64]Client{},
	}
}

// maxPerNode is how many connections of one node there may be. There is one, and those that have died unnoticed: within the time that
// it takes to notice one, a node whose network changes makes hardly more than these. One more ends the oldest.
const maxPerNode = 4

// Check implements server.Authentication.
func (a *authenticator) Check(c server.ClientAuthentication) bool {
	from := c.RemoteAddress()
	if c.Kind() != server.CLIENT || from == nil { // nil: it has ended, which it may at any time
		return false
	}
	token := c.GetOpts().Token
	if subtle.ConstantTimeCompare([]byte(token), []byte(a.own)) == 1 {
		c.RegisterUser(&server.User{Username: "$portal"})
		return true
	}
	if subtle.ConstantTimeCompare([]byte(token), []byte(a.system)) == 1 {
		c.RegisterUser(&server.User{Username: "$system", Account: a.systemAccount()})
		return true
	}
	a.mu.RLock()
	defer a.mu.RUnlock()
	name, allowed, err := a.callback(token)
	switch {
	case err != nil:
		a.refuse(from, err.Error())
		return false
	case !signal.ValidName(name):
		a.refuse(from, "token stands for no valid node name")
		return false
	}
	a.signedIn(from.String())
	c.RegisterUser(&server.User{Username: name, Permissions: NodePermissions(name, allowed)})
	if oldest, full := a.add(name, Client{ID: c.GetID(), Addr: from.String()}); full {
		_ = a.end(oldest) // fails if it has ended meanwhile
	}
	return true
}

func (a *authenticator) refuse(from net.Addr, why string) {
	a.log.write(slog.LevelWarn, "node refused", "from", from.String(), "reason", why)
}

// NodePermissions returns signal.Permissions as the server wants them. A node may not answer on reply subjects beyond what
// they list.
func NodePermissions(self string, peers []string) *server.Permissions {
	publish, subscribe, denied := signal.Permissions(self, peers)
	return &server.Permissions{
		Publish:   &server.SubjectPermission{Allow: publish, Deny: denied},
		Subscribe: &server.SubjectPermission{Allow: subscribe, Deny: denied},
	}
}

// add notes a connection of a node, and returns the oldest if there were as many as there may be.
func (a *authenticator) add(name string, c Client) (oldest uint64, full bool) {
	a.table.Lock()
	defer a.table.Unlock()
	if a.names[name] == nil {
		a.names[name] = map[uint64]Client{}
	}
	a.pruneLocked(name)
	if full = len(a.names[name]) >= maxPerNode; full {
		oldest = slices.Min(slices.Collect(maps.Keys(a.names[name])))
		delete(a.names[name], oldest)
	}
	a.names[name][c.ID] = c
	return oldest, full
}

// take removes the connections of a node from the table and returns their ids.
func (a *authenticator) take(name string) []uint64 {
	a.table.Lock()
	defer a.table.Unlock()
	ids := slices.Sorted(maps.Keys(a.names[name]))
	delete(a.names, name)
	return ids
}

// pruneLocked forgets the connections of a node that have ended.
func (a *authenticator) pruneLocked(name string) {
	maps.DeleteFunc(a.names[name], func(id uint64, _ Client) bool { return !a.alive(id) })
}

func (a *authenticator) clients(name string) []Client {
	a.table.Lock()
	defer a.table.Unlock()
	a.pruneLocked(name)
	return slices.SortedFunc(maps.Values(a.names[name]), func(x, y Client) int { return cmp.Compare(x.ID, y.ID) })
}
