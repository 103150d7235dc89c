package cryptotest

import (
	"fmt"
	"net/netip"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/crypto/aead"
)

// Node is one end of the link.
type Node struct {
	Name  string
	Addr  netip.AddrPort
	Local *crypto.Local
	// Verdicts counts what Handle said.
	Verdicts map[crypto.Reason]int
	// Dropped counts transport packets that were not accepted.
	Dropped int
	// Verdict is told what became of each handshake message, before it is answered; nil: nobody is.
	Verdict func(from netip.AddrPort, v crypto.Verdict)
	// Home, if set, says where a peer is that was heard from an address; nil: there.
	Home func(r *Remote, from netip.AddrPort) netip.AddrPort
	// Asleep: the node neither hears nor acts, as in suspend.
	Asleep bool

	net     *Net
	remotes []*Remote
}

// Remote is a node's data-plane side of one peer.
type Remote struct {
	Peer     *crypto.Peer
	Endpoint netip.AddrPort // invalid: not known yet
	Activity crypto.Activity
	// Received holds the data that came, oldest first.
	Received [][]byte
	// Events holds all outputs of the peer with their times, oldest first.
	Events []Event
	// Keepalives counts the empty packets that came.
	Keepalives int

	node   *Node
	staged [][]byte
}

// Event is an output of a peer. The bytes of Output.Message are a copy.
type Event struct {
	At time.Duration
	crypto.Output
}

// Join makes a node with a private key drawn from the Net. The address is how others send to it.
func (n *Net) Join(name string, addr netip.AddrPort) *Node {
	local, err := crypto.NewLocal(crypto.Config{Rand: n, Wall: n.Wall, NewCipher: n.NewCipher})
	if err != nil {
		panic(err)
	}
	key, err := crypto.GeneratePrivateKey(n)
	if err != nil {
		panic(err)
	}
	local.SetPrivateKey(n.now, &key)
	node := &Node{Name: name, Addr: addr, Local: local, Verdicts: make(map[crypto.Reason]int), net: n}
	n.nodes = append(n.nodes, node)
	return node
}

// Pair joins two nodes that are each other's only peer. Both get cfg, but for its key and owner; a knows b's endpoint.
func Pair(seed uint64, link Link, cfg crypto.PeerConfig) (n *Net, a, b *Remote) {
	n = NewNet(seed, link)
	left := n.Join("a", netip.MustParseAddrPort("192.0.2.1:51820"))
	right := n.Join("b", netip.MustParseAddrPort("[2001:db8::2]:51821"))
	a = left.Add(right, cfg)
	b = right.Add(left, cfg)
	b.Endpoint = netip.AddrPort{}
	return n, a, b
}

// Add makes other a peer of node, with cfg but for its key and owner, and returns the data-plane side.
func (node *Node) Add(other *Node, cfg crypto.PeerConfig) *Remote {
	cfg.PublicKey = other.Local.PublicKey()
	return node.AddKey(other.Addr, cfg)
}

// AddKey makes a peer of whoever has cfg.PublicKey, at that endpoint.
func (node *Node) AddKey(endpoint netip.AddrPort, cfg crypto.PeerConfig) *Remote {
	r := &Remote{node: node, Endpoint: endpoint}
	cfg.Owner = r
	p, err := node.Local.AddPeer(node.net.now, cfg)
	if err != nil {
		panic(err)
	}
	r.Peer = p
	node.remotes = append(node.remotes, r)
	return r
}

// Node returns the node that r is on.
func (r *Remote) Node() *Node { return r.node }

// Staged returns how many packets wait for a session.
func (r *Remote) Staged() int { return len(r.staged) }

// Initiations returns the times of the initiations that were sent.
func (r *Remote) Initiations() (at []time.Duration) {
	for _, e := range r.Events {
		if e.Kind == crypto.SendMessage && e.Message[0] == byte(crypto.MessageInitiation) {
			at = append(at, e.At)
		}
	}
	return at
}

// Times returns the times of the outputs of that kind.
func (r *Remote) Times(kind crypto.OutputKind) (at []time.Duration) {
	for _, e := range r.Events {
		if e.Kind == kind {
			at = append(at, e.At)
		}
	}
	return at
}

// Send is a packet from this node's people to the peer: sent, or staged until there is a session.
func (r *Remote) Send(payload []byte) {
	r.staged = append(r.staged, payload)
	if len(r.staged) > crypto.MaxStagedPackets {
		r.staged = r.staged[1:]
	}
	r.flush()
}

// Stage is Send where somebody else sees to the session.
func (r *Remote) Stage(payload []byte) { r.staged = append(r.staged, payload) }

// Purge drops what is staged.
func (r *Remote) Purge() { r.staged = nil }

func (node *Node) home(r *Remote, from netip.AddrPort) netip.AddrPort {
	if node.Home == nil {
		return from
	}
	return node.Home(r, from)
}

// Want asks for a session without a packet.
func (r *Remote) Want() {
	r.Peer.Want(r.node.net.now)
	r.Drain()
}

// flush sends what is staged if there is a session, and wants one if not.
func (r *Remote) flush() {
	now := r.node.net.now
	k := r.Peer.Sending()
	if k == nil || !k.Usable(now) {
		r.Peer.Want(now)
		r.Drain()
		return
	}
	for _, payload := range r.staged {
		if !r.seal(k, payload) {
			r.Peer.Want(now)
			r.Drain()
			return
		}
		r.staged = r.staged[1:]
	}
	if k.RekeyOnSend(now) {
		r.Peer.Want(now)
		r.Drain()
	}
}

// seal sends one transport packet; empty is a keepalive.
func (r *Remote) seal(k *crypto.Keypair, payload []byte) bool {
	counter, ok := k.Reserve(1)
	if !ok {
		return false
	}
	padded := (len(payload) + 15) &^ 15
	msg := make([]byte, crypto.SizeTransportHeader+padded+aead.Overhead)
	crypto.PutTransportHeader(msg, k.RemoteIndex, counter)
	k.SealRun([]aead.Packet{{Dst: msg[crypto.SizeTransportHeader:], Src: payload, Counter: counter}})
	now := r.node.net.now
	r.Activity.LastSent, r.Activity.FirstUnkept = now, 0
	if len(payload) > 0 && r.Activity.FirstUnanswered == 0 {
		r.Activity.FirstUnanswered = now
	}
	r.transmit(msg)
	return true
}

func (r *Remote) transmit(msg []byte) {
	if r.Endpoint.IsValid() {
		r.node.net.Send(r.node.Addr, r.Endpoint, msg)
	}
}

// Receive is a datagram that arrives. msg is owned by the node from here.
func (node *Node) Receive(from netip.AddrPort, msg []byte) {
	kind, _ := crypto.Classify(msg)
	if kind == crypto.MessageTransport {
		if !node.receiveTransport(from, msg) {
			node.Dropped++
		}
		return
	}
	v := node.Local.Handle(node.net.now, crypto.Source{Addr: from}, msg, nil)
	node.Verdicts[v.Reason]++
	if node.Verdict != nil {
		node.Verdict(from, v)
	}
	if v.Reply != nil {
		node.net.Send(node.Addr, from, v.Reply)
	}
	if v.Peer == nil {
		return
	}
	r := v.Peer.Owner().(*Remote)
	if v.Roam {
		r.Endpoint = node.home(r, from)
		r.stampReceived(false)
	}
	r.Drain()
}

func (node *Node) receiveTransport(from netip.AddrPort, msg []byte) bool {
	now := node.net.now
	index, counter, ok := crypto.ParseTransport(msg)
	if !ok {
		return false
	}
	k := node.Local.Table().Lookup(index)
	if k == nil || !k.Acceptable(now) {
		return false
	}
	body := msg[crypto.SizeTransportHeader:]
	if k.OpenRun([]aead.Packet{{Dst: body, Src: body, Counter: counter}}) != 1 || !k.Window().Accept(counter) {
		return false
	}
	r := k.Owner().(*Remote)
	r.Endpoint = node.home(r, from)
	payload := body[:len(body)-aead.Overhead]
	r.stampReceived(len(payload) > 0)
	if len(payload) > 0 {
		r.Received = append(r.Received, payload)
	} else {
		r.Keepalives++
	}
	if k.NeedsConfirm() && k.MarkConfirmed() {
		r.Peer.Confirm(now, k)
		r.Drain()
	}
	if k.RekeyOnReceive(now) {
		r.Want()
	}
	return true
}

func (r *Remote) stampReceived(data bool) {
	now := r.node.net.now
	r.Activity.LastReceived, r.Activity.FirstUnanswered = now, 0
	if !data {
		return
	}
	r.Activity.LastDataReceived = now
	if r.Activity.FirstUnkept == 0 {
		r.Activity.FirstUnkept = now
	}
}

func (r *Remote) timeout() {
	at, why := r.Peer.NextTimeout(r.Activity)
	r.Peer.HandleTimeout(r.node.net.now, r.Activity)
	r.Drain()
	if next, again := r.Peer.NextTimeout(r.Activity); next == at && again == why {
		panic(fmt.Sprintf("cryptotest: %s: the timeout %v at %v does not pass", r.node.Name, why, at))
	}
}

// Drain does what the peer's outputs ask for.
func (r *Remote) Drain() {
	for {
		out, ok := r.Peer.Poll()
		if !ok {
			return
		}
		r.Events = append(r.Events, Event{r.node.net.now, out})
		r.obey(out)
	}
}

func (r *Remote) obey(out crypto.Output) {
	now := r.node.net.now
	switch out.Kind {
	case crypto.SendMessage:
		r.Activity.LastSent, r.Activity.FirstUnkept = now, 0
		r.transmit(out.Message)
	case crypto.SendKeepalive:
		if k := r.Peer.Sending(); k != nil && k.Usable(now) && r.seal(k, nil) && k.RekeyOnSend(now) {
			r.Peer.Want(now)
		}
	case crypto.SessionUp:
		if len(r.staged) > 0 {
			r.flush()
		} else if out.Initiator {
			r.seal(out.Keypair, nil)
		}
	case crypto.Retired:
		out.Keypair.Wipe()
	case crypto.SeriesExpired:
		r.Activity.FirstUnanswered = 0
		if !out.Expired.Quiet {
			r.staged = nil
		}
	}
}
