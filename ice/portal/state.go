package portal

import (
	"cmp"
	"context"
	"crypto/hmac"
	"crypto/rand"
	"crypto/sha256"
	"crypto/subtle"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"maps"
	"net/netip"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/signal"
)

// Errors of changes to the list of nodes.
var (
	ErrExists  = errors.New("a node of this name exists")
	ErrUnknown = errors.New("there is no node of this name")
)

// record is what is kept of a node.
type record struct {
	Name      string         `json:"name"`
	Role      protocol.Role  `json:"role"`
	KeyHash   string         `json:"key_hash"` // SHA-256 of the token's SignInKey, hexadecimal
	Index     uint32         `json:"index"`    // of its addresses in the overlay, from 1
	Allow     []string       `json:"allow,omitempty"`
	Created   time.Time      `json:"created"`
	PublicKey protocol.Key   `json:"public_key"`
	Routes    []netip.Prefix `json:"routes,omitempty"`  // that it offers
	Granted   []netip.Prefix `json:"granted,omitempty"` // those of them that others are given
	DNS       []netip.Addr   `json:"dns,omitempty"`     // name servers that it offers
	Program   string         `json:"program,omitempty"`
	// Identity is the one that has signed PublicKey. Whether it has is for peers to see.
	Identity  protocol.Identity  `json:"identity,omitzero"`
	Signature protocol.Signature `json:"signature,omitzero"`
	// Outdated is the hash of a secret that was sent to sign in, as programs before there were identities did. Its token is good for
	// nothing any more.
	Outdated string `json:"token_hash,omitempty"`
	// Closed: without Allow a client reaches no gateway, not all.
	Closed bool `json:"closed,omitempty"`
	limits
}

// settings are the portal's own.
type settings struct {
	RelaySecret string         `json:"relay_secret"` // frozen once loaded
	PairSecret  protocol.Key   `json:"pair_secret"`  // what preshared keys are made from, see pair
	NextIndex   uint32         `json:"next_index"`
	Overlay     []netip.Prefix `json:"overlay,omitempty"` // empty: the default; see overlay
}

// state is the portal's memory, with a copy in a store that is written first. Its methods may be called by any goroutine.
type state struct {
	mark   string        // the file of writeMark; "": none
	broke  chan struct{} // of one slot: a write has failed
	stuck  chan struct{} // of one slot: what others write does not come
	shared bool          // other portals write too, and the memory follows the store
	log    *slog.Logger
	act    func([]effect) // is told of what has changed, without the lock

	failure atomic.Pointer[error] // of the latest write, nil if it was good

	mu         sync.Mutex
	kv         store
	revision   uint64            // all up to here is in memory
	revisions  map[string]uint64 // of what is in memory, by key
	reached    uint64            // revision when reach looked last
	progressed chan struct{}     // closed and replaced when take has moved revision
	effects    []effect          // that act was not told of yet
	members    map[string]string // of the cluster: which folder is whose, by key; see claim
	settings   settings
	nodes      map[string]*record         // records are frozen and replaced as a whole
	offers     map[string]protocol.Offers // by gateway; frozen and replaced

	users atomic.Pointer[map[string]bool] // of the relay; frozen and replaced
}

const (
	keySettings = "settings"
	prefixNode  = "node."
)

// add makes a node with a fresh secret.
func (s *state) add(ctx context.Context, n NewNode) (secret [32]byte, err error) {
	err = s.change(ctx, func() error { secret, err = s.addLocked(ctx, n); return err })
	return secret, err
}

func (s *state) addLocked(ctx context.Context, n NewNode) (secret [32]byte, err error) {
	name, role := n.Name, n.Role
	switch {
	case !signal.ValidName(name), name == AllowAll, name == AllowNone:
		return secret, fmt.Errorf("%q cannot be a name; use lower-case letters, digits and hyphens", name)
	case role != protocol.Client && role != protocol.Gateway:
		return secret, fmt.Errorf("%q is no role; use client or gateway", string(role))
	case s.nodes[name] != nil:
		return secret, fmt.Errorf("%w: %s", ErrExists, name)
	case len(s.nodes) >= protocol.MaxPeers:
		return secret, fmt.Errorf("there are %d nodes, which is the limit", len(s.nodes))
	case len(s.nodes) >= int(sizeOf(s.settings.overlay())):
		return secret, fmt.Errorf("there are %d nodes, which is all that have room in %v", len(s.nodes), s.settings.overlay())
	}
	r := &record{Name: name, Role: role, Created: time.Now().UTC()}
	if err := r.setAllow(n.Allow); err != nil {
		return secret, err
	}
	if err := r.setRoutes(n.Routes); err != nil {
		return secret, err
	}
	next := s.settings
	index := s.freeIndex()
	next.NextIndex = index + 1
	if err := s.put(ctx, keySettings, next, false); err != nil {
		return secret, err
	}
	s.settings.NextIndex = next.NextIndex
	secret, r.Index = newSecret(), index
	r.KeyHash = hashKey(protocol.Token{Secret: secret}.SignInKey())
	err = s.save(ctx, r, false)
	s.publishUsers()
	s.writeMark(ctx)
	return secret, err
}

// freeIndex is the next address that is not taken, of which there is one: those of removed nodes are used again as late as possible.
func (s *state) freeIndex() uint32 {
	taken := map[uint32]bool{}
	for _, r := range s.nodes {
		taken[r.Index] = true
	}
	index, size := max(1, s.settings.NextIndex), sizeOf(s.settings.overlay())
	for index > size || taken[index] {
		if index++; index > size {
			index = 1
		}
	}
	return index
}

// save writes a node's record and then lets it count; own is as in store.write. The lock is held.
func (s *state) save(ctx context.Context, r *record, own bool) error {
	if err := s.put(ctx, prefixNode+r.Name, r, own); err != nil {
		return err
	}
	s.note(r.Name, s.nodes[r.Name], r)
	s.nodes[r.Name] = r
	return nil
}

// renew gives a node another secret. Its keys are forgotten: who signed in with the old secret is no peer any more.
func (s *state) renew(ctx context.Context, name string) (secret [32]byte, err error) {
	err = s.change(ctx, func() error { secret, err = s.renewLocked(ctx, name); return err })
	return secret, err
}

func (s *state) renewLocked(ctx context.Context, name string) (secret [32]byte, err error) {
	old := s.nodes[name]
	if old == nil {
		return secret, fmt.Errorf("%w: %s", ErrUnknown, name)
	}
	secret = newSecret()
	next := *old
	next.KeyHash, next.Outdated = hashKey(protocol.Token{Secret: secret}.SignInKey()), ""
	next.PublicKey, next.Identity, next.Signature = protocol.Key{}, protocol.Identity{}, protocol.Signature{}
	err = s.save(ctx, &next, false)
	s.publishUsers()
	s.writeMark(ctx)
	return secret, err
}

// remove forgets a node.
func (s *state) remove(ctx context.Context, name string) error {
	known := false
	return s.change(ctx, func() error {
		if s.nodes[name] == nil && known { // it was removed, and then somebody else has changed something
			return s.settleOffers(ctx, nil)
		}
		known = true
		return s.removeLocked(ctx, name)
	})
}

func (s *state) removeLocked(ctx context.Context, name string) error {
	if s.nodes[name] == nil {
		return fmt.Errorf("%w: %s", ErrUnknown, name)
	}
	if err := s.write(ctx, prefixNode+name, nil, false); err != nil {
		return err
	}
	s.note(name, s.nodes[name], nil)
	delete(s.nodes, name)
	s.publishUsers()
	s.writeMark(ctx)
	return s.settleOffers(ctx, nil)
}

// report takes a node's key and routes. refused says why not, and changes nothing; changed whether anything is other than
// before. mayChange is asked if so.
func (s *state) report(
	ctx context.Context, name string, r *protocol.SyncRequest, mayChange func() bool,
) (changed bool, refused string, err error) {
	allowed := false // it counts once, however often others come in between
	once := func() bool { allowed = allowed || mayChange(); return allowed }
	err = s.change(ctx, func() error { changed, refused, err = s.reportLocked(ctx, name, r, once); return err })
	return changed, refused, err
}

func (s *state) reportLocked(
	ctx context.Context, name string, r *protocol.SyncRequest, mayChange func() bool,
) (changed bool, refused string, err error) {
	old := s.nodes[name]
	if old == nil {
		return false, "", ErrUnknown
	}
	changed = r.PublicKey != old.PublicKey || r.Identity != old.Identity || r.Signature != old.Signature || !slices.Equal(r.Routes, old.Routes) || !slices.Equal(r.DNS, old.DNS)
	if !changed && r.Program == old.Program {
		return false, "", nil // what was accepted stays so: whoever reports later must not contradict it
	}
	if refused = s.refusal(old, r); refused != "" {
		return false, refused, nil
	}
	if !mayChange() {
		return false, name + " changes its key or routes too often; wait, and see that it does not start again and again", nil
	}
	next := *old
	next.PublicKey, next.Identity, next.Signature, next.Routes, next.DNS, next.Program = r.PublicKey, r.Identity, r.Signature, r.Routes, r.DNS, r.Program
	if slices.Equal(next.Routes, old.Routes) {
		err = s.save(ctx, &next, true)
	} else {
		err = s.settleOffers(ctx, &next)
	}
	return changed && err == nil, "", err
}

// refusal says what is wrong with a report, "" if nothing is.
func (s *state) refusal(of *record, r *protocol.SyncRequest) string {
	if of.Role != protocol.Gateway && len(r.Routes)+len(r.DNS) > 0 {
		return of.Name + " is a client, and only a gateway may offer routes; make a gateway's token: sluice portal node add NAME -role gateway"
	}
	for _, other := range s.sorted() {
		if other.Name == of.Name {
			continue
		}
		if other.PublicKey == r.PublicKey {
			return fmt.Sprintf("node %s has the same public key; restart one of the two", other.Name)
		}
	}
	return ""
}

// authenticate returns the node that a credential stands for, and the nodes it is linked with.
func (s *state) authenticate(credential string) (name string, linked []string, err error) {
	name, key, ok := protocol.ParseCredential(credential)
	if !ok {
		return "", nil, errors.New("not a token")
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	r := s.nodes[name]
	hash := hashKey(key)
	if r == nil {
		return "", nil, errors.New("no such node")
	}
	if subtle.ConstantTimeCompare([]byte(hash), []byte(r.KeyHash)) != 1 {
		return "", nil, fmt.Errorf("wrong token for %s", name)
	}
	for _, other := range s.sorted() {
		if mayMeet(r, other) {
			linked = append(linked, other.Name)
		}
	}
	return name, linked, nil
}

// mayMeet is the policy: a client meets gateways, all or those it names; two gateways meet if one names the other; two clients
// never do.
func mayMeet(a, b *record) bool {
	switch {
	case a.Name == b.Name || a.Role == protocol.Client && b.Role == protocol.Client:
		return false
	case a.Role == protocol.Gateway && b.Role == protocol.Gateway:
		return slices.Contains(a.Allow, b.Name) || slices.Contains(b.Allow, a.Name)
	case a.Role == protocol.Gateway:
		a, b = b, a
	}
	return len(a.Allow) == 0 && !a.Closed || slices.Contains(a.Allow, b.Name)
}

// sorted lists the nodes by name. The lock is held.
func (s *state) sorted() []*record {
	return slices.SortedFunc(maps.Values(s.nodes), func(a, b *record) int { return cmp.Compare(a.Name, b.Name) })
}

// list is sorted for other goroutines.
func (s *state) list() []*record {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.sorted()
}

// peers is what a node may know of others.
func (s *state) peers(name string, online func(string) bool) (self *record, peers []protocol.Peer, err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if self = s.nodes[name]; self == nil {
		return nil, nil, ErrUnknown
	}
	for _, other := range s.sorted() {
		if !mayMeet(self, other) {
			continue
		}
		peers = append(peers, protocol.Peer{
			Name: other.Name, Role: other.Role, PublicKey: other.PublicKey, Identity: other.Identity, Signature: other.Signature, PresharedKey: s.settings.pair(self, other),
			AllowedIPs: append(addresses(s.settings.overlay(), other.Index), other.Granted...), DNS: other.resolvers(), Online: online(other.Name),
		})
	}
	return self, peers, nil
}

// resolvers are the name servers of a gateway that others are given: they go with a default route, and are given where that is.
func (r *record) resolvers() []netip.Addr {
	if slices.ContainsFunc(r.Granted, func(p netip.Prefix) bool { return p.Bits() == 0 }) {
		return r.DNS
	}
	return nil
}

// pair is the preshared key of two nodes. It is made, not kept: a new node would else cause a write for each that it may meet.
// A new token of either makes another one.
func (s *settings) pair(a, b *record) protocol.Key {
	if a.Name > b.Name {
		a, b = b, a
	}
	mac := hmac.New(sha256.New, s.PairSecret[:])
	for _, r := range []*record{a, b} {
		fmt.Fprintf(mac, "%s %s\n", r.Name, r.KeyHash) // neither holds a space
	}
	return protocol.Key(mac.Sum(nil))
}

// relayUser is whom the relay knows a node by: another one with each token, so that credentials end with the token.
func (r *record) relayUser() string { return r.Name + "-" + r.KeyHash[:8] }

// publishUsers lets the relay see who is known. The lock is held.
func (s *state) publishUsers() {
	users := make(map[string]bool, len(s.nodes))
	for _, r := range s.nodes {
		users[r.relayUser()] = true
	}
	s.users.Store(&users)
}

// knowsUser is the relay's question. It does not wait for the lock, which is held while the store is written.
func (s *state) knowsUser(user string) bool { return (*s.users.Load())[user] }

func newSecret() (secret [32]byte) {
	rand.Read(secret[:]) // never fails
	return secret
}

func hashKey(key [32]byte) string {
	sum := sha256.Sum256(key[:])
	return hex.EncodeToString(sum[:])
}
