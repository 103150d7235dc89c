package member

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"net/netip"
	"strings"
	"time"

	"github.com/sluice-vpn/sluice/cmd/internal/service"
	"github.com/sluice-vpn/sluice/cmd/internal/status"
	"github.com/sluice-vpn/sluice/ice/edge"
	"github.com/sluice-vpn/sluice/ice/turn"
	"github.com/sluice-vpn/sluice/tun/host"
)

// serve answers on the status socket until the server is closed, for the node that there is at the time.
func (p *presence) serve(l net.Listener) *http.Server {
	signedOut := http.NewServeMux()
	signedOut.HandleFunc("GET /status", p.tellSignedOut)
	signedOut.HandleFunc("/", func(w http.ResponseWriter, _ *http.Request) {
		http.Error(w, "this node is signed out: "+p.state.Load().Why, http.StatusConflict)
	})
	mux := http.NewServeMux()
	mux.HandleFunc("POST /release", p.release)
	mux.HandleFunc("POST /log-level", setLogLevel(p.options.Log))
	mux.HandleFunc("/", func(w http.ResponseWriter, r *http.Request) {
		if n := p.node.Load(); n != nil {
			n.handler.ServeHTTP(w, r)
			return
		}
		signedOut.ServeHTTP(w, r)
	})
	server := &http.Server{Handler: mux, ConnContext: status.NoteCaller, ReadTimeout: 5 * time.Second, WriteTimeout: 15 * time.Second, MaxHeaderBytes: 1 << 14}
	go server.Serve(l) // ends with Close
	return server
}

// tellSignedOut is the status without a node.
func (p *presence) tellSignedOut(w http.ResponseWriter, r *http.Request) {
	s := edge.Status{
		Role: p.options.Role, Interface: p.options.Interface, Since: p.started, SignIn: *p.state.Load(),
		Addresses: []netip.Prefix{}, Routes: []edge.RouteStatus{}, Mappings: []edge.MappingStatus{}, Relays: []turn.RelayStatus{},
		Connections: []edge.ConnectionStatus{}, Notes: p.notes,
	}
	if b := p.barrier.Load(); b != nil {
		reviewed, stop := context.WithTimeout(r.Context(), time.Second)
		b.keeper.review(reviewed)
		stop()
		b.machine.tell(&s)
	}
	reply(w, s)
}

// routes are what the node answers.
func (n *node) routes() http.Handler {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", n.tellStatus)
	mux.HandleFunc("GET /why", n.tellWhy)
	mux.HandleFunc("GET /pins", n.tellPins)
	mux.HandleFunc("GET /counters", n.tellCounters)
	mux.HandleFunc("POST /trust", n.trust)
	mux.HandleFunc("POST /capture", n.capture)
	if n.stack != nil {
		mux.HandleFunc("GET /echo", n.echo)
	}
	if n.options.Getenv("SLUICE_TEST_HOOKS") == "1" {
		n.logger.Warn("test hooks are on (SLUICE_TEST_HOOKS): keys can be put out of step through the status socket")
		mux.HandleFunc("POST /test/secrets", n.findSecrets)
		mux.HandleFunc("POST /test/private-key", n.changePrivateKey)
		mux.HandleFunc("POST /test/preshared-key", n.changePresharedKey)
	}
	return mux
}

// release ends that the machine fails closed, until the program ends.
func (p *presence) release(w http.ResponseWriter, _ *http.Request) {
	was := p.released.Swap(true) // before looking who owns the machine, see releaseLate
	var err error
	if k := p.keeper(); k == nil {
		err = host.Release(host.RoutingConfig{Interface: p.options.Interface, Table: p.options.Table, Mark: p.options.Mark})
	} else {
		err = k.releaseNow()
	}
	if err != nil {
		p.released.Store(was)
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	reply(w, struct{}{})
}

// releaseLate is for a machine that was closed while it was released.
func (p *presence) releaseLate(k *keeper) {
	if p.released.Load() {
		if err := k.releaseNow(); err != nil {
			p.logger.Warn("the machine still fails closed", "error", err)
		}
	}
}

// keeper is who owns the machine now; nil: nobody does.
func (p *presence) keeper() *keeper {
	if n := p.node.Load(); n != nil {
		return n.keeper
	}
	if b := p.barrier.Load(); b != nil {
		return b.keeper
	}
	return nil
}

func (n *node) tellStatus(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
	defer cancel()
	s, err := n.status(ctx)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	reply(w, s)
}

// status is what the edge says, and what is the matter with the machine.
func (n *node) status(ctx context.Context) (edge.Status, error) {
	s, err := n.edge.Status(ctx)
	if err != nil {
		return s, err
	}
	reviewed, stop := context.WithTimeout(ctx, time.Second) // what was seen before is better than no answer
	n.keeper.review(reviewed)
	stop()
	s.Notes = append(s.Notes, n.notes...)
	s.Notes = append(s.Notes, n.pins.notes()...)
	s.Notes = append(s.Notes, logNotes(n.options.Log)...)
	if note := n.names.Note(); note != "" {
		s.Notes = append(s.Notes, note)
	}
	n.machine.tell(&s)
	s.SignIn = *n.signIn()
	return s, nil
}

// tell adds what there is to tell of the machine. Any goroutine.
func (m *machine) tell(s *edge.Status) {
	r := m.remarks.Load()
	if r == nil {
		return
	}
	s.Notes = append(s.Notes, r.notes...)
	s.RefusesIncoming = r.refuses
	if s.Problem == "" {
		s.Problem = r.problem
	}
}

// serviceState is what the service manager is told of the program.
func (p *presence) serviceState(ctx context.Context) (service.State, error) {
	if n := p.node.Load(); n != nil {
		return n.state(ctx)
	}
	return service.State{Line: status.Line(edge.Status{Role: p.options.Role, SignIn: *p.state.Load()}), Ready: true}, nil
}

// state is what the service manager is told. The answer goes through the edge's goroutine and the control goroutine. That the portal
// does not answer is no reason to be started anew, so a node that has tried is ready.
func (n *node) state(ctx context.Context) (service.State, error) {
	s, err := n.edge.Status(ctx)
	if err != nil {
		return service.State{}, err
	}
	if r := n.machine.remarks.Load(); r != nil && s.Problem == "" {
		s.Problem = r.problem
	}
	return service.State{Line: status.Line(s), Ready: status.Serves(s) || s.Portal.Why != ""}, nil
}

func (n *node) tellPins(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
	defer cancel()
	pins, err := n.edge.Pins(ctx)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	reply(w, pins)
}

// trust takes a peer with its offered identity. It answers when that is on disk, else with what is in the way of it.
func (n *node) trust(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
	defer cancel()
	var pin edge.Pin
	err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<12)).Decode(&pin)
	if err == nil {
		err = n.edge.Trust(ctx, pin.Peer, pin.Offered)
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	n.pins.write()
	reply(w, strings.Join(n.pins.notes(), "; "))
}

// reply answers with JSON.
func reply(w http.ResponseWriter, v any) {
	w.Header().Set("Content-Type", "application/json")
	json.NewEncoder(w).Encode(v) // an error means that the reader has gone
}
