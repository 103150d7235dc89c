package member

import (
	"bytes"
	"crypto/rand"
	"encoding/base64"
	"encoding/hex"
	"io"
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

// findSecrets says which of the private and preshared keys are in the text that it is given, so that a test finds them where they must not
// be, and how many it has looked for. It tells none.
func (n *node) findSecrets(w http.ResponseWriter, r *http.Request) {
	text, err := io.ReadAll(http.MaxBytesReader(w, r.Body, 64<<20))
	if err != nil {
		answer(w, err)
		return
	}
	s, err := n.pipeline.Status()
	if err != nil {
		answer(w, err)
		return
	}
	defer s.Wipe()
	result := SecretsFound{Found: []string{}}
	look := func(what string, key []byte) {
		if len(bytes.Trim(key, "\x00")) == 0 {
			return
		}
		result.Examined++
		if holds(text, key) {
			result.Found = append(result.Found, what)
		}
	}
	look("private key", s.PrivateKey[:])
	for i := range s.Peers {
		look("preshared key of "+s.Peers[i].Name, s.Peers[i].PresharedKey[:])
	}
	reply(w, result)
}

// SecretsFound is the answer of the hook for secrets: the names of those that are in the text, and how many were looked for.
type SecretsFound struct {
	Examined int      `json:"examined"`
	Found    []string `json:"found"`
}

// holds tells whether the text has the key as it is, in hex or in base64 of either alphabet.
func holds(text, key []byte) bool {
	lower := bytes.ToLower(text)
	return bytes.Contains(text, key) || bytes.Contains(lower, []byte(hex.EncodeToString(key))) ||
		bytes.Contains(text, []byte(base64.RawStdEncoding.EncodeToString(key))) || bytes.Contains(text, []byte(base64.RawURLEncoding.EncodeToString(key)))
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
