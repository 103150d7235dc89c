package pipeline

import (
	"net/netip"
	"slices"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/crypto/secret"
	"github.com/sluice-vpn/sluice/pipeline/count"
	"github.com/sluice-vpn/sluice/pipeline/udp"
)

// Edit changes a pipeline's configuration. It is valid only within the function given to Pipeline.Edit, on its goroutine.
type Edit struct{ c *control }

// Edit runs fn on the control goroutine, between two inputs. Changes take effect as they are made, those of allowed IPs
// together at the end, and what was changed before fn returns an error stays changed. Edit returns fn's error, or ErrClosed. fn must not call the Pipeline's methods.
func (p *Pipeline) Edit(fn func(*Edit) error) error {
	var err error
	e := p.call(func() {
		err = fn(&Edit{p.control})
		p.routes.publish()
	})
	if e != nil {
		return e
	}
	return err
}

// SetPrivateKey changes our key, of which it makes its own copy; zero clears it. Sessions cannot be made before the peers know
// the new public key. A peer with the new public key is removed: it is ourselves.
func (e *Edit) SetPrivateKey(k *crypto.PrivateKey) { e.c.controller.setPrivateKey(e.c.now, k) }

// SetListenPort changes the UDP port; 0 chooses one. While the interface is up the sockets are replaced at once; if that
// fails (syscall.EADDRINUSE) the old ones stay in use.
func (e *Edit) SetListenPort(port uint16) error {
	cfg := e.c.udp
	cfg.Port = port
	switch {
	case !e.c.up:
		e.c.udp = cfg
	case e.c.pairs != nil && port != 0 && port == e.c.port():
		return nil
	default:
		if err := e.c.bind(cfg); err != nil {
			return err
		}
	}
	e.c.controller.forgetSources()
	return nil
}

// SetMark changes the fwmark of all outer packets; 0 clears it.
func (e *Edit) SetMark(mark uint32) error {
	for _, pair := range e.c.pairs {
		for _, s := range [2]udp.Socket{pair.V4, pair.V6} {
			if s == nil {
				continue
			}
			if err := s.SetMark(mark); err != nil {
				return err
			}
		}
	}
	e.c.udp.Mark = mark
	e.c.controller.forgetSources()
	e.c.walk.start(e.c.controller.peers) // it may choose other routes
	return nil
}

// SetDestinations says which addresses packets of peers may be for, what is for others is dropped (destination_not_own); nil: any. It
// makes its own copy.
func (e *Edit) SetDestinations(own []netip.Addr) {
	if own == nil {
		e.c.controller.routes.own.Store(nil)
		return
	}
	own = slices.Clone(own)
	e.c.controller.routes.own.Store(&own)
}

// RemovePeers removes all peers.
func (e *Edit) RemovePeers() {
	for n := len(e.c.controller.peers); n > 0; n-- {
		e.c.controller.remove(e.c.now, e.c.controller.peers[n-1])
	}
}

// RemovePeer removes a peer; nothing happens if there is none with this key.
func (e *Edit) RemovePeer(k crypto.PublicKey) {
	if p := e.c.controller.find(k); p != nil {
		e.c.controller.remove(e.c.now, p)
	}
}

// Peer returns a known peer, nil if there is none with this key.
func (e *Edit) Peer(k crypto.PublicKey) *PeerEdit {
	if p := e.c.controller.find(k); p != nil {
		return &PeerEdit{e.c, p}
	}
	return nil
}

// AddPeer returns the peer with this key, a new one if it is not known. Our own key gives a PeerEdit whose changes
// vanish, because WireGuard ignores a peer that is ourselves.
func (e *Edit) AddPeer(k crypto.PublicKey) *PeerEdit {
	if pe := e.Peer(k); pe != nil {
		return pe
	}
	p, err := e.c.controller.add(e.c.now, k)
	if err != nil {
		return &PeerEdit{c: e.c} // ErrSelf is the only error that is left
	}
	return &PeerEdit{e.c, p}
}

// PeerEdit changes one peer, under the same rules as Edit.
type PeerEdit struct {
	c    *control
	peer *peer // nil: changes vanish
}

// SetPresharedKey changes the preshared key, of which it makes its own copy; zero clears it. It counts from the next handshake
// on. The link of a named peer is told if that is another key than before (ChangeKeys).
func (pe *PeerEdit) SetPresharedKey(k *crypto.PresharedKey) {
	if pe.peer == nil {
		return
	}
	same := false
	secret.Do(func() { same = k.Equal(pe.peer.core.PresharedKey()) })
	if !same {
		pe.c.controller.keysChanged(pe.c.now, pe.peer)
	}
	secret.Do(func() { pe.peer.core.SetPresharedKey(k) })
	pe.c.controller.touch(pe.c.now, pe.peer)
}

// SetName gives the peer its name and leaves it to Config.Connector how it is reached. Names are unique; "" makes it a plain
// peer again, and its link ends (ChangeRemoved). Without a Connector peers have no names.
func (pe *PeerEdit) SetName(name string) {
	if pe.peer != nil {
		pe.c.controller.name(pe.c.now, pe.peer, name)
		pe.c.controller.touch(pe.c.now, pe.peer)
	}
}

// SetPublicKey replaces the key: sessions of the old one are forgotten, name, preshared key, keepalive and allowed IPs stay.
// The link is told (ChangeKeys, ChangeRetry). A key that another peer has, or our own, changes nothing.
func (pe *PeerEdit) SetPublicKey(k crypto.PublicKey) {
	if pe.peer != nil {
		pe.peer = pe.c.controller.replaceKey(pe.c.now, pe.peer, k)
	}
}

// Retry says that what stood in the way of reaching a named peer may have changed (ChangeRetry).
func (pe *PeerEdit) Retry() {
	if pe.peer != nil && pe.peer.link != nil {
		pe.peer.link.HandleChange(pe.c.now, ChangeRetry)
		pe.c.controller.touch(pe.c.now, pe.peer)
	}
}

// SetEndpoint says where the peer is, a link-local address with the index of its interface as zone (udp.ResolveZone); roaming may
// move it later. It changes nothing for a named peer, whose way its link finds.
func (pe *PeerEdit) SetEndpoint(endpoint netip.AddrPort) {
	if pe.peer == nil || pe.peer.link != nil {
		return
	}
	pe.peer.path.Store(&Path{Dst: netip.AddrPortFrom(endpoint.Addr().Unmap(), endpoint.Port())})
}

// SetPersistentKeepalive sets the interval in seconds; 0 switches it off. Switching it on sends one at once. With a named
// peer it counts while there is a session.
func (pe *PeerEdit) SetPersistentKeepalive(seconds uint16) {
	if pe.peer == nil {
		return
	}
	pe.peer.keepalive = seconds
	pe.c.controller.setKeepalive(pe.c.now, pe.peer)
	pe.c.controller.touch(pe.c.now, pe.peer)
}

// RemoveAllowedIPs takes all prefixes from the peer.
func (pe *PeerEdit) RemoveAllowedIPs() {
	if pe.peer != nil {
		pe.c.controller.routes.unsetAll(pe.peer)
	}
}

// AddAllowedIP gives the prefix to the peer and takes it from the one that had it. Host bits are cleared.
func (pe *PeerEdit) AddAllowedIP(p netip.Prefix) {
	if pe.peer != nil {
		pe.c.controller.routes.set(p.Masked(), pe.peer)
	}
}

// RemoveAllowedIP takes the prefix from the peer, if it has it.
func (pe *PeerEdit) RemoveAllowedIP(p netip.Prefix) {
	if pe.peer != nil {
		pe.c.controller.routes.unset(p.Masked(), pe.peer)
	}
}

// Status is what a pipeline is configured to and what has become of it. It holds secrets: see Wipe.
type Status struct {
	PrivateKey crypto.PrivateKey
	ListenPort uint16
	Mark       uint32
	Peers      []PeerStatus    // in the order they were added
	Lost       []count.Counter // packets lost in queues and the like, by cause; causes that never were are left out
}

// PeerStatus is one peer of a Status.
type PeerStatus struct {
	Name                string // "": a plain peer
	PublicKey           crypto.PublicKey
	PresharedKey        crypto.PresharedKey
	Endpoint            netip.AddrPort // invalid: not known
	Path                *Path          // where datagrams go, frozen; nil: nowhere
	PersistentKeepalive uint16         // seconds, 0: off
	LastHandshake       time.Time      // zero: never
	RxBytes, TxBytes    uint64         // UDP payload, handshakes and keepalives included
	AllowedIPs          []netip.Prefix // sorted
	Drops               PeerDrops
}

// Wipe overwrites the secrets.
func (s *Status) Wipe() {
	clear(s.PrivateKey[:])
	for i := range s.Peers {
		clear(s.Peers[i].PresharedKey[:])
	}
}

// Status returns a copy of the present state, or ErrClosed. The caller wipes it.
func (p *Pipeline) Status() (*Status, error) {
	s := new(Status)
	err := p.call(func() {
		secret.Do(func() {
			s.PrivateKey, s.Peers = p.local.PrivateKey(), p.control.controller.status(p.clock())
		})
		s.ListenPort, s.Mark, s.Lost = p.control.port(), p.control.udp.Mark, losses(p.control.laneCounters().List())
	})
	if err != nil {
		return nil, err
	}
	return s, nil
}
