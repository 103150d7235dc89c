package logs

import (
	"errors"
	"fmt"
	"io/fs"
	"log/slog"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"sync/atomic"
	"time"
)

// This file is the folder of log files: one for each start, named by its time, and the link `latest` to the newest. A file that
// has become large is followed by another. All together have folderBytes at most: the oldest go first, but none that a program writes.

const (
	folderBytes = 100 << 20
	// folderFiles bounds their number: a program that is started again and again writes little each time.
	folderFiles = 500
	// partBytes is when a file is followed by the next. Two programs may each be about to fill one.
	partBytes = 8 << 20
	latest    = "latest"
	// nameFormat sorts, and is a name on all systems.
	nameFormat = "2006-01-02T15-04-05.000Z"
)

// logName is what is ours in the folder.
var logName = regexp.MustCompile(`^\d{4}-\d\d-\d\dT\d\d-\d\d-\d\d\.\d{3}Z(-\d+)?\.log$`)

// Place is where a log folder is. The zero value is none.
type Place struct {
	// Base is there already, and Path within it is made if need be; nothing leads out of Base, since another may write there.
	Base, Path string
	// Owner has what is made; nil: whoever runs the program.
	Owner *Owner
}

// Owner is a user by numbers.
type Owner struct{ UID, GID int }

// String is the folder's path.
func (p Place) String() string { return filepath.Join(p.Base, p.Path) }

// None reports whether there is no folder.
func (p Place) None() bool { return p == Place{} }

// folder is an io.Writer of lines, for one spool. Errors are such that trying again may help. Owned by whoever calls Write.
type folder struct {
	place   Place
	now     func() time.Time
	warn    *slog.Logger // not to this folder
	opening func(*os.Root, string) (*os.File, error)

	root *os.Root
	file *os.File // nil: none is open
	name string
	size int64
	told atomic.Pointer[string] // trouble, which warn was told; nil: none. Read by any goroutine.
}

// errFolder: a line was not written. Its cause is text only, because none is for ever.
var errFolder = errors.New("log folder")

// Write appends one line, to another file if there has to be one.
func (f *folder) Write(line []byte) (int, error) {
	n, err := f.write(line)
	switch {
	case err == nil && f.told.Load() != nil:
		f.told.Store(nil)
		f.warn.Info("the log folder takes lines again", "file", filepath.Join(f.place.String(), f.name))
	case err != nil && f.told.Load() == nil:
		text := err.Error()
		f.told.Store(&text)
		f.warn.Warn("the log folder takes no lines; they wait for it, and are counted when there are too many", "folder", f.place.String(), "error", err)
	}
	if err != nil {
		err = fmt.Errorf("%w: %v", errFolder, err)
	}
	return n, err
}

func (f *folder) write(line []byte) (int, error) {
	if f.file != nil && (f.size+int64(len(line)) > partBytes || !f.there()) {
		f.close()
	}
	if f.file == nil {
		if err := f.open(); err != nil {
			f.close()
			return 0, err
		}
	}
	n, err := f.file.Write(line)
	if err == nil {
		f.size += int64(n)
		return n, nil
	}
	// No half of a line stays: the program may end before there is room.
	if n > 0 && f.file.Truncate(f.size) == nil {
		n = 0
	}
	f.size += int64(n)
	if n == 0 { // else the rest has to follow in this file
		f.close()
	}
	return n, err
}

// begin opens the first file, before there are lines.
func (f *folder) begin() error {
	err := f.open()
	if err != nil {
		f.close() // and the first line tells
	}
	return err
}

// there reports whether the file is still the one of its name: somebody may have removed it, or the folder.
func (f *folder) there() bool {
	ours, err := f.file.Stat()
	if err != nil {
		return false
	}
	now, err := os.Lstat(filepath.Join(f.place.String(), f.name))
	return err == nil && os.SameFile(ours, now)
}

// open makes folder, file and link, and room for the file.
func (f *folder) open() (err error) {
	if f.root, err = openPlace(f.place); err != nil {
		return err
	}
	prune(f.root, folderBytes-2*partBytes, folderFiles)
	stamp := f.now().UTC().Format(nameFormat)
	f.name = stamp + ".log"
	for i := 2; ; i++ {
		f.file, err = f.opening(f.root, f.name)
		if !errors.Is(err, fs.ErrExist) || i > 1000 {
			break
		}
		f.name = fmt.Sprintf("%s-%d.log", stamp, i) // somebody else has begun in this very millisecond
	}
	if err != nil {
		return err
	}
	f.size = 0
	lock(f.file) // while it is, nobody removes it; where that does not work, it is one of the newest anyway
	if f.place.Owner != nil {
		if err := f.file.Chown(f.place.Owner.UID, f.place.Owner.GID); err != nil {
			return err
		}
	}
	f.link()
	return nil
}

// create is how files are opened, but for tests.
func create(root *os.Root, name string) (*os.File, error) {
	return root.OpenFile(name, os.O_CREATE|os.O_EXCL|os.O_WRONLY|os.O_APPEND, 0o600)
}

// link points latest at the file, in one step. A system without such links has none.
func (f *folder) link() {
	next := "." + latest + "-" + f.name
	if f.root.Symlink(f.name, next) != nil {
		return
	}
	if o := f.place.Owner; o != nil {
		_ = f.root.Lchown(next, o.UID, o.GID)
	}
	if f.root.Rename(next, latest) != nil {
		_ = f.root.Remove(next)
	}
}

// close leaves file and folder; the next line opens them anew. An error would have come with a write.
func (f *folder) close() {
	if f.file != nil {
		_ = f.file.Close()
		f.file = nil
	}
	if f.root != nil {
		_ = f.root.Close()
		f.root = nil
	}
}

// openPlace opens a folder, after making what is not there of it, for its owner only.
func openPlace(p Place) (*os.Root, error) {
	if p.Path == "" { // it was named by whoever runs the program
		if err := os.MkdirAll(p.Base, 0o700); err != nil {
			return nil, err
		}
		return os.OpenRoot(p.Base)
	}
	base, err := os.OpenRoot(p.Base)
	if err != nil {
		return nil, err
	}
	defer base.Close()
	made := ""
	for part := range strings.SplitSeq(filepath.ToSlash(p.Path), "/") {
		made = filepath.Join(made, part)
		err := base.Mkdir(made, 0o700)
		switch {
		case errors.Is(err, fs.ErrExist):
		case err != nil:
			return nil, err
		case p.Owner != nil:
			if err := base.Lchown(made, p.Owner.UID, p.Owner.GID); err != nil {
				return nil, err
			}
		}
	}
	return base.OpenRoot(p.Path)
}

// files lists the log files of a folder, the oldest first.
func files(root *os.Root) ([]fs.DirEntry, error) {
	entries, err := fs.ReadDir(root.FS(), ".")
	list := slices.DeleteFunc(entries, func(e fs.DirEntry) bool { return !e.Type().IsRegular() || !logName.MatchString(e.Name()) })
	return list, err
}

// prune removes the oldest files until all have no more than limit bytes and there are less than most. What somebody writes stays.
func prune(root *os.Root, limit int64, most int) {
	list, _ := files(root) // none can be removed where they cannot be listed
	sizes, sum := make([]int64, len(list)), int64(0)
	for i, e := range list {
		if info, err := e.Info(); err == nil {
			sizes[i] = info.Size()
			sum += sizes[i]
		}
	}
	left := len(list)
	for i, e := range list {
		if sum <= limit && left < most {
			return
		}
		if inUse(root, e.Name()) {
			continue
		}
		if root.Remove(e.Name()) == nil {
			sum, left = sum-sizes[i], left-1
		}
	}
}
