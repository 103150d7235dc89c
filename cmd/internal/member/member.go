// Package member runs one node that belongs to a portal: a gateway or a client. It makes the TUN device, joins pipeline and
// connectivity edge, makes the operating system follow what the portal says, and tells how it goes on a status socket.
//
// The program lives until a signal ends it, in the foreground: keeping it alive is the service manager's work. It is signed in, then there
// is a node, or signed out, then it waits for a token (see presence). SIGHUP says that the network has changed, SIGUSR1 writes the
// counters to SLUICE_STATS, SIGTERM and SIGINT end it in good order:
// byes to the peers, then addresses, routes and forwarding as they were, then the socket.
package member

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"net/netip"
	"os"
	"slices"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-vpn/sluice/cmd/internal/environment"
	"github.com/sluice-vpn/sluice/cmd/internal/logs"
	"github.com/sluice-vpn/sluice/cmd/internal/names"
	"github.com/sluice-vpn/sluice/cmd/internal/status"
	"github.com/sluice-vpn/sluice/cmd/internal/version"
	"github.com/sluice-vpn/sluice/ice/edge"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/pipeline"
	"github.com/sluice-vpn/sluice/pipeline/errno"
	"github.com/sluice-vpn/sluice/tun"
	"github.com/sluice-vpn/sluice/tun/host"
	"github.com/sluice-vpn/sluice/tun/netstack"
)

// Defaults of Options.
const (
	DefaultInterface = "sluice0"
	// DefaultMTU leaves room for the outer headers on an Ethernet path over a relay:
	// 1500 - 40 (IPv6) - 8 (UDP) - 4 (ChannelData) - 32 (WireGuard).
	DefaultMTU = 1416
)

// Options say what to run. Role is required; the zero value of the rest is its default.
type Options struct {
	Role protocol.Role
	// Token was given to this start alone, as TokenSource says. Without both the token is that of the folder State, and followed there.
	Token       protocol.Token
	TokenSource string
	// State is the folder of the token and of the identities of peers; "": StateFolder.
	State string
	// Interface is the TUN device's name.
	Interface string
	MTU       int
	Port      uint16 // UDP; 0 chooses one
	// Routes are what a gateway offers.
	Routes []netip.Prefix
	// DNS are name servers for those whose default route leads to this gateway.
	DNS []netip.Addr
	RoutePolicy
	// AcceptIncoming: a client lets in what nobody on its machine has asked for.
	AcceptIncoming bool
	// FailClosed has nothing leave the machine past the tunnel but for its own local networks, from before the sign-in until Release.
	FailClosed bool
	// NoMasquerade: a gateway forwards packets with the addresses that they have in the tunnel.
	NoMasquerade bool
	Table        int       // routing table; 0: host.DefaultTable
	Mark         uint32    // fwmark of our own packets; 0: host.DefaultMark
	Socket       string    // path of the status socket; "": status.Path(Interface)
	Pins         string    // file of the identities of peers; "": in State
	Names        string    // of names.Modes; "": names.Off
	NamesFile    string    // of names.Hosts; "": names.HostsFile
	Log          *logs.Log // required by Run
	Ops          string    // where to serve metrics and the like, see ops.Listen; "": nowhere
	// Userspace has the node do without an interface; nil: there is one. What is said above of the machine then counts for nothing.
	Userspace *Userspace
	// Getenv reads the environment; nil: os.Getenv.
	Getenv func(string) string
}

func (o Options) withDefaults() Options {
	if o.Interface == "" {
		o.Interface = DefaultInterface
		if o.Userspace != nil {
			o.Interface = UserspaceInterface
		}
	}
	if o.MTU == 0 {
		o.MTU = DefaultMTU
	}
	if o.Table == 0 {
		o.Table = host.DefaultTable
	}
	if o.Getenv == nil {
		o.Getenv = os.Getenv
	}
	switch {
	case o.Userspace != nil: // nothing is routed into the tunnel that a mark would have to keep out
		o.Mark, o.Names = 0, names.Off
	case !host.Marks: // see chooser.refuses
		o.Mark = 0
	case o.Mark == 0:
		o.Mark = host.DefaultMark
	}
	if o.Socket == "" {
		o.Socket = status.Path(o.Interface, o.Getenv)
	}
	if o.Names == "" {
		o.Names = names.Off
	}
	if o.State == "" {
		o.State = StateFolder(o.Role, o.Getenv)
	}
	return o
}

// answersOnly tells whether nobody opens connections to the node.
func (o *Options) answersOnly() bool { return o.Role == protocol.Client && !o.AcceptIncoming }

// node is what a run is made of. Its fields are frozen once it runs.
type node struct {
	options  Options
	settings environment.Settings
	logger   *slog.Logger
	pipeline *pipeline.Pipeline
	edge     *edge.Edge
	machine  *machine
	keeper   *keeper
	portal   *portalLink
	pins     *pinsFile
	names    *names.Names
	handler  http.Handler // of the status socket
	signIn   func() *edge.SignInStatus
	resumed  bool                  // owned by the edge's goroutine, which applies answers
	stack    *netstack.Stack       // nil: there is an interface
	dialOut  *dialOut              // of a gateway with a stack
	reach    atomic.Pointer[reach] // with a stack; nil: the portal has not answered
	notes    []string              // of the status, whatever happens
	// failed ends the node with an error that trying again does not mend, or a *signOut.
	failed context.CancelCauseFunc
}

// build makes the other parts around the portal; what was made before an error is closed, the portal too.
func (n *node) build() (err error) {
	o := n.options
	defer func() {
		if err != nil {
			err = errors.Join(err, n.portal.close())
		}
	}()
	n.machine = newMachine(o, n.logger)
	n.keeper = newKeeper(n.machine)
	n.names = names.New(names.Config{Mode: o.Names, Interface: o.Interface, File: o.NamesFile, Logger: n.logger})
	var pins map[string]protocol.Identity
	n.pins, pins = openPins(o.Pins, o.Token.Fingerprint, n.logger)
	n.edge, err = edge.New(edge.Config{
		Name: o.Token.Name, Role: o.Role, Identity: o.Token.Identity(), Pins: pins, SavePins: n.pins.save, Routes: o.Routes, Interface: o.Interface, Mark: o.Mark, Logger: n.logger,
		Signaler: n.portal.signaler, Sync: n.portal.sync, PortalState: n.portal.told, CheckPortal: n.portal.check,
		Choose: o.choose, Apply: n.apply, Watch: true, Program: "sluice " + version.String(),
	})
	if err != nil {
		return err
	}
	dev, err := n.open()
	if err != nil {
		return err
	}
	cfg := n.settings.Pipeline(dev, n.logger)
	cfg.UDP.Port, cfg.UDP.Mark = o.Port, o.Mark
	cfg.SampleDelays = o.Ops != ""
	cfg.Answers = o.answersOnly()
	cfg.Stray, cfg.Connector = n.edge.Stray, n.edge.Connector()
	if n.pipeline, err = pipeline.New(cfg); err != nil {
		return errors.Join(err, dev.Close())
	}
	if o.FailClosed { // whatever the portal says, and whether it is there
		if err := n.machine.begin(); err != nil {
			return errors.Join(err, dev.Close())
		}
	}
	n.handler = n.routes()
	return nil
}

// open makes the device.
func (n *node) open() (tun.Device, error) {
	o := n.options
	if o.Userspace == nil {
		return tun.Open(tun.Options{Name: o.Interface, MTU: o.MTU, MaxMTU: pipeline.MaxMTU, Queues: n.settings.Queues, NoOffload: n.settings.NoGSO})
	}
	s, err := netstack.New(netstack.Config{Name: o.Interface, MTU: o.MTU, NoOffload: n.settings.NoGSO})
	if err != nil {
		return nil, err
	}
	n.stack, n.machine.stack = s, s
	if o.Role == protocol.Gateway {
		if err := n.startDialOut(s); err != nil {
			return nil, errors.Join(err, s.Close())
		}
	}
	return s, nil
}

// grace is how long the byes may take.
const grace = 3 * time.Second

// live runs the parts until ctx ends or one of them does. Then, in this order: the edge says its byes over pipeline and
// portal, the machine is put back, the pipeline ends and with it the interface, the portal is closed.
func (n *node) live(ctx context.Context) error {
	running, halt := context.WithCancel(context.Background())
	defer halt()
	edgeCtx, endEdge := context.WithCancel(ctx)
	defer endEdge()
	ran, edged := make(chan error, 1), make(chan error, 1)
	go func() { ran <- n.pipeline.Run(running) }()
	go func() { edged <- n.edge.Run(edgeCtx, n.pipeline) }()
	n.logger.Info("signing in", "name", n.options.Token.Name, "role", string(n.options.Role), "interface", n.options.Interface,
		"portals", strings.Join(n.options.Token.Portals, " "), "version", version.String())
	kept, endKeeper := context.WithCancel(context.Background())
	defer endKeeper()
	go n.keeper.run(kept)
	var watching sync.WaitGroup
	watching.Go(func() { n.portal.watch(edgeCtx, n.logger, n.revoked) })
	watching.Go(func() { n.names.Run(edgeCtx) })
	defer n.show()()

	var err error
	pipelineEnded := false
	select {
	case <-ctx.Done():
	case err = <-ran:
		pipelineEnded = true
		switch {
		case err == nil:
			err = fmt.Errorf("interface %s is gone", n.options.Interface)
		case errno.InUse(err):
			err = fmt.Errorf("%w; stop what has the port, or choose another one with -port", err)
		}
	case err = <-edged:
		edged <- nil
		if err == nil && ctx.Err() == nil {
			err = errors.New("the connectivity edge has ended")
		}
	}
	var out *signOut // is no error
	if cause := context.Cause(ctx); ctx.Err() != nil && !errors.Is(cause, context.Canceled) && !errors.As(cause, &out) {
		err = cause
	}
	endEdge()
	watching.Wait()
	err = errors.Join(err, n.await(edged))
	n.pins.write()
	endKeeper()
	<-n.keeper.ended
	if n.dialOut != nil {
		n.dialOut.close()
	}
	err = errors.Join(err, n.machine.Close())
	n.settings.WriteStats(n, n.logger)
	halt()
	if !pipelineEnded {
		err = errors.Join(err, <-ran)
	}
	err = errors.Join(err, n.portal.close())
	if err == nil {
		n.logger.Info("has ended", "name", n.options.Token.Name, "interface", n.options.Interface)
	}
	return err
}

// await waits for the edge's byes, but not for ever.
func (n *node) await(edged <-chan error) error {
	timer := time.NewTimer(grace)
	defer timer.Stop()
	select {
	case err := <-edged:
		if errors.Is(err, context.Canceled) {
			return nil
		}
		return err
	case <-timer.C:
		n.logger.Warn("peers were not told in time that we end")
		return nil
	}
}

func (n *node) writeStats() {
	if n.settings.Stats == "" {
		n.logger.Info("SIGUSR1: no counters are written, since SLUICE_STATS names no file")
	}
	n.settings.WriteStats(n, n.logger)
}

func (n *node) networkChanged() {
	n.keeper.networkChanged()
	n.edge.NetworkChanged()
}

// revoked is called when the portal goes on refusing the token.
func (n *node) revoked(why string) { n.failed(&signOut{reason: edge.SignedOutRefused, why: why}) }

// apply is called by the edge with each answer of the portal. What cannot work later either ends the node.
func (n *node) apply(answer protocol.Sync) error {
	if answer.Role != n.options.Role {
		err := &roleError{answer.Role}
		n.failed(err)
		return err
	}
	n.resume(answer.Addresses)
	err := n.keeper.apply(answer)
	if err != nil && (!n.machine.begun || !n.machine.up && errors.Is(err, host.ErrPermission)) {
		n.failed(err)
	}
	if err == nil {
		own, zone := zoneOf(answer)
		resolvers := resolversOf(answer)
		n.names.Set(own, zone, resolvers)
		if n.dialOut != nil {
			n.dialOut.set(dialOutReach{answer.Offers.Approved(), answer.Overlay})
		}
		n.reach.Store(&reach{own: own, zone: zone, routes: routesOf(answer), resolvers: resolvers})
	}
	return err
}

// resume has answers reach the programs whose connections were begun while a process before this one ran: who only receives would not ask
// again. Once, before the first packet can come.
func (n *node) resume(own []netip.Prefix) {
	if n.resumed {
		return
	}
	n.resumed = true
	list, err := host.Connections(own)
	if err != nil {
		n.logger.Debug("connections that were there before may have to send something before they receive", "error", err)
	}
	for _, c := range list {
		n.pipeline.ResumeFlow(c.Protocol, c.Local, c.Remote)
	}
}

// resolversOf are the name servers of the gateway that has the default route. One that the tunnel does not lead to, as it is of the family
// that there is no default route for, is left out.
func resolversOf(answer protocol.Sync) (list []netip.Addr) {
	if answer.Role != protocol.Client {
		return nil // a gateway's machine is its own, and others ask through it
	}
	for i := range answer.Peers {
		peer := &answer.Peers[i]
		for _, a := range peer.DNS {
			if slices.Contains(peer.AllowedIPs, everywhere(a.Is6())) && !slices.Contains(list, a) && len(list) < protocol.MaxDNS {
				list = append(list, a)
			}
		}
	}
	return list
}

// zoneOf are this node's addresses, and those of nodes by name: of itself, and of its peers.
func zoneOf(answer protocol.Sync) (own []netip.Addr, zone names.Zone) {
	for _, p := range answer.Addresses {
		own = append(own, p.Addr())
	}
	zone = names.Zone{answer.Name: own}
	for i := range answer.Peers {
		peer := &answer.Peers[i]
		for _, p := range peer.AllowedIPs { // networks behind it are among them
			if p.IsSingleIP() && protocol.Within(answer.Overlay, p) {
				zone[peer.Name] = append(zone[peer.Name], p.Addr())
			}
		}
	}
	return own, zone
}
