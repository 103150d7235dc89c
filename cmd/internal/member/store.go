package member

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"

	"github.com/fsnotify/fsnotify"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/secretfile"
)

// tokenName is the file of the token in the state folder.
const tokenName = "token"

// StateFolders are those that a node of this machine may have, the client's first.
func StateFolders(getenv func(string) string) []string {
	return slices.Compact([]string{StateFolder(protocol.Client, getenv), StateFolder(protocol.Gateway, getenv)})
}

// TokenPath is the file of the token in a state folder.
func TokenPath(folder string) string { return filepath.Join(folder, tokenName) }

// errNoToken: there is no file of a token.
var errNoToken = errors.New("there is no token")

// readStored reads the token of a state folder. Errors name the file, and errNoToken is one of them.
func readStored(path string) (t protocol.Token, err error) {
	st, err := os.Stat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return t, fmt.Errorf("%w in %s; give one to sluice sign-in", errNoToken, path)
	case err == nil && !st.Mode().IsRegular(): // a pipe would never be read to its end
		return t, fmt.Errorf("%s is no file; remove it and run sluice sign-in", path)
	}
	text, err := readFile(path, true)
	switch {
	case err != nil:
		return t, err
	case strings.TrimSpace(text) == "":
		return t, fmt.Errorf("%s is empty; run sluice sign-in again", path)
	}
	if t, err = protocol.ParseToken(text); err != nil {
		return t, fmt.Errorf("%s: %w, or run sluice sign-in again", path, err)
	}
	return t, nil
}

// CheckStored says what is wrong with the token of a state folder; that there is none is not.
func CheckStored(folder string) error {
	_, _, err := StoredToken(folder)
	return err
}

// StoredToken is the token of a state folder; not ok and no error: there is none.
func StoredToken(folder string) (t protocol.Token, ok bool, err error) {
	t, err = readStored(TokenPath(folder))
	if errors.Is(err, errNoToken) {
		return t, false, nil
	}
	return t, err == nil, err
}

// store writes the token of a state folder, which is made if need be, for the folder's owner alone.
func store(path string, t protocol.Token) error {
	folder := filepath.Dir(path)
	err := secretfile.MakeFolder(folder)
	if err == nil {
		err = secretfile.Write(path, []byte(t.Encode()+"\n"))
	}
	if err == nil {
		err = giveToOwnerOf(folder, path)
	}
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("%w; run this as the user that the node runs as%s, or give another folder with -state", err, byWhom)
	}
	return err
}

const (
	// quiet is for how long a token's file must not have changed before it is read, settled how long it may go on changing.
	quiet, settled = 50 * time.Millisecond, 300 * time.Millisecond
	// pollEvery is how often a file is looked at that the system does not tell about.
	pollEvery = 500 * time.Millisecond
)

// tokenFile tells when the token of a state folder may be another one.
type tokenFile struct {
	path    string
	changed chan struct{} // of one slot
}

func newTokenFile(path string) *tokenFile {
	return &tokenFile{filepath.Clean(path), make(chan struct{}, 1)}
}

func (f *tokenFile) tell() {
	select {
	case f.changed <- struct{}{}:
	default:
	}
}

// run looks after the file until ctx ends. Where the system cannot tell of changes, because the folder is not there (any more) or it has no
// more watches, it looks again and again.
func (f *tokenFile) run(ctx context.Context) {
	ticker := time.NewTicker(pollEvery)
	defer ticker.Stop()
	was := f.stamp()
	for ctx.Err() == nil {
		if watcher, err := fsnotify.NewWatcher(); err == nil {
			if watcher.Add(filepath.Dir(f.path)) == nil {
				if f.stamp() != was {
					f.tell() // before it was watched
				}
				f.watch(ctx, watcher)
				f.tell() // it may have gone with the folder
			}
			watcher.Close()
		}
		was = f.stamp()
		select {
		case <-ctx.Done():
		case <-ticker.C:
		}
	}
}

// stamp differs where the file does.
func (f *tokenFile) stamp() string {
	st, err := os.Stat(f.path)
	if err != nil {
		return ""
	}
	return fmt.Sprint(st.ModTime().UnixNano(), st.Size(), st.Mode())
}

// watch tells of changes until ctx ends or the folder goes.
func (f *tokenFile) watch(ctx context.Context, watcher *fsnotify.Watcher) {
	timer := time.NewTimer(time.Hour)
	timer.Stop()
	defer timer.Stop()
	var first time.Time // the first change that was not told yet
	for {
		select {
		case <-ctx.Done():
			return
		case <-watcher.Errors: // events may have been lost
			timer.Reset(quiet)
		case event, ok := <-watcher.Events:
			switch {
			case !ok || event.Name == filepath.Dir(f.path) && event.Op&(fsnotify.Remove|fsnotify.Rename) != 0:
				return
			case event.Name != f.path:
				continue
			case first.IsZero():
				first = time.Now()
			}
			timer.Reset(min(quiet, max(0, settled-time.Since(first))))
		case <-timer.C:
			first = time.Time{}
			f.tell()
		}
	}
}
