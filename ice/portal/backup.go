package portal

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"maps"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"time"

	"github.com/nats-io/nats.go"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/secretfile"
	"github.com/sluice-vpn/sluice/ice/signal/broker"
)

// A backup is all that a portal knows, as one JSON document: its certificate with the key, which the tokens of nodes name, and the values
// of its store. It is taken from memory, so it is whole while nodes sign in and change, and also where the disk takes nothing.
type backup struct {
	Format      string                     `json:"format"` // backupFormat
	Created     time.Time                  `json:"created"`
	Sum         string                     `json:"sum"` // SHA-256 of certificate and values, hexadecimal; see sum
	Certificate string                     `json:"certificate"`
	Values      map[string]json.RawMessage `json:"values"`
}

const backupFormat = "sluice portal backup 1"

// MaxBackup bounds a backup, in bytes.
const MaxBackup = 64 << 20

// Restored says what a backup held.
type Restored struct {
	Created time.Time
	Nodes   int
}

// Backup returns a backup. It is as secret as the state folder.
func (p *Portal) Backup() ([]byte, error) {
	certificate, err := os.ReadFile(filepath.Join(p.config.Folder, certificateName))
	if err != nil {
		return nil, err
	}
	b := backup{Format: backupFormat, Created: time.Now().UTC().Truncate(time.Second), Certificate: string(certificate)}
	if b.Values, err = p.state.values(); err != nil {
		return nil, err
	}
	b.Sum = b.sum()
	text, err := json.Marshal(b)
	if err == nil && len(text) > MaxBackup {
		err = fmt.Errorf("the backup has %d bytes, more than the %d that can be restored", len(text), MaxBackup)
	}
	return text, err
}

// values are what the store holds, from memory.
func (s *state) values() (map[string]json.RawMessage, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	values := map[string]json.RawMessage{}
	var err error
	if values[keySettings], err = json.Marshal(s.settings); err != nil {
		return nil, err
	}
	for name, r := range s.nodes {
		if values[prefixNode+name], err = json.Marshal(r); err != nil {
			return nil, err
		}
	}
	return values, nil
}

// sum is over everything that is restored, each part with its length.
func (b *backup) sum() string {
	h := sha256.New()
	part := func(text []byte) { fmt.Fprintf(h, "%d %s\n", len(text), text) }
	part([]byte(b.Certificate))
	for _, key := range slices.Sorted(maps.Keys(b.Values)) {
		part([]byte(key))
		part(b.Values[key])
	}
	return hex.EncodeToString(h.Sum(nil))
}

// IsBackup reports whether text is a backup, whole or not.
func IsBackup(text []byte) bool {
	return bytes.HasPrefix(text, []byte(`{"format":"sluice portal backup `))
}

// readBackup takes a backup apart and checks all of it.
func readBackup(text []byte) (b backup, s *state, err error) {
	if !IsBackup(text) {
		return b, nil, errors.New("this is no backup of a portal; make one with sluice portal backup FILE")
	}
	damaged := errors.New("the backup is damaged or not all there; use another one")
	if err := json.Unmarshal(text, &b); err != nil {
		return b, nil, damaged
	}
	switch {
	case b.Format != backupFormat:
		return b, nil, fmt.Errorf("the backup has the form %.40q, which this version does not know; use the version that made it, or a newer one", b.Format)
	case b.Sum != b.sum():
		return b, nil, damaged
	}
	if _, err := tls.X509KeyPair([]byte(b.Certificate), []byte(b.Certificate)); err != nil {
		return b, nil, damaged
	}
	s = newState(nil, "")
	for _, key := range slices.Sorted(maps.Keys(b.Values)) {
		if err := s.load(key, b.Values[key]); err != nil {
			return b, nil, fmt.Errorf("%w (%q: %w)", damaged, key, err)
		}
	}
	if s.settings.RelaySecret == "" {
		return b, nil, damaged
	}
	return b, s, nil
}

// Restore makes a state folder of a backup. The folder must be empty, or not there yet. Errors say what to do, and unless they name the
// folder as half made it is as it was.
func Restore(ctx context.Context, folder string, text []byte) (Restored, error) {
	b, s, err := readBackup(text)
	if err != nil {
		return Restored{}, err
	}
	switch entries, err := os.ReadDir(folder); {
	case err != nil && !errors.Is(err, os.ErrNotExist):
		return Restored{}, err
	case slices.ContainsFunc(entries, func(e os.DirEntry) bool { return e.Name() != lockName }):
		return Restored{}, fmt.Errorf("%s is not empty; give another folder with -state, or move that one away", folder)
	}
	lock, err := openFolder(folder)
	if err != nil {
		return Restored{}, err
	}
	defer lock.Close()
	// The certificate comes last: a folder without it is not taken for one that is whole.
	err = fill(ctx, folder, b.Values)
	if err == nil {
		err = secretfile.Write(filepath.Join(folder, certificateName), []byte(b.Certificate))
	}
	if err != nil {
		return Restored{}, fmt.Errorf("%s is half made; remove it and try again: %w", folder, err)
	}
	return Restored{Created: b.Created, Nodes: len(s.nodes)}, nil
}

// fill writes the values to a new store.
func fill(ctx context.Context, folder string, values map[string]json.RawMessage) error {
	path := filepath.Join(folder, storeName)
	if err := os.MkdirAll(path, 0o700); err != nil {
		return err
	}
	server, conn, err := offline(path)
	if err != nil {
		return err
	}
	defer server.Close()
	defer conn.Close()
	ctx, cancel := context.WithTimeout(ctx, loadTime)
	defer cancel()
	kv, err := openBucket(ctx, conn, 1)
	if err != nil {
		return err
	}
	s := newState(kv, filepath.Join(folder, markName))
	s.mu.Lock()
	defer s.mu.Unlock()
	for _, key := range slices.Sorted(maps.Keys(values)) {
		if err := s.write(ctx, key, values[key], false); err != nil {
			return err
		}
	}
	s.writeMark(ctx)
	return nil
}

// offline opens a store for this process only. The caller closes the connection, and then the server.
func offline(folder string) (*broker.Broker, *nats.Conn, error) {
	server, err := broker.Start(broker.Config{
		Listen: netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), 0), Store: folder, MaxPayload: protocol.MaxAnswer,
		Authenticate: func(string) (string, []string, error) { return "", nil, errors.New("the portal is not started yet") },
	})
	if err != nil {
		return nil, nil, err
	}
	conn, err := server.Connect()
	if err != nil {
		return nil, nil, errors.Join(err, server.Close())
	}
	return server, conn, nil
}
