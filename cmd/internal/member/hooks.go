package member

import (
	"crypto/rand"
	"net/http"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/pipeline"
)

// These are for tests of keys that are out of step; serve says when they are there. The portal is not told.

func (n *node) changePrivateKey(w http.ResponseWriter, _ *http.Request) {
	k, err := crypto.GeneratePrivateKey(rand.Reader)
	if err == nil {
		err = n.pipeline.Edit(func(e *pipeline.Edit) error { e.SetPrivateKey(&k); return nil })
	}
	answer(w, err)
}

// tellSecrets tells the private and preshared keys, so that a test can look for them where they must not be.
func (n *node) tellSecrets(w http.ResponseWriter, _ *http.Request) {
	s, err := n.pipeline.Status()
	if err != nil {
		answer(w, err)
		return
	}
	defer s.Wipe()
	secrets := [][]byte{s.PrivateKey[:]}
	for i := range s.Peers {
		secrets = append(secrets, s.Peers[i].PresharedKey[:])
	}
	reply(w, secrets)
}

func (n *node) changePresharedKey(w http.ResponseWriter, r *http.Request) {
	name := r.URL.Query().Get("peer")
	of, err := n.pipeline.Status()
	if err != nil {
		answer(w, err)
		return
	}
	of.Wipe()
	for _, peer := range of.Peers {
		if peer.Name != name {
			continue
		}
		k, err := crypto.GeneratePresharedKey(rand.Reader)
		if err == nil {
			err = n.pipeline.Edit(func(e *pipeline.Edit) error {
				if p := e.Peer(peer.PublicKey); p != nil {
					p.SetPresharedKey(&k)
					return nil
				}
				return pipeline.ErrUnknownPeer
			})
		}
		answer(w, err)
		return
	}
	http.Error(w, "no peer of that name", http.StatusNotFound)
}

func answer(w http.ResponseWriter, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusServiceUnavailable)
		return
	}
	w.WriteHeader(http.StatusNoContent)
}
