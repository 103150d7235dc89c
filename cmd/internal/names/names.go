// Package names has this machine find nodes by name: NAME.sluice leads to their tunnel addresses. It answers for that zone itself, at
// the node's own tunnel addresses, and has systemd-resolved ask there for it; or it keeps the names in a hosts file. Nothing else of how
// the machine finds names is touched.
package names

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"time"

	"github.com/godbus/dbus/v5"
)

// Modes of Config.
const (
	Off      = "off"
	Auto     = "auto"     // Resolved, where it is on the system bus
	Resolved = "resolved" // systemd-resolved asks our server
	Hosts    = "hosts"    // a block in a hosts file
	Serve    = "serve"    // only the server, at port 53
)

// Modes lists them for people.
const Modes = "auto, resolved, hosts, serve, off"

// ValidMode tells whether there is such a mode.
func ValidMode(mode string) bool { return slices.Contains(strings.Split(Modes, ", "), mode) }

// again is when what has failed is tried once more; what comes to the bus meanwhile is seen at once.
const again = 30 * time.Second

// Config says what to do. All but File is required.
type Config struct {
	Mode      string
	Interface string
	File      string // of Hosts; "": HostsFile
	Logger    *slog.Logger
}

// view is what the portal says, frozen.
type view struct {
	own  []netip.Addr
	zone Zone
	// resolvers are asked for all other names, while a gateway's default route is used. None: the machine's own are.
	resolvers []netip.AddrPort
}

// Names follows the portal. Run owns what has no other owner.
type Names struct {
	config  Config
	view    atomic.Pointer[view] // nil: nothing was heard yet
	changed chan struct{}        // one slot
	note    atomic.Pointer[string]

	server *server
	bus    *resolved
	set    struct { // what systemd-resolved was told
		owner   string
		link    int
		servers []netip.AddrPort
		all     bool // it asks here for everything
	}
	told string
}

// New makes one that does nothing before Run.
func New(c Config) *Names {
	if c.File == "" {
		c.File = HostsFile
	}
	return &Names{config: c, changed: make(chan struct{}, 1)}
}

// Set says what this node's own tunnel addresses are, whose others, and which name servers of a gateway are to be asked for all other names.
// Any goroutine; it does not wait.
func (n *Names) Set(own []netip.Addr, zone Zone, resolvers []netip.Addr) {
	v := &view{own: own, zone: zone}
	for _, a := range resolvers {
		v.resolvers = append(v.resolvers, netip.AddrPortFrom(a, dnsPort))
	}
	n.view.Store(v)
	select {
	case n.changed <- struct{}{}:
	default:
	}
}

// Note is a sentence of what is wrong, "" if nothing is. Any goroutine.
func (n *Names) Note() string {
	if note := n.note.Load(); note != nil {
		return *note
	}
	return ""
}

// Run keeps names until ctx ends, and takes back then what it has set. It waits for others for seconds at most.
func (n *Names) Run(ctx context.Context) {
	if n.config.Mode == Off {
		return
	}
	ticker := time.NewTicker(again)
	defer ticker.Stop()
	for {
		select {
		case <-ctx.Done():
			n.end()
			return
		case <-n.changed:
		case <-n.busChanges():
		case <-ticker.C:
		}
		if v := n.view.Load(); v != nil {
			n.tell(n.follow(ctx, v))
		}
	}
}

// follow brings about what the view says, and returns what to say of it.
func (n *Names) follow(ctx context.Context, v *view) (done string, err error) {
	switch n.config.Mode {
	case Hosts:
		done = "in " + n.config.File
		if len(v.resolvers) > 0 {
			done += fmt.Sprintf("; the gateway's name servers (%v) are not used, since a hosts file has no place for them", v.resolvers)
		}
		return done, newHosts(n.config.File, n.config.Interface).set(v.zone)
	case Serve:
		if err := n.serve(v, false); err != nil {
			return "", err
		}
		return fmt.Sprintf("at %v, for a resolver that is told so", n.server.at), nil
	}
	done = "through systemd-resolved"
	if len(v.resolvers) > 0 {
		done += fmt.Sprintf(", and all other names by the gateway's name servers (%v)", v.resolvers)
	}
	return done, n.resolve(ctx, v)
}

// serve has the server answer at the node's addresses.
func (n *Names) serve(v *view, anyPort bool) (err error) {
	if n.server != nil && slices.Equal(n.server.own, v.own) {
		return nil
	}
	n.stopServer()
	n.server, err = listen(v.own, anyPort, n.view.Load)
	return err
}

func (n *Names) stopServer() {
	if n.server != nil {
		n.server.close()
		n.server = nil
	}
}

// resolve has systemd-resolved ask our server; without it there is none.
func (n *Names) resolve(ctx context.Context, v *view) (err error) {
	if n.bus != nil && !n.bus.alive() {
		n.bus.close()
		n.bus, n.set.owner = nil, ""
	}
	if n.bus == nil {
		if n.bus, err = dialResolved(ctx); err != nil {
			n.bus = nil
			n.stopServer()
			return err
		}
	}
	owner, err := n.bus.owner(ctx)
	if err != nil {
		n.set.owner = ""
		n.stopServer()
		return err
	}
	if err := n.serve(v, true); err != nil {
		return err
	}
	link, err := net.InterfaceByName(n.config.Interface)
	if err != nil {
		return err
	}
	if owner == n.set.owner && link.Index == n.set.link && slices.Equal(n.set.servers, n.server.at) && n.set.all == (len(v.resolvers) > 0) {
		return nil
	}
	n.set.owner, n.set.link, n.set.servers, n.set.all = "", link.Index, n.server.at, len(v.resolvers) > 0
	if err := n.bus.set(ctx, link.Index, n.server.at, n.set.all); err != nil {
		return err
	}
	n.set.owner = owner
	return nil
}

// busChanges tells that the system bus has news; nil: there is none.
func (n *Names) busChanges() <-chan *dbus.Signal {
	if n.bus == nil {
		return nil
	}
	return n.bus.changes
}

// end takes back what was set.
func (n *Names) end() {
	n.stopServer()
	if n.config.Mode == Hosts && n.view.Load() != nil {
		if err := newHosts(n.config.File, n.config.Interface).set(nil); err != nil {
			n.config.Logger.Warn("names of peers stay in a hosts file", "file", n.config.File, "error", err)
		}
	}
	if n.bus == nil {
		return
	}
	if n.set.owner != "" {
		if err := n.bus.revert(context.Background(), n.set.link); err != nil { // it goes with the interface too
			n.config.Logger.Debug("systemd-resolved keeps what it was told until the interface is gone", "error", err)
		}
	}
	n.bus.close()
}

// tell logs what has become different, and keeps for the status what is wrong.
func (n *Names) tell(done string, err error) {
	if errors.Is(err, context.Canceled) {
		return
	}
	words, note := done, ""
	if err != nil {
		words = strings.ReplaceAll(err.Error(), "\n", "; ")
		note = fmt.Sprintf("peers have no names on this machine (-names %s): %s", n.config.Mode, words)
	}
	optional := n.config.Mode == Auto && errors.Is(err, errAbsent)
	if optional {
		note = ""
	}
	n.note.Store(&note)
	if words == n.told {
		return
	}
	n.told = words
	switch logger := n.config.Logger; {
	case err == nil:
		logger.Info("peers have names", "domain", Domain, "how", done)
	case optional:
		logger.Info("peers have no names on this machine, whose name servers stay as they are", "why", words,
			"remedy", "-names hosts writes "+HostsFile+", -names serve answers at this node's own address, -names off ends this line")
	default:
		logger.Warn("peers have no names on this machine", "why", words)
	}
}
