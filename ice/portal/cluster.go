package portal

import (
	"context"
	"crypto/rand"
	"crypto/tls"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"sync"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/secretfile"
	"github.com/sluice-vpn/sluice/ice/signal"
	"github.com/sluice-vpn/sluice/ice/signal/broker"
)

// Cluster makes the portal one of several with the same state, any of which serves any node. All have the same certificate, by which
// nodes know them and they know one another, so each but the first begins with a folder of the first's backup.
type Cluster struct {
	Name string
	// Members are all portals of the cluster, the same list at each. At the first start the first one brings the state.
	Members []Member
	// Self is this one's name.
	Self string
	// Listen is the TCP address for the other members; port 0 takes the one of its own address.
	Listen netip.AddrPort
}

// Member is a portal of a cluster. Its name is no other's, ever: who has lost the folder comes back under another one.
type Member struct {
	Name    string
	Address string // host:port for the other members
}

const (
	clusterStoreName = "cluster"
	memberIDName     = "member"
	prefixMember     = "member."
	keyProbe         = "probe"
	// leastMembers is how many it takes to lose one: a majority of two is two.
	leastMembers, mostMembers = 3, 7
	// replicas is at how many members each value is.
	replicas = 3
	// joinPause is between looks whether there is a majority.
	joinPause = 200 * time.Millisecond
)

// check says what is wrong.
func (c *Cluster) check() error {
	if !signal.ValidName(c.Name) {
		return fmt.Errorf("portal: %q cannot be the name of a cluster; use lower-case letters, digits and hyphens", c.Name)
	}
	if n := len(c.Members); n < leastMembers || n > mostMembers {
		return fmt.Errorf("portal: a cluster has %d to %d members, not %d: a majority of them must be there for changes", leastMembers, mostMembers, n)
	}
	seen := map[string]bool{}
	for _, m := range c.Members {
		switch {
		case !signal.ValidName(m.Name):
			return fmt.Errorf("portal: %q cannot be a member's name; use lower-case letters, digits and hyphens", m.Name)
		case !protocol.ValidAddress(m.Address):
			return fmt.Errorf("portal: member %s: %q is no address; use HOST:PORT", m.Name, m.Address)
		case seen[m.Name] || seen[m.Address]:
			return fmt.Errorf("portal: member %s: its name or address is there twice", m.Name)
		}
		seen[m.Name], seen[m.Address] = true, true
	}
	if !seen[c.Self] || strings.Contains(c.Self, ":") {
		return fmt.Errorf("portal: this member, %q, is not in the list of members", c.Self)
	}
	return nil
}

// broker is what the server needs to be a member. Who shows the portal's own certificate, and proves to have its key, is one.
func (c *Cluster) broker(certificate tls.Certificate) *broker.Cluster {
	own := signal.FingerprintOf(certificate.Certificate[0])
	cfg := own.TLSConfig() // checks the other side, whichever has begun
	cfg.Certificates, cfg.ClientAuth = []tls.Certificate{certificate}, tls.RequireAnyClientCert
	b := &broker.Cluster{Name: c.Name, Member: c.Self, Listen: listenable(c.Listen), TLS: cfg}
	for _, m := range c.Members {
		if m.Name == c.Self {
			b.Advertise = m.Address
			continue
		}
		b.Routes, b.Known = append(b.Routes, m.Address), append(b.Known, m.Name)
	}
	return b
}

// loadShared waits for a majority of the cluster, and loads the state that it has. The first member brings its folder's if there is
// none.
func (p *Portal) loadShared(ctx context.Context, fresh bool) (*state, error) {
	first := p.config.Cluster.Members[0].Name
	if fresh && first != p.config.Cluster.Self {
		return nil, fmt.Errorf("%s is missing; make the folder of a backup of %s: sluice portal restore FILE", certificateName, first)
	}
	kv, err := p.joined(ctx)
	for err == nil {
		var s *state
		s, err = p.readShared(ctx, kv, fresh)
		switch {
		case err == nil && s.settings.RelaySecret != "":
			return s, nil
		case err == nil:
			err = fmt.Errorf("the cluster has no state yet; start %s, which brings it", first)
		case !unavailable(err):
			return nil, err
		}
		if pause(ctx) == nil {
			err = nil
		}
	}
	return nil, err
}

// unavailable reports whether the store may answer later: the members of a cluster agree anew on who leads when one comes or goes.
func unavailable(err error) bool {
	var answer *jetstream.APIError
	var older *nats.APIError // of what follows a bucket
	return errors.As(err, &answer) && answer.Code == 503 || errors.As(err, &older) && older.Code == 503 || errors.Is(err, context.DeadlineExceeded) || errors.Is(err, nats.ErrTimeout) ||
		errors.Is(err, nats.ErrNoResponders) || errors.Is(err, jetstream.ErrNoStreamResponse) || errors.Is(err, errConflict)
}

// readShared reads the state once; one without settings is none.
func (p *Portal) readShared(ctx context.Context, kv store, fresh bool) (*state, error) {
	ctx, cancel := context.WithTimeout(ctx, 2*readTime)
	defer cancel()
	if p.config.Cluster.Members[0].Name == p.config.Cluster.Self {
		if err := p.bring(ctx, kv, fresh); err != nil {
			return nil, err
		}
	}
	s := newState(kv, "")
	s.shared = true
	if err := s.read(ctx); err != nil || s.settings.RelaySecret == "" {
		return s, err
	}
	s.publishUsers()
	s.offers, _ = settleGrants(s.nodes, s.settings.overlay())
	return s, p.claim(ctx, s)
}

func pause(ctx context.Context) error {
	select {
	case <-ctx.Done():
		return ctx.Err()
	case <-time.After(joinPause):
		return nil
	}
}

// joined opens the bucket once a majority of members is there.
func (p *Portal) joined(ctx context.Context) (store, error) {
	told := false
	for {
		limited, cancel := context.WithTimeout(ctx, writeTime)
		kv, err := openBucket(limited, p.storeConn, min(replicas, len(p.config.Cluster.Members)))
		cancel()
		if err == nil {
			return kv, nil
		}
		if !told {
			told = true
			p.log.Info("waiting for a majority of the cluster", "cluster", p.config.Cluster.Name, "members", len(p.config.Cluster.Members))
		}
		if pause(ctx) != nil {
			return nil, fmt.Errorf("no majority of the cluster's %d portals is reached (at the first start %d must be); start the others, or look at"+
				" their addresses: %w", len(p.config.Cluster.Members), replicas, err)
		}
	}
}

// bring writes what the folder holds to a cluster that has no state. The settings come last: without them there is no state.
func (p *Portal) bring(ctx context.Context, kv store, fresh bool) error {
	there := newState(kv, "")
	if err := there.read(ctx); err != nil || there.settings.RelaySecret != "" {
		return err
	}
	values, err := p.folderValues(ctx, fresh)
	if err != nil {
		return err
	}
	keys := slices.DeleteFunc(slices.Sorted(func(yield func(string) bool) {
		for key := range values {
			if !yield(key) {
				return
			}
		}
	}), func(key string) bool { return key == keySettings })
	there.mu.Lock()
	defer there.mu.Unlock()
	for _, key := range append(keys, keySettings) {
		if there.revisions[key] != 0 { // of an earlier attempt
			continue
		}
		if err := there.write(ctx, key, values[key], false); err != nil {
			return err
		}
	}
	p.log.Info("the cluster has got the state of this folder", "cluster", p.config.Cluster.Name, "nodes", len(keys))
	return nil
}

// folderValues are what a portal alone would load.
func (p *Portal) folderValues(ctx context.Context, fresh bool) (map[string]json.RawMessage, error) {
	folder := filepath.Join(p.config.Folder, storeName)
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, err
	}
	server, conn, err := offline(folder)
	if err != nil {
		return nil, err
	}
	defer server.Close()
	defer conn.Close()
	kv, err := openBucket(ctx, conn, 1)
	if err != nil {
		return nil, err
	}
	s, err := loadState(ctx, kv, filepath.Join(p.config.Folder, markName), fresh)
	if err != nil {
		return nil, err
	}
	if err := s.settle(ctx, p.config.Overlay); err != nil {
		return nil, err
	}
	return s.values()
}

// claim notes which folder this member's is. Another one under its name has none of what the majority counts on.
func (p *Portal) claim(ctx context.Context, s *state) error {
	path := filepath.Join(p.config.Folder, memberIDName)
	id, err := os.ReadFile(path)
	if errors.Is(err, os.ErrNotExist) {
		id = []byte(rand.Text())
		err = secretfile.Write(path, id)
	}
	if err != nil {
		return err
	}
	key, text := prefixMember+p.config.Cluster.Self, string(id)
	switch known, ok := s.members[key]; {
	case ok && known != text:
		return fmt.Errorf("member %s was here before with another folder; give this portal a name that no member had, in the lists of all",
			p.config.Cluster.Self)
	case ok:
		return nil
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	if err := s.put(ctx, key, text, true); err != nil {
		return err
	}
	s.members[key] = text
	return nil
}

// followStore takes what other portals write until ctx ends.
func (p *Portal) followStore(ctx context.Context) {
	for ctx.Err() == nil {
		following, end := context.WithCancel(ctx)
		var watching sync.WaitGroup
		watching.Go(func() {
			select {
			case <-p.state.stuck:
				end()
			case <-following.Done():
			}
		})
		if err := p.state.kv.follow(following, p.state.take, func() {}); err != nil && ctx.Err() == nil {
			p.log.Warn("the changes of other portals do not come; asking again", "error", err)
		}
		end()
		watching.Wait()
		_ = pause(ctx)
	}
}

// reach looks whether changes can be stored, and whether those of others come. The store may answer for a while although no majority is
// there, so after a failure only a write shows that it is.
func (s *state) reach(ctx context.Context) error {
	ctx, cancel := context.WithTimeout(ctx, writeTime)
	defer cancel()
	last, err := s.kv.last(ctx)
	if err == nil && s.failing() != nil {
		err = s.probe(ctx)
	}
	if err != nil {
		err = s.notWritten(err)
		s.failure.Store(&err)
		return err
	}
	s.failure.Store(nil)
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.revision < last && s.revision == s.reached { // the same as the last time: nothing comes
		select {
		case s.stuck <- struct{}{}:
		default:
		}
	}
	s.reached = s.revision
	return nil
}

// probe writes something that means nothing. The lock is not held meanwhile: it may take long, and who changes nothing is served.
func (s *state) probe(ctx context.Context) error {
	s.mu.Lock()
	kv, after := s.kv, s.revisions[keyProbe]
	s.mu.Unlock()
	revision, err := kv.write(ctx, keyProbe, []byte(`""`), after, true)
	if err != nil {
		return err
	}
	s.mu.Lock()
	defer s.mu.Unlock()
	s.wrote(keyProbe, []byte{}, revision)
	return nil
}
