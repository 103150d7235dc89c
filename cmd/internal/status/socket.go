// Package status is what a person sees of a running node: the socket on which the node tells, and the tables made of it.
//
// The socket is /run/sluice/INTERFACE.sock, for the user that the node runs as and root only; on Windows it is a named pipe,
// \\.\pipe\sluice-INTERFACE, for that user and administrators only. It speaks HTTP: GET /status
// returns edge.Status as JSON, GET /why?of=SUBJECT what becomes of packets there, GET /counters what was counted, GET /pins the identities of peers, POST /trust takes one of them,
// GET /echo?to=ADDRESS&sequence=NUMBER an echo by a tunnel without an interface,
// POST /log-level changes the level of the log, POST /capture streams packets (see Stream), and POST /release ends that the machine fails closed.
package status

import (
	"bytes"
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"time"

	"github.com/sluice-vpn/sluice/ice/edge"
)

// Path is the socket of the node with that interface.
func Path(iface string, getenv func(string) string) string {
	list := Directories(getenv)
	if len(list) > 1 && !writable(Directory) {
		return PathIn(list[1], iface)
	}
	return PathIn(Directory, iface)
}

// errNotServed: the node does not know what it is asked.
var errNotServed = errors.New("the node does not answer this; is it of another version?")

// maxAnswer bounds what is read of an answer.
const maxAnswer = 64 << 20

// Node is a running node, by its socket. It is frozen; its methods may be called by any goroutine.
type Node struct {
	path   string
	client *http.Client
}

// NewNode returns the node behind a socket, which is not asked yet.
func NewNode(path string) *Node { return &Node{path, Client(path, 10*time.Second)} }

// Client speaks HTTP over a node's socket, whatever host a URL names. It keeps no connection open. A limit of 0 is none.
func Client(path string, limit time.Duration) *http.Client {
	transport := &http.Transport{
		DialContext:       func(ctx context.Context, _, _ string) (net.Conn, error) { return dial(ctx, path) },
		DisableKeepAlives: true,
	}
	return &http.Client{Transport: transport, Timeout: limit}
}

// Path is the path of the socket.
func (n *Node) Path() string { return n.path }

// errStranger: who serves there is neither who asks nor one that may do anything on the machine, so it is told nothing.
var errStranger = errors.New("somebody else has made this socket, so it is not asked; it is that user's who may ask it")

// ErrNotRunning: there is no node at the socket.
var ErrNotRunning = errors.New("no node is running there; start one with sluice gateway or sluice client")

// Get asks for the status. The error says what to do.
func (n *Node) Get(ctx context.Context) (s edge.Status, err error) {
	err = n.ask(ctx, http.MethodGet, "/status", nil, &s)
	return s, err
}

// Why asks what becomes of packets to an address or a peer. The error says what to do.
func (n *Node) Why(ctx context.Context, subject string) (w Why, err error) {
	err = n.ask(ctx, http.MethodGet, "/why?of="+url.QueryEscape(subject), nil, &w)
	return w, err
}

// Pins asks for the identities of peers. The error says what to do.
func (n *Node) Pins(ctx context.Context) (pins []edge.Pin, err error) {
	err = n.ask(ctx, http.MethodGet, "/pins", nil, &pins)
	return pins, err
}

// Counters asks for what the node has counted, by name. The error says what to do.
func (n *Node) Counters(ctx context.Context) (counters map[string]uint64, err error) {
	err = n.ask(ctx, http.MethodGet, "/counters", nil, &counters)
	return counters, err
}

// Trust has the node take a peer with its offered identity. It does so until it ends if note says something. The error says what to
// do.
func (n *Node) Trust(ctx context.Context, pin edge.Pin) (note string, err error) {
	err = n.ask(ctx, http.MethodPost, "/trust", pin, &note)
	return note, err
}

// LogLevel has the node log from the level of that name on, and returns the one before; "" only asks. The error says what to do.
func (n *Node) LogLevel(ctx context.Context, level string) (before string, err error) {
	err = n.ask(ctx, http.MethodPost, "/log-level", level, &before)
	return before, err
}

// EchoLimit is how long an answer to an echo may take: the first may have to wait for a connection.
const EchoLimit = 2 * time.Second

// Echo is what has become of one.
type Echo struct {
	Answered bool    `json:"answered"`
	RTTS     float64 `json:"rtt_s"`
}

// ErrInterface: the node has an interface, and the kernel sends echoes by it.
var ErrInterface = errors.New("the node has an interface")

// Echo has a node without an interface send an echo request. The error is ErrInterface, or says what to do.
func (n *Node) Echo(ctx context.Context, to netip.Addr, sequence int) (e Echo, err error) {
	err = n.ask(ctx, http.MethodGet, fmt.Sprintf("/echo?to=%v&sequence=%d", to, sequence), nil, &e)
	if errors.Is(err, errNotServed) {
		err = ErrInterface
	}
	return e, err
}

// Release has the node's machine not fail closed any more. The error says what to do.
func (n *Node) Release(ctx context.Context) error {
	return n.ask(ctx, http.MethodPost, "/release", nil, new(struct{}))
}

// ask sends what is asked, as JSON, and reads the answer.
func (n *Node) ask(ctx context.Context, method, path string, asked, result any) error {
	text, err := json.Marshal(asked)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://node"+path, bytes.NewReader(text))
	if err != nil {
		return err
	}
	answer, err := n.client.Do(request)
	if err != nil {
		return n.unreachable(err)
	}
	defer answer.Body.Close()
	if err := n.refusal(answer); err != nil {
		return err
	}
	body := io.LimitReader(answer.Body, maxAnswer)
	if err := json.NewDecoder(body).Decode(result); err != nil {
		return fmt.Errorf("%s: the answer is not understood (is the node of another version?): %w", n.path, err)
	}
	return nil
}

// unreachable says what to do where the node could not be asked.
func (n *Node) unreachable(err error) error {
	var of *url.Error
	switch {
	case errors.Is(err, errStranger):
		return fmt.Errorf("%s: %w", n.path, errStranger)
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s: not allowed; run this as %s or as the user that the node runs as", n.path, whoMay)
	case errors.Is(err, fs.ErrNotExist), errors.Is(err, errRefused):
		return fmt.Errorf("%s: %w", n.path, ErrNotRunning)
	case errors.As(err, &of):
		err = of.Err // without the URL
	}
	return fmt.Errorf("%s: %w", n.path, err)
}

// refusal is the error of an answer, nil if it is none.
func (n *Node) refusal(answer *http.Response) error {
	switch answer.StatusCode {
	case http.StatusOK:
		return nil
	case http.StatusNotFound:
		return fmt.Errorf("%s: %w", n.path, errNotServed)
	case http.StatusConflict:
		text, _ := io.ReadAll(io.LimitReader(answer.Body, 1000))
		return errors.New(strings.TrimSpace(string(text)))
	}
	text, _ := io.ReadAll(io.LimitReader(answer.Body, 300))
	return fmt.Errorf("%s: the node answered %s: %s", n.path, answer.Status, strings.TrimSpace(string(text)))
}
