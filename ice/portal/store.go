package portal

import (
	"context"
	"errors"
	"fmt"
	"time"

	"github.com/nats-io/nats.go"
	"github.com/nats-io/nats.go/jetstream"
)

// store is where the state is kept: values by key, in a log whose revisions count all writes. Its methods may be called by any
// goroutine.
type store interface {
	// read calls take for each value, and returns the revision up to which it has told all there is; what is newer it may have told too.
	// It ends with take's first error.
	read(ctx context.Context, take func(entry) error) (revision uint64, err error)
	// write stores a value, or removes it if it is nil, and returns the write's revision. errConflict: the log, or with own the key, has
	// another revision than after; nothing was written then. After any other error it may have been written, or be so later.
	write(ctx context.Context, key string, value []byte, after uint64, own bool) (revision uint64, err error)
	// follow calls take for each value that there is, in no order, then caughtUp, then take for what is written, in order, until ctx ends
	// (nil) or the store cannot tell more.
	follow(ctx context.Context, take func(entry), caughtUp func()) error
	// last is the revision of the latest write.
	last(ctx context.Context) (revision uint64, err error)
}

// entry is a value that was written; nil: it was removed.
type entry struct {
	key      string
	value    []byte
	revision uint64
}

// errConflict: somebody else has written since the state was read.
var errConflict = errors.New("another portal has changed the state at this moment; try again")

const (
	bucketName = "sluice"
	// maxBucket bounds the bucket, in bytes.
	maxBucket = 256 << 20
	// readTime is how long the store may take for one value.
	readTime = 10 * time.Second
)

// kvStore is a store in a bucket of JetStream.
type kvStore struct {
	js         jetstream.JetStream
	kv         jetstream.KeyValue
	replicated bool
}

// openBucket opens the bucket, and makes it if there is none. One of several replicas is made only while so many members are there.
func openBucket(ctx context.Context, conn *nats.Conn, replicas int) (*kvStore, error) {
	js, err := jetstream.New(conn)
	if err != nil {
		return nil, err
	}
	if replicas > 1 {
		if kv, err := js.KeyValue(ctx, bucketName); err == nil {
			return &kvStore{js, kv, true}, nil
		}
	}
	kv, err := js.CreateOrUpdateKeyValue(ctx, jetstream.KeyValueConfig{Bucket: bucketName, History: 1, MaxBytes: maxBucket, Replicas: replicas})
	if err != nil {
		return nil, fmt.Errorf("the store cannot be opened: %w", err)
	}
	return &kvStore{js, kv, replicas > 1}, nil
}

func (s *kvStore) write(ctx context.Context, key string, value []byte, after uint64, own bool) (uint64, error) {
	m := nats.NewMsg("$KV." + bucketName + "." + key)
	m.Data = value
	if value == nil { // as KeyValue.Purge does it
		m.Header.Set("KV-Operation", "PURGE")
		m.Header.Set(jetstream.MsgRollup, jetstream.MsgRollupSubject)
	}
	expect := jetstream.WithExpectLastSequence(after)
	if own {
		expect = jetstream.WithExpectLastSequencePerSubject(after)
	}
	ack, err := s.js.PublishMsg(ctx, m, expect)
	var wrong *jetstream.APIError
	switch {
	case err == nil:
		return ack.Sequence, nil
	case errors.As(err, &wrong) && (wrong.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequence ||
		wrong.ErrorCode == jetstream.JSErrCodeStreamWrongLastSequenceConstant):
		return 0, errConflict
	}
	return 0, err
}

func (s *kvStore) last(ctx context.Context) (uint64, error) {
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

func (s *kvStore) read(ctx context.Context, take func(entry) error) (uint64, error) {
	last, err := s.last(ctx)
	if err != nil {
		return 0, err
	}
	watcher, err := s.kv.WatchAll(ctx) // removed ones too: they count for told
	if err != nil {
		return 0, err
	}
	var told uint64
	defer watcher.Stop()
	// A damaged store may stop in the middle, and say nothing.
	idle := time.NewTimer(readTime)
	defer idle.Stop()
	for {
		select {
		case <-idle.C:
			return 0, fmt.Errorf("%w (nothing could be read for %v)", errLost, readTime)
		case <-ctx.Done():
			return 0, fmt.Errorf("the stored state could not be read: %w", ctx.Err())
		case e, ok := <-watcher.Updates():
			idle.Reset(readTime)
			if !ok {
				return 0, errors.New("the stored state could not be read: the store has closed")
			}
			if e == nil { // that was all
				// The length is the leader's word, the values are those of any member. One that has just come back may tell its old copy,
				// and what lies between would be missed for ever. The latest write is always there, as its key's value or removal.
				if s.replicated && told < last {
					return 0, fmt.Errorf("%w (a member told %d of %d)", errConflict, told, last)
				}
				return max(last, told), nil
			}
			told = max(told, e.Revision())
			if e.Operation() != jetstream.KeyValuePut {
				continue
			}
			if err := take(entry{e.Key(), e.Value(), e.Revision()}); err != nil {
				return 0, err
			}
		}
	}
}

func (s *kvStore) follow(ctx context.Context, take func(entry), caughtUp func()) error {
	watcher, err := s.kv.WatchAll(ctx)
	if err != nil {
		return err
	}
	defer watcher.Stop()
	for {
		select {
		case <-ctx.Done():
			return nil
		case e, ok := <-watcher.Updates():
			switch {
			case !ok:
				return errors.New("the store tells of no more changes")
			case e == nil:
				caughtUp()
			case e.Operation() != jetstream.KeyValuePut:
				take(entry{e.Key(), nil, e.Revision()})
			default:
				take(entry{e.Key(), e.Value(), e.Revision()})
			}
		}
	}
}
