package portal

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"time"
)

const (
	// guardEvery is how often the disk is tried; guardAgain the same while something is wrong.
	guardEvery, guardAgain = 10 * time.Second, time.Second
	// reachEvery is how often a member of a cluster looks whether it hears of all changes.
	reachEvery = 2 * time.Second
	// mendTime is how long opening the store anew and comparing it may take. The state is locked meanwhile.
	mendTime = 20 * time.Second
)

// guard looks whether what changes can be stored. A store that has met a full disk, a disk that is read-only, or a folder that is
// gone does not come back by itself, so it is opened anew as soon as the disk takes data.
func (p *Portal) guard(ctx context.Context) {
	for {
		p.note(p.tend(ctx))
		pause := guardEvery
		if p.config.Cluster != nil {
			pause = reachEvery
		}
		if p.Trouble() != nil {
			pause = guardAgain
		}
		select {
		case <-ctx.Done():
			return
		case <-p.state.broke:
		case <-time.After(pause):
		}
	}
}

// tend tries the disk, and mends the store if it has failed.
func (p *Portal) tend(ctx context.Context) error {
	storeGone, err := p.inspect()
	if p.config.Cluster != nil {
		return errors.Join(err, p.state.reach(ctx))
	}
	if err != nil || !storeGone && p.state.failing() == nil {
		return err
	}
	ctx, cancel := context.WithTimeout(ctx, mendTime)
	defer cancel()
	return p.state.mend(ctx, func() (store, error) {
		if err := p.broker.ReopenStore(); err != nil {
			return nil, err
		}
		return p.bucket(ctx)
	})
}

// inspect looks whether the folder is the one that was opened, and takes data.
func (p *Portal) inspect() (storeGone bool, err error) {
	folder := p.config.Folder
	if now, err := os.Stat(folder); err != nil || !os.SameFile(now, p.opened) {
		return false, fmt.Errorf("the state folder %s was removed or replaced; put it back, or restart the portal", folder)
	}
	if _, err := os.Stat(filepath.Join(folder, certificateName)); err != nil {
		return false, fmt.Errorf("%w; put it back: without it no token is good after a restart", err)
	}
	probe := filepath.Join(folder, probeName)
	defer os.Remove(probe)
	if err := os.WriteFile(probe, make([]byte, probeSize), 0o600); err != nil {
		return false, fmt.Errorf("the state folder takes no data: %w", err)
	}
	_, err = os.Stat(filepath.Join(p.storeFolder(), "jetstream"))
	return errors.Is(err, os.ErrNotExist), nil
}

const (
	probeName = ".probe"
	probeSize = 64 << 10 // more than the store needs for a change
)

// note keeps what is wrong, and tells it when that has changed.
func (p *Portal) note(trouble error) {
	switch was := p.Trouble(); {
	case trouble == nil && was != nil:
		p.log.Info("the state can be written again")
	case trouble != nil && (was == nil || was.Error() != trouble.Error()):
		p.log.Error("the state cannot be written; nodes that change nothing are served", "reason", trouble)
	}
	p.trouble.Store(&trouble)
}

// Trouble is why changes cannot be stored now, nil if they can.
func (p *Portal) Trouble() error {
	if t := p.trouble.Load(); t != nil && *t != nil {
		return *t
	}
	return p.state.failing()
}

// failing is the error of the latest write, nil if it was good.
func (s *state) failing() error {
	if f := s.failure.Load(); f != nil {
		return *f
	}
	return nil
}

// mend opens the store anew and writes what it lacks: what nodes were told is true, and a write that failed may have happened.
func (s *state) mend(ctx context.Context, open func() (store, error)) error {
	s.mu.Lock()
	defer s.mu.Unlock()
	kv, err := open()
	if err == nil {
		s.kv = kv
		err = s.restore(ctx)
	}
	if err != nil {
		err = s.notWritten(err)
		s.failure.Store(&err)
		return err
	}
	s.failure.Store(nil)
	s.writeMark(ctx)
	return nil
}

// restore makes the store what the memory is. The lock is held.
func (s *state) restore(ctx context.Context) error {
	stored := map[string]string{}
	last, err := s.kv.read(ctx, func(e entry) error { stored[e.key] = string(e.value); return nil })
	if err != nil {
		return err
	}
	write := func(key string, value []byte) error {
		if last, err = s.kv.write(ctx, key, value, last, false); err == nil {
			s.wrote(key, value, last)
		}
		return err
	}
	want := map[string]any{keySettings: s.settings}
	for name, r := range s.nodes {
		want[prefixNode+name] = r
	}
	for key, value := range want {
		text, err := json.Marshal(value)
		if err != nil {
			return err
		}
		if stored[key] != string(text) {
			if err := write(key, text); err != nil {
				return err
			}
		}
		delete(stored, key)
	}
	for key := range stored {
		if err := write(key, nil); err != nil {
			return err
		}
	}
	// Whatever is the same already says nothing of whether the store takes more.
	text, err := json.Marshal(s.settings)
	if err == nil {
		err = write(keySettings, text)
	}
	s.revision = last
	return err
}
