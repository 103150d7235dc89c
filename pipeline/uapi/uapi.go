// Package uapi is the text protocol that `wg` speaks with a userspace WireGuard (wireguard.com/xplatform, version 1): the
// bytes of a request become a setRequest while the client takes its time, then one Edit on the control goroutine applies
// it, so that no client, however slow, holds up another or the data plane.
//
// Order of uapi.go: serving connections, formatting a get. Reading lines is in lines.go, parsing and applying a set in
// set.go. What held a key is overwritten as soon as it was used.
package uapi

import (
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"slices"
	"strconv"
	"sync"
	"syscall"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/crypto/secret"
	"github.com/sluice-vpn/sluice/pipeline"
)

// Bounds on what a client may ask of us.
const (
	maxLine    = 64 << 10    // bytes of a line
	maxRequest = 64 << 20    // bytes of a request
	maxClients = 64          // connections at a time; see admit
	grace      = time.Second // how long one more waits for a place
	patience   = time.Minute // for a request to arrive once begun, and again for its answer to be taken
)

// Failures of the protocol; the number goes to the client, the text to our log. No text holds a key or a value of one.
var (
	errLineTooLong = &protocolError{errnoInvalid, fmt.Sprintf("a line is longer than %d bytes", maxLine)}
	errTooLarge    = &protocolError{errnoInvalid, fmt.Sprintf("a request is larger than %d bytes", maxRequest)}
	errCut         = &protocolError{errnoProtocol, "the request ended without an empty line"}
)

// ErrGone is what Serve returns when the socket's file was deleted or replaced: by the protocol's convention the
// wish that the interface go away.
var ErrGone = errors.New("uapi: the socket was removed")

// protocolError is a refusal with the errno that the client is to see.
type protocolError struct {
	errno int
	text  string
}

func (e *protocolError) Error() string { return "uapi: " + e.text }

// configurable is what the protocol needs of a pipeline; tests have one without a data plane.
type configurable interface {
	edit(func(editor) error) error
	Status() (*pipeline.Status, error)
}

// editor and peerEditor are the parts of pipeline.Edit and pipeline.PeerEdit that a set reaches.
type editor interface {
	SetPrivateKey(*crypto.PrivateKey)
	SetListenPort(uint16) error
	SetMark(uint32) error
	RemovePeers()
	RemovePeer(crypto.PublicKey)
	// peer returns nil for an unknown peer that is not to be created.
	peer(k crypto.PublicKey, create bool) peerEditor
}

type peerEditor interface {
	SetPresharedKey(*crypto.PresharedKey)
	SetEndpoint(netip.AddrPort)
	SetPersistentKeepalive(seconds uint16)
	RemoveAllowedIPs()
	AddAllowedIP(netip.Prefix)
	RemoveAllowedIP(netip.Prefix)
}

type ofPipeline struct{ *pipeline.Pipeline }

func (t ofPipeline) edit(fn func(editor) error) error {
	return t.Edit(func(e *pipeline.Edit) error { return fn(pipelineEdit{e}) })
}

type pipelineEdit struct{ *pipeline.Edit }

func (e pipelineEdit) peer(k crypto.PublicKey, create bool) peerEditor {
	if create {
		return e.AddPeer(k)
	}
	if p := e.Peer(k); p != nil {
		return p
	}
	return nil
}

// Serve answers the clients of l for p, which it owns and closes, until l is closed (nil), its socket is removed
// (ErrGone) or it fails. It returns when the last connection's goroutine has ended; connections are closed, not waited
// for. A refused set is logged at level debug. Any number of clients may be slow; each has a goroutine of its own, up to
// 64 at a time: for one more, after a second, the one gives way that has made no request for the longest time.
//
// A set that fails stays applied up to the line that failed, as in other implementations; one that is cut off before its
// empty line is not applied at all.
func Serve(p *pipeline.Pipeline, l net.Listener, logger *slog.Logger) error {
	if logger == nil {
		logger = slog.New(slog.DiscardHandler)
	}
	return newServer(ofPipeline{p}, logger).serve(l)
}

// Show is Serve where something else configures the pipeline: a get is answered, with zeros for preshared keys, and each
// set is refused (EPERM), changes nothing, and is logged with the reason, which says who does configure. The private key is told
// nevertheless, since it is from that one that `wg` makes the interface's public key.
func Show(p *pipeline.Pipeline, l net.Listener, logger *slog.Logger, reason string) error {
	s := newServer(ofPipeline{p}, logger)
	s.readOnly = reason
	return s.serve(l)
}

type server struct {
	target   configurable
	logger   *slog.Logger
	readOnly string // why each set is refused; "": none is
	running  sync.WaitGroup
	places   chan struct{} // one for each client

	mu      sync.Mutex
	clients map[net.Conn]uint64 // turns as of when it came, or had its last answer; guarded by mu
	turns   uint64              // how often clients came and were answered; guarded by mu
}

func newServer(target configurable, logger *slog.Logger) *server {
	return &server{target: target, logger: logger, places: make(chan struct{}, maxClients), clients: make(map[net.Conn]uint64)}
}

func (s *server) serve(l net.Listener) error {
	defer s.running.Wait()
	defer s.closeClients()
	defer l.Close()
	for {
		conn, err := l.Accept()
		switch {
		case errors.Is(err, net.ErrClosed):
			return nil
		case errors.Is(err, syscall.EMFILE), errors.Is(err, syscall.ENFILE), errors.Is(err, syscall.ECONNABORTED),
			errors.Is(err, syscall.ENOBUFS), errors.Is(err, syscall.ENOMEM):
			time.Sleep(100 * time.Millisecond) // passes when descriptors or memory are free again
			continue
		case err != nil:
			return err
		}
		s.admit(conn)
		s.running.Go(func() { s.client(conn) })
	}
}

// admit waits for a place. Where none becomes free the client that is silent longest gives way: programs that forgot to hang up must
// not lock out whoever wants to configure us. The others wait in the socket's backlog meanwhile, so that many at once are served
// in turn.
func (s *server) admit(conn net.Conn) {
	patience := time.NewTimer(grace)
	defer patience.Stop()
	select {
	case s.places <- struct{}{}:
	case <-patience.C:
		s.closeSilent()
		s.places <- struct{}{}
	}
	s.note(conn)
}

// note notes that a client is there and has nothing to wait for.
func (s *server) note(conn net.Conn) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.turns++
	s.clients[conn] = s.turns
}

// closeSilent closes the client that is silent longest.
func (s *server) closeSilent() {
	s.mu.Lock()
	defer s.mu.Unlock()
	var silent net.Conn
	for conn, since := range s.clients {
		if silent == nil || since < s.clients[silent] {
			silent = conn
		}
	}
	if silent != nil {
		s.logger.Warn("configuration client closed", "reason", "too many connections, and silent longest", "limit", maxClients)
		silent.Close()
	}
}

func (s *server) closeClients() {
	s.mu.Lock()
	defer s.mu.Unlock()
	for conn := range s.clients {
		conn.Close()
	}
}

// client answers the requests of one connection until it says something that is no request.
func (s *server) client(conn net.Conn) {
	lines := newLines(conn)
	defer func() {
		lines.wipe()
		conn.Close()
		s.mu.Lock()
		delete(s.clients, conn)
		s.mu.Unlock()
		<-s.places
	}()
	for {
		lines.total = 0
		first, err := lines.next()
		if err != nil {
			return
		}
		expired := time.AfterFunc(patience, func() { conn.Close() })
		answer, more := s.answer(first, lines)
		if answer == nil || !expired.Stop() {
			return
		}
		expired = time.AfterFunc(patience, func() { conn.Close() })
		_, err = conn.Write(answer)
		clear(answer)
		if !expired.Stop() || err != nil || !more {
			return
		}
		s.note(conn)
	}
}

// answer reads the rest of a request. A nil answer or more being false end the connection.
func (s *server) answer(first []byte, lines *lineReader) (answer []byte, more bool) {
	switch string(first) {
	case "get=1":
		err := lines.skip()
		if err != nil {
			return fmt.Appendf(nil, "errno=%d\n\n", errnoOf(err)), !lines.ended
		}
		if answer, err = s.get(); err != nil {
			return fmt.Appendf(nil, "errno=%d\n\n", errnoOf(err)), true
		}
		return answer, true
	case "set=1":
		if s.readOnly != "" {
			return s.refuse(lines), !lines.ended
		}
		req, err := readSet(lines)
		if err == nil {
			err = s.target.edit(req.apply)
			req.wipe()
		}
		if err != nil {
			s.logger.Debug("configuration refused", "error", err)
			// `wg` reads a sign here, but digits only in the answer to a get (wireguard-tools src/ipc-uapi.h).
			return fmt.Appendf(nil, "errno=%d\n\n", -errnoOf(err)), !lines.ended
		}
		return []byte("errno=0\n\n"), true
	}
	return nil, false
}

// refuse reads over a set, keys and all, and returns the answer to it.
func (s *server) refuse(lines *lineReader) []byte {
	if _ = lines.skip(); !lines.ended { // whatever its lines are
		s.logger.Warn("wg may not change this interface", "reason", s.readOnly)
	}
	return fmt.Appendf(nil, "errno=%d\n\n", -errnoNotPermitted)
}

// get returns the answer to a get, which holds keys: the caller clears it.
func (s *server) get() (answer []byte, err error) {
	status, err := s.target.Status()
	if err != nil {
		return nil, err
	}
	if s.readOnly != "" {
		for i := range status.Peers {
			clear(status.Peers[i].PresharedKey[:])
		}
	}
	secret.Do(func() { answer = append(appendStatus(nil, status), "errno=0\n\n"...) })
	status.Wipe()
	return answer, nil
}

// errnoOf is the positive errno that tells a client of err.
func errnoOf(err error) int {
	var refusal *protocolError
	switch {
	case errors.As(err, &refusal):
		return refusal.errno
	case errors.Is(err, syscall.EADDRINUSE):
		return errnoAddressInUse
	case errors.Is(err, syscall.EPERM), errors.Is(err, syscall.EACCES):
		return errnoNotPermitted
	}
	return errnoIO
}

// appendStatus writes the answer to a get without its errno. The result holds the private key: the caller clears it.
func appendStatus(b []byte, s *pipeline.Status) []byte {
	size := 256 + len(s.Peers)*512
	for i := range s.Peers {
		size += len(s.Peers[i].AllowedIPs) * 64
	}
	b = slices.Grow(b, size) // at once: growth would leave copies of the key behind
	if s.PrivateKey != (crypto.PrivateKey{}) {
		b = appendKey(b, "private_key", s.PrivateKey[:])
	}
	if s.ListenPort != 0 {
		b = appendNumber(b, "listen_port", int64(s.ListenPort))
	}
	if s.Mark != 0 {
		b = appendNumber(b, "fwmark", int64(s.Mark))
	}
	for i := range s.Peers {
		b = appendPeerStatus(b, &s.Peers[i])
	}
	return b
}

func appendPeerStatus(b []byte, p *pipeline.PeerStatus) []byte {
	b = appendKey(b, "public_key", p.PublicKey[:])
	b = appendKey(b, "preshared_key", p.PresharedKey[:])
	b = append(b, "protocol_version=1\n"...)
	if p.Endpoint.IsValid() {
		b = append(p.Endpoint.AppendTo(append(b, "endpoint="...)), '\n')
	}
	var seconds, nanoseconds int64
	if !p.LastHandshake.IsZero() {
		seconds, nanoseconds = p.LastHandshake.Unix(), int64(p.LastHandshake.Nanosecond())
	}
	b = appendNumber(b, "last_handshake_time_sec", seconds)
	b = appendNumber(b, "last_handshake_time_nsec", nanoseconds)
	b = append(strconv.AppendUint(append(b, "tx_bytes="...), p.TxBytes, 10), '\n')
	b = append(strconv.AppendUint(append(b, "rx_bytes="...), p.RxBytes, 10), '\n')
	b = appendNumber(b, "persistent_keepalive_interval", int64(p.PersistentKeepalive))
	for _, prefix := range p.AllowedIPs {
		b = append(prefix.AppendTo(append(b, "allowed_ip="...)), '\n')
	}
	return b
}

func appendKey(b []byte, key string, value []byte) []byte {
	return append(hex.AppendEncode(append(append(b, key...), '='), value), '\n')
}

func appendNumber(b []byte, key string, n int64) []byte {
	return append(strconv.AppendInt(append(append(b, key...), '='), n, 10), '\n')
}
