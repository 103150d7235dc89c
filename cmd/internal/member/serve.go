package member

import (
	"context"
	"encoding/json"
	"net"
	"net/http"
	"strings"
	"time"

	"github.com/sluice-vpn/sluice/cmd/internal/service"
	"github.com/sluice-vpn/sluice/cmd/internal/status"
	"github.com/sluice-vpn/sluice/ice/edge"
)

// serve answers on the status socket until the server is closed.
func (n *node) serve(l net.Listener) *http.Server {
	mux := http.NewServeMux()
	mux.HandleFunc("GET /status", n.tellStatus)
	mux.HandleFunc("GET /pins", n.tellPins)
	mux.HandleFunc("POST /trust", n.trust)
	mux.HandleFunc("POST /release", n.release)
	if n.options.Getenv("SLUICE_TEST_HOOKS") == "1" {
		n.logger.Warn("test hooks are on (SLUICE_TEST_HOOKS): keys can be put out of step through the status socket")
		mux.HandleFunc("POST /test/private-key", n.changePrivateKey)
		mux.HandleFunc("POST /test/preshared-key", n.changePresharedKey)
	}
	server := &http.Server{Handler: mux, ReadTimeout: 5 * time.Second, WriteTimeout: 15 * time.Second, MaxHeaderBytes: 1 << 14}
	go server.Serve(l) // ends with Close
	return server
}

// release ends that the machine fails closed.
func (n *node) release(w http.ResponseWriter, _ *http.Request) {
	done, err := make(chan error, 1), error(nil)
	select {
	case n.keeper.release <- done:
		err = <-done
	case <-n.keeper.ended:
		err = context.Canceled
	}
	if err != nil {
		http.Error(w, err.Error(), http.StatusConflict)
		return
	}
	reply(w, struct{}{})
}

func (n *node) tellStatus(w http.ResponseWriter, r *http.Request) {
	ctx, cancel := context.WithTimeout(r.Context(), 5*time.Second)
	defer cancel()
	s, err := n.edge.Status(ctx)
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	reviewed, stop := context.WithTimeout(ctx, time.Second) // what was seen before is better than no answer
	n.keeper.review(reviewed)
	stop()
	s.Notes = append(s.Notes, n.pins.notes()...)
	if r := n.machine.remarks.Load(); r != nil {
		s.Notes = append(s.Notes, r.notes...)
		if s.Problem == "" {
			s.Problem = r.problem
		}
	}
	reply(w, s)
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
