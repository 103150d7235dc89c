package member

import (
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"sync"
	"sync/atomic"
	"time"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/secretfile"
)

const (
	// maxPinsFile is more than the edge's bound takes.
	maxPinsFile = 4 << 20
	// pinsAgain is when pins that could not be written are tried again.
	pinsAgain = time.Minute
)

// defaultPins is the file of a node's pins in its state folder.
func defaultPins(folder, name string) string { return filepath.Join(folder, "pins-"+name+".json") }

// pinsFile keeps on disk which identities a node has met. Where it cannot, the node goes on, and says so. Its methods may be called
// by any goroutine.
type pinsFile struct {
	// frozen
	path   string
	portal string // whose nodes they are: the fingerprint of its certificate, hexadecimal
	log    *slog.Logger
	broken bool // what is there cannot be read, and is not overwritten

	next    atomic.Pointer[map[string]protocol.Identity] // to be written, frozen; nil: nothing
	problem atomic.Pointer[string]                       // why not all is on disk, nil if it is

	saving sync.WaitGroup // what save has begun
	mu     sync.Mutex     // held while the file is written
}

// pinsJSON is what the file holds.
type pinsJSON struct {
	Portal string                       `json:"portal"`
	Peers  map[string]protocol.Identity `json:"peers"`
}

// openPins reads the file; where there is none, or one of another portal, whose nodes are others, there are no pins yet.
func openPins(path string, portal [32]byte, log *slog.Logger) (*pinsFile, map[string]protocol.Identity) {
	f := &pinsFile{path: path, portal: hex.EncodeToString(portal[:]), log: log}
	pins, err := f.read()
	if err != nil {
		f.broken = true
		f.note(fmt.Sprintf("the identities of peers in %s cannot be read (%v), so peers are known only until this node ends;"+
			" restore the file, or remove it to meet them anew, and start again", path, err))
	}
	return f, pins
}

func (f *pinsFile) read() (map[string]protocol.Identity, error) {
	st, err := os.Stat(f.path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil, nil
	case err != nil:
		return nil, err
	case !st.Mode().IsRegular():
		return nil, errors.New("it is no file")
	case st.Size() > maxPinsFile:
		return nil, errors.New("it is too long")
	}
	file, err := os.Open(f.path)
	if err != nil {
		return nil, err
	}
	defer file.Close()
	switch others, remedy, err := secretfile.OthersWrite(file); {
	case err != nil:
		return nil, err
	case others:
		return nil, fmt.Errorf("others may change it: run %s", remedy)
	}
	text, err := io.ReadAll(io.LimitReader(file, maxPinsFile))
	if err != nil {
		return nil, err
	}
	var j pinsJSON
	if err := json.Unmarshal(text, &j); err != nil || j.Portal == "" {
		return nil, errors.New("it is damaged")
	}
	if j.Portal != f.portal {
		f.log.Info("the pins are of another portal, so peers are met anew", "file", f.path)
		return nil, nil
	}
	return j.Peers, nil
}

// save has the pins written soon; it does not block. They are frozen.
func (f *pinsFile) save(pins map[string]protocol.Identity) {
	f.next.Store(&pins)
	f.saving.Go(f.write)
}

// write returns when the latest pins are on disk, or cannot be.
func (f *pinsFile) write() {
	f.mu.Lock()
	defer f.mu.Unlock()
	pins := f.next.Swap(nil)
	if pins == nil || f.broken {
		return
	}
	text, err := json.MarshalIndent(pinsJSON{f.portal, *pins}, "", "\t")
	if err == nil {
		err = secretfile.MakeFolder(filepath.Dir(f.path))
	}
	if err == nil {
		err = secretfile.Write(f.path, append(text, '\n'))
	}
	if err == nil {
		f.note("")
		return
	}
	f.note(fmt.Sprintf("peers are known only until this node ends: %v; make room, or give a file that can be written with -pins", err))
	if f.next.CompareAndSwap(nil, pins) {
		time.AfterFunc(pinsAgain, f.write)
	}
}

// note keeps what is wrong, "" if nothing is, and logs it when that has changed.
func (f *pinsFile) note(problem string) {
	was := f.problem.Swap(&problem)
	switch {
	case was != nil && *was == problem:
	case problem != "":
		f.log.Warn(problem)
	case was != nil:
		f.log.Info("the identities of peers are on disk", "file", f.path)
	}
}

// notes are what the status tells.
func (f *pinsFile) notes() []string {
	if p := f.problem.Load(); p != nil && *p != "" {
		return []string{*p}
	}
	return nil
}
