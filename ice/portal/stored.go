package portal

import (
	"context"
	"crypto/rand"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/nats-io/nats.go/jetstream"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/secretfile"
	"github.com/sluice-vpn/sluice/ice/signal"
)

// loadState reads the bucket. A bucket without settings is a new one if fresh, which it then must be.
func loadState(ctx context.Context, kv jetstream.KeyValue, mark string, fresh bool) (*state, error) {
	s := &state{kv: kv, mark: mark, nodes: map[string]*record{}, broke: make(chan struct{}, 1)}
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
		return s, s.put(ctx, keySettings, s.settings)
	}
	if err := s.checkMark(ctx); err != nil {
		return nil, err
	}
	// A folder of before there were approvals has none: its gateways' networks are decided about now.
	return s, s.settleOffers(ctx, nil)
}

var errLost = errors.New("the stored state is lost or damaged; restore the folder from a backup," +
	" or begin with another folder and new tokens")

// read takes all that is stored.
func (s *state) read(ctx context.Context) error {
	return readAll(ctx, s.kv, func(key string, value []byte) error {
		if err := s.load(key, value); err != nil {
			return fmt.Errorf("the stored %q is damaged (%w); restore the folder from a backup, or begin with another folder and new tokens",
				key, err)
		}
		return nil
	})
}

// readAll calls take for each value of a bucket, and ends with its first error.
func readAll(ctx context.Context, kv jetstream.KeyValue, take func(key string, value []byte) error) error {
	watcher, err := kv.WatchAll(ctx, jetstream.IgnoreDeletes())
	if err != nil {
		return err
	}
	defer watcher.Stop()
	// A damaged store may stop in the middle, and say nothing.
	idle := time.NewTimer(readTime)
	defer idle.Stop()
	for {
		select {
		case <-idle.C:
			return fmt.Errorf("%w (nothing could be read for %v)", errLost, readTime)
		case <-ctx.Done():
			return fmt.Errorf("the stored state could not be read: %w", ctx.Err())
		case entry, ok := <-watcher.Updates():
			idle.Reset(readTime)
			if !ok {
				return errors.New("the stored state could not be read: the store has closed")
			}
			if entry == nil { // that was all
				return nil
			}
			if err := take(entry.Key(), entry.Value()); err != nil {
				return err
			}
		}
	}
}

// readTime is how long the store may take for one value.
const readTime = 10 * time.Second

// writeMark notes how long the store's log is, in a file beside it. The store drops the end of a log that it cannot read, and
// says nothing: a node that was added would be gone, and one that was removed be back. The lock is held.
func (s *state) writeMark(ctx context.Context) {
	if last, err := s.sequence(ctx); err == nil {
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
	last, err := s.sequence(ctx)
	if err == nil && last < mark {
		return fmt.Errorf("the latest changes are lost (%d of %d are there); restore the folder from a backup, or remove %s"+
			" to go on with what is left: nodes may be missing, and removed ones be back", last, mark, s.mark)
	}
	return err
}

// sequence is the length of the store's log.
func (s *state) sequence(ctx context.Context) (uint64, error) {
	status, err := s.kv.Status(ctx)
	if err != nil {
		return 0, err
	}
	bucket, ok := status.(*jetstream.KeyValueBucketStatus)
	if !ok {
		return 0, errors.New("the store does not tell its length")
	}
	return bucket.StreamInfo().State.LastSeq, nil
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
	return nil
}

// settle makes the overlay what the operator asks for. Nodes that there are have addresses in the old one, and so have the routes
// of others to them: so none may be there.
func (s *state) settle(ctx context.Context, overlay []netip.Prefix) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	switch was := s.settings.overlay(); {
	case len(overlay) == 0 || slices.Equal(completeOverlay(overlay), was):
		return nil
	case len(s.nodes) > 0:
		return fmt.Errorf("the network is %v, and cannot be another one while there are nodes (%d); remove them all first"+
			" (sluice portal node remove), or begin with another folder", was, len(s.nodes))
	}
	next := s.settings
	next.Overlay, next.NextIndex = overlay, 1
	if err := s.put(ctx, keySettings, next); err != nil {
		return err
	}
	s.settings = next
	return nil
}

// put writes one value. The lock is held.
func (s *state) put(ctx context.Context, key string, value any) error {
	text, err := json.Marshal(value)
	if err != nil {
		return err
	}
	return s.write(ctx, func(ctx context.Context) error {
		_, err := s.kv.Put(ctx, key, text)
		return err
	})
}

// writeTime is how long a write may take. A store whose disk is full does not answer.
const writeTime = 5 * time.Second

// write runs a write to the store. The lock is held. After one that has failed nothing is tried until guard has mended the store,
// so that nodes which change nothing are served.
func (s *state) write(ctx context.Context, write func(context.Context) error) error {
	if err := s.failing(); err != nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, writeTime)
	defer cancel()
	err := write(ctx)
	if err == nil {
		return nil
	}
	err = notWritten(err)
	s.failure.Store(&err)
	select {
	case s.broke <- struct{}{}:
	default:
	}
	return err
}

func notWritten(err error) error {
	return fmt.Errorf("the state could not be written (if the disk is full, make room and try again): %w", err)
}
