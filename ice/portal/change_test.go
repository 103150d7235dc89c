package portal

import (
	"context"
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"sync"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
)

// memoryStore is a store that several states share. Every write is told to all that follow it, late if slow.
type memoryStore struct {
	slow time.Duration

	mu      sync.Mutex
	log     []entry          // the revision of each is its place, from 1
	current map[string]entry // removed ones too
	written chan struct{}    // closed and replaced at each write
}

func newMemoryStore() *memoryStore {
	return &memoryStore{current: map[string]entry{}, written: make(chan struct{})}
}

func (m *memoryStore) read(_ context.Context, take func(entry) error) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	for _, e := range m.current {
		if e.value != nil {
			if err := take(e); err != nil {
				return 0, err
			}
		}
	}
	return uint64(len(m.log)), nil
}

func (m *memoryStore) write(_ context.Context, key string, value []byte, after uint64, own bool) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	at := uint64(len(m.log))
	if own {
		at = m.current[key].revision
	}
	if at != after {
		return 0, errConflict
	}
	e := entry{key, value, uint64(len(m.log)) + 1}
	m.log, m.current[key] = append(m.log, e), e
	close(m.written)
	m.written = make(chan struct{})
	return e.revision, nil
}

func (m *memoryStore) follow(ctx context.Context, take func(entry), caughtUp func()) error {
	for next := 0; ; {
		m.mu.Lock()
		fresh, written := m.log[next:], m.written
		m.mu.Unlock()
		for _, e := range fresh {
			time.Sleep(m.slow)
			take(e)
		}
		if next == 0 {
			caughtUp()
		}
		next += len(fresh)
		select {
		case <-written:
		case <-ctx.Done():
			return nil
		}
	}
}

func (m *memoryStore) last(context.Context) (uint64, error) {
	m.mu.Lock()
	defer m.mu.Unlock()
	return uint64(len(m.log)), nil
}

// sharing makes states of several portals on one store.
func sharing(t *testing.T, m *memoryStore, n int) (list []*state) {
	t.Helper()
	ctx, cancel := context.WithCancel(t.Context())
	var tasks sync.WaitGroup
	t.Cleanup(func() { cancel(); tasks.Wait() })
	for i := range n {
		s, err := loadState(ctx, m, "", i == 0)
		if err != nil {
			t.Fatal(err)
		}
		s.shared = true
		tasks.Go(func() { _ = m.follow(ctx, s.take, func() {}) })
		list = append(list, s)
	}
	return list
}

// settled waits until the states hold all that is stored, and compares them.
func settled(t *testing.T, list []*state) {
	t.Helper()
	for _, s := range list {
		s.mu.Lock()
		err := s.catchUp(t.Context())
		s.mu.Unlock()
		if err != nil {
			t.Fatal(err)
		}
	}
	names := func(s *state) (list []string) {
		for _, r := range s.list() {
			list = append(list, fmt.Sprintf("%s %d %v %v", r.Name, r.Index, r.Routes, r.Granted))
		}
		return list
	}
	for i, s := range list {
		if got, want := names(s), names(list[0]); !slices.Equal(got, want) {
			t.Errorf("state %d holds\n%q, the first\n%q", i, got, want)
		}
	}
}

// Operators at three portals who change things at once lose none of one another's changes, and nobody gets an address twice.
func TestChangesAtOnce(t *testing.T) {
	t.Parallel()
	const each = 20
	m := newMemoryStore()
	m.slow = 100 * time.Microsecond
	states := sharing(t, m, 3)
	var tasks sync.WaitGroup
	for i, s := range states {
		tasks.Go(func() {
			for j := range each {
				if _, err := s.add(t.Context(), NewNode{Name: fmt.Sprintf("n%d-%d", i, j), Role: protocol.Gateway}); err != nil {
					t.Errorf("portal %d: %v", i, err)
				}
				if j%4 == 3 {
					if err := s.remove(t.Context(), fmt.Sprintf("n%d-%d", i, j-1)); err != nil {
						t.Errorf("portal %d removes: %v", i, err)
					}
				}
			}
		})
	}
	tasks.Wait()
	settled(t, states)
	taken := map[uint32]string{}
	for _, r := range states[1].list() {
		if taken[r.Index] != "" {
			t.Errorf("%s and %s have address %d", taken[r.Index], r.Name, r.Index)
		}
		taken[r.Index] = r.Name
	}
	if got, want := len(taken), 3*(each-each/4); got != want {
		t.Errorf("%d nodes, want %d", got, want)
	}
}

// The same name at two portals at once is one node's, and the same network one gateway's.
func TestSameAtOnce(t *testing.T) {
	t.Parallel()
	m := newMemoryStore()
	states := sharing(t, m, 3)
	route := []netip.Prefix{netip.MustParsePrefix("10.7.0.0/16")}
	for i := range states {
		if _, err := states[0].add(t.Context(), NewNode{Name: fmt.Sprintf("g%d", i), Role: protocol.Gateway}); err != nil {
			t.Fatal(err)
		}
	}
	settled(t, states)
	var tasks sync.WaitGroup
	var mu sync.Mutex
	added := 0
	for i, s := range states {
		tasks.Go(func() {
			_, err := s.add(t.Context(), NewNode{Name: "same", Role: protocol.Client})
			mu.Lock()
			defer mu.Unlock()
			switch {
			case err == nil:
				added++
			case !errors.Is(err, ErrExists):
				t.Errorf("portal %d: %v", i, err)
			}
		})
		tasks.Go(func() {
			r := signed(protocol.SyncRequest{PublicKey: protocol.Key{byte(i + 1)}, Routes: route})
			if _, refused, err := s.report(t.Context(), fmt.Sprintf("g%d", i), &r, func() bool { return true }); err != nil || refused != "" {
				t.Errorf("report at portal %d: %q, %v", i, refused, err)
			}
		})
	}
	tasks.Wait()
	settled(t, states)
	granted := 0
	for _, r := range states[2].list() {
		granted += len(r.Granted)
	}
	if added != 1 || granted != 1 {
		t.Errorf("%d times added and %d times granted, want once each", added, granted)
	}
	for i, s := range states {
		if got := s.allOffers(); len(got) != 3 {
			t.Errorf("portal %d has decided about the offers of %d gateways, want 3", i, len(got))
		}
	}
}

// What another portal changes has the effects of a change here: who lost a right is known.
func TestEffectsOfOthers(t *testing.T) {
	t.Parallel()
	states := sharing(t, newMemoryStore(), 2)
	var mu sync.Mutex
	var got []string
	states[1].act = func(list []effect) {
		mu.Lock()
		defer mu.Unlock()
		for _, e := range list {
			got = append(got, fmt.Sprintf("%s %v %v %v", e.name, e.removed, e.renewed, e.apart))
		}
	}
	ctx := t.Context()
	for _, n := range []NewNode{{Name: "gate", Role: protocol.Gateway}, {Name: "laptop", Role: protocol.Client}} {
		if _, err := states[0].add(ctx, n); err != nil {
			t.Fatal(err)
		}
	}
	_, err := states[0].renew(ctx, "laptop")
	err = errors.Join(err, states[0].allow(ctx, "laptop", []string{AllowNone}), states[0].remove(ctx, "gate"))
	if err != nil {
		t.Fatal(err)
	}
	settled(t, states)
	mu.Lock()
	defer mu.Unlock()
	want := []string{"gate false false []", "laptop false false [gate]", "laptop false true []", "laptop false false [gate]", "gate true false []"}
	if !slices.Equal(got, want) {
		t.Errorf("effects\n%q, want\n%q", got, want)
	}
	if states[1].knowsUser("gate-12345678") || len(*states[1].users.Load()) != 1 {
		t.Errorf("the relay knows %v", *states[1].users.Load())
	}
}
