package portal

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"log/slog"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/secretfile"
	"github.com/sluice-vpn/sluice/ice/signal"
)

// loadState reads the bucket. A bucket without settings is a new one if fresh, which it then must be.
func loadState(ctx context.Context, kv store, mark string, fresh bool) (*state, error) {
	s := newState(kv, mark)
	if err := s.read(ctx); err != nil {
		return nil, err
	}
	for _, r := range s.nodes {
		if r.Index > sizeOf(s.settings.overlay()) {
			return nil, fmt.Errorf("node %s has no address in %v: %w", r.Name, s.settings.overlay(), errLost)
		}
	}
	s.publishUsers()
	switch settled := s.settings.RelaySecret != ""; {
	case settled && fresh && len(s.nodes) > 0:
		return nil, fmt.Errorf("%s is missing, so the tokens of all nodes are useless; restore it from a backup, or begin with another folder",
			certificateName)
	case !settled && (!fresh || len(s.nodes) > 0):
		return nil, errLost
	case !settled:
		s.settings = settings{RelaySecret: rand.Text() + rand.Text(), NextIndex: 1}
		rand.Read(s.settings.PairSecret[:]) // never fails
		return s, s.put(ctx, keySettings, s.settings, false)
	}
	if err := s.checkMark(ctx); err != nil {
		return nil, err
	}
	// A folder of before there were approvals has none: its gateways' networks are decided about now.
	return s, s.settleOffers(ctx, nil)
}

// newState is an empty one.
func newState(kv store, mark string) *state {
	return &state{
		kv: kv, mark: mark, broke: make(chan struct{}, 1), stuck: make(chan struct{}, 1), log: slog.New(slog.DiscardHandler), act: func([]effect) {},
		nodes: map[string]*record{}, members: map[string]string{}, revisions: map[string]uint64{}, progressed: make(chan struct{}),
	}
}

var errLost = errors.New("the stored state is lost or damaged; restore the folder from a backup," +
	" or begin with another folder and new tokens")

// read takes all that is stored.
func (s *state) read(ctx context.Context) (err error) {
	s.revision, err = s.kv.read(ctx, func(e entry) error {
		if err := s.load(e.key, e.value); err != nil {
			return fmt.Errorf("the stored %q is damaged (%w); restore the folder from a backup, or begin with another folder and new tokens",
				e.key, err)
		}
		s.revisions[e.key] = e.revision
		return nil
	})
	return err
}

// writeMark notes how long the store's log is, in a file beside it. The store drops the end of a log that it cannot read, and
// says nothing: a node that was added would be gone, and one that was removed be back. The lock is held.
func (s *state) writeMark(ctx context.Context) {
	if s.mark == "" {
		return
	}
	if last, err := s.kv.last(ctx); err == nil {
		_ = secretfile.Write(s.mark, strconv.AppendUint(nil, last, 10)) // an older mark is true as well
	}
}

// checkMark compares the store with the latest mark.
func (s *state) checkMark(ctx context.Context) error {
	text, err := os.ReadFile(s.mark)
	if errors.Is(err, os.ErrNotExist) {
		return nil
	}
	if err != nil {
		return err
	}
	mark, err := strconv.ParseUint(string(text), 10, 64)
	if err != nil {
		return fmt.Errorf("%s is damaged; remove it, and see with sluice portal node list whether all nodes are there", s.mark)
	}
	last, err := s.kv.last(ctx)
	if err == nil && last < mark {
		return fmt.Errorf("the latest changes are lost (%d of %d are there); restore the folder from a backup, or remove %s"+
			" to go on with what is left: nodes may be missing, and removed ones be back", last, mark, s.mark)
	}
	return err
}

// load takes one stored value. Unknown keys are a later version's.
func (s *state) load(key string, value []byte) error {
	switch {
	case key == keySettings:
		if err := json.Unmarshal(value, &s.settings); err != nil {
			return err
		}
		if err := checkOverlay(s.settings.Overlay); err != nil {
			return err
		}
		if len(s.settings.RelaySecret) < 16 {
			return errors.New("no relay secret")
		}
		if s.settings.PairSecret == (protocol.Key{}) {
			return errors.New("no secret for preshared keys")
		}
	case strings.HasPrefix(key, prefixNode):
		r := new(record)
		if err := json.Unmarshal(value, r); err != nil {
			return err
		}
		if err := r.check(key[len(prefixNode):]); err != nil {
			return err
		}
		for _, other := range s.nodes {
			if other.Index == r.Index {
				return fmt.Errorf("it has the addresses of %s", other.Name)
			}
		}
		s.nodes[r.Name] = r
	case strings.HasPrefix(key, prefixMember):
		var id string
		if err := json.Unmarshal(value, &id); err != nil {
			return err
		}
		s.members[key] = id
	}
	return nil
}

// check looks whether a record of that name can be one.
func (r *record) check(name string) error {
	if r.KeyHash == "" && r.Outdated != "" {
		// No key has this hash, so nobody signs in, and no peer is told of a key that nobody has signed.
		r.KeyHash, r.PublicKey = strings.Repeat("0", 2*sha256.Size), protocol.Key{}
	}
	switch hash, err := hex.DecodeString(r.KeyHash); {
	case r.Name != name || !signal.ValidName(name):
		return errors.New("wrong name")
	case r.Role != protocol.Client && r.Role != protocol.Gateway:
		return errors.New("no role")
	case err != nil || len(hash) != sha256.Size:
		return errors.New("no hash of a token")
	case r.Index == 0 || r.Index > overlaySize:
		return errors.New("no address")
	}
	for _, p := range slices.Concat(r.Routes, r.Granted, r.Approved, r.Refused) {
		if !p.IsValid() || p != p.Masked() {
			return errors.New("no network")
		}
	}
	if err := protocol.ValidateDNS(r.DNS); err != nil {
		return err
	}
	return nil
}

// settle makes the overlay what the operator asks for. Nodes that there are have addresses in the old one, and so have the routes
// of others to them: so none may be there.
func (s *state) settle(ctx context.Context, overlay []netip.Prefix) error {
	return s.change(ctx, func() error { return s.settleLocked(ctx, overlay) })
}

func (s *state) settleLocked(ctx context.Context, overlay []netip.Prefix) error {
	switch was := s.settings.overlay(); {
	case len(overlay) == 0 || slices.Equal(completeOverlay(overlay), was):
		return nil
	case s.shared: // the other portals have it in use
		return fmt.Errorf("the network is %v, and cannot be another one in a cluster", was)
	case len(s.nodes) > 0:
		return fmt.Errorf("the network is %v, and cannot be another one while there are nodes (%d); remove them all first"+
			" (sluice portal node remove), or begin with another folder", was, len(s.nodes))
	}
	next := s.settings
	next.Overlay, next.NextIndex = overlay, 1
	if err := s.put(ctx, keySettings, next, false); err != nil {
		return err
	}
	s.settings = next
	return nil
}

// put writes one value; own is as in store.write. The lock is held.
func (s *state) put(ctx context.Context, key string, value any, own bool) error {
	text, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return s.write(ctx, key, text, own)
}

// writeTime is how long a write may take. A store whose disk is full does not answer.
const writeTime = 5 * time.Second

// write writes to the store what nobody else has changed meanwhile; see store.write. The lock is held. After a write that has failed
// nothing is tried until guard has mended the store, so that nodes which change nothing are served.
func (s *state) write(ctx context.Context, key string, value []byte, own bool) error {
	if err := s.failing(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, writeTime)
	defer cancel()
	after := s.revision
	if own {
		after = s.revisions[key]
	}
	revision, err := s.kv.write(ctx, key, value, after, own)
	switch {
	case err == nil:
		s.wrote(key, value, revision)
		return nil
	case s.shared && errors.Is(err, errConflict):
		return err
	}
	// Alone, a conflict is with a write of our own that was said to have failed.
	err = s.notWritten(err)
	s.failure.Store(&err)
	select {
	case s.broke <- struct{}{}:
	default:
	}
	return err
}

// wrote notes what was written. The lock is held.
func (s *state) wrote(key string, value []byte, revision uint64) {
	s.revisions[key] = revision
	if value == nil {
		delete(s.revisions, key) // names would else add up; what is older than s.revision is not taken again
	}
	if revision == s.revision+1 { // else there is something between, which take will see
		s.revision = revision
	}
}

func (s *state) notWritten(err error) error {
	if s.shared {
		return fmt.Errorf("changes are refused, and all that is known goes on: no majority of the cluster's portals takes them"+
			" (sluice portal member list): %w", err)
	}
	return fmt.Errorf("the state could not be written (if the disk is full, make room and try again): %w", err)
}
