//go:build unix

package logs

import (
	"bytes"
	"fmt"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"sync"
	"syscall"
	"testing"
	"time"
)

// kept is a log whose standard error is a file.
type kept struct {
	*Log
	t      *testing.T
	place  Place
	stderr *os.File
}

func keep(t *testing.T, place Place, change func(*folder)) *kept {
	t.Helper()
	f, err := os.Create(filepath.Join(t.TempDir(), "stderr"))
	if err != nil {
		t.Fatal(err)
	}
	k := &kept{&Log{Level: new(slog.LevelVar)}, t, place, f}
	standard := New(f, k.Level)
	k.Logger = standard
	d := &folder{place: place, now: time.Now, warn: standard, opening: create}
	if change != nil {
		change(d)
	}
	k.keep(standard, d)
	t.Cleanup(func() {
		Flush()
		spools.mu.Lock()
		lines := spools.byFile[d]
		delete(spools.byFile, d)
		delete(spools.byFile, f)
		spools.mu.Unlock()
		lines.mu.Lock()
		waits := lines.idle != nil
		lines.mu.Unlock()
		if !waits { // else the folder takes no lines to the end, and is its spool's
			d.close()
		}
		f.Close()
	})
	return k
}

// events are those of a file, but for a line that is being written: a read may see half of it.
func events(t *testing.T, path string) (list []string) {
	t.Helper()
	text, err := os.ReadFile(path)
	if err != nil {
		t.Fatal(err)
	}
	for _, o := range decode(t, text[:bytes.LastIndexByte(text, '\n')+1]) {
		list = append(list, o["event"].(string))
	}
	return list
}

// inFolder are the events of all files of the log, the oldest first.
func (k *kept) inFolder() (list []string) {
	k.t.Helper()
	for _, name := range k.names() {
		list = append(list, events(k.t, filepath.Join(k.place.String(), name))...)
	}
	return list
}

func (k *kept) names() (list []string) {
	root, err := os.OpenRoot(k.place.String())
	if err != nil {
		return nil
	}
	defer root.Close()
	entries, err := files(root)
	if err != nil {
		k.t.Fatal(err)
	}
	for _, e := range entries {
		list = append(list, e.Name())
	}
	return list
}

func (k *kept) await(what string, f func() bool) {
	k.t.Helper()
	for end := time.Now().Add(20 * time.Second); !f(); time.Sleep(5 * time.Millisecond) {
		if time.Now().After(end) {
			k.t.Fatalf("not within 20 s: %s; in the folder %q, at standard error %q", what, k.inFolder(), events(k.t, k.stderr.Name()))
		}
	}
}

func count(list []string, part string) (n int) {
	for _, s := range list {
		if strings.Contains(s, part) {
			n++
		}
	}
	return n
}

// TestDefaultPlace: where the logs are, for each who may run a client.
func TestDefaultPlace(t *testing.T) {
	for _, tt := range []struct {
		name string
		os   string
		uid  int
		env  map[string]string
		want string
		by   *Owner
	}{
		{"a user", "linux", 1000, map[string]string{"HOME": "/users/ann"}, "/users/ann/.cache/sluice/data/logs", nil},
		{"a user with a cache folder", "linux", 1000, map[string]string{"HOME": "/users/ann", "XDG_CACHE_HOME": "/scratch/ann"}, "/scratch/ann/sluice/data/logs", nil},
		{"a cache folder that is no path", "linux", 1000, map[string]string{"HOME": "/users/ann", "XDG_CACHE_HOME": "cache"}, "/users/ann/.cache/sluice/data/logs", nil},
		{"root, a service", "linux", 0, map[string]string{"HOME": "/superuser", "XDG_CACHE_HOME": "/superuser/c"}, "/var/log/sluice", nil},
		{"root by sudo", "linux", 0, map[string]string{"HOME": "/superuser", "SUDO_UID": "1000", "SUDO_GID": "100"}, "/users/ann/.cache/sluice/data/logs", &Owner{1000, 100}},
		{"root by sudo, which kept the variable", "linux", 0, map[string]string{"XDG_CACHE_HOME": "/scratch/ann", "SUDO_UID": "1000", "SUDO_GID": "100"}, "/scratch/ann/sluice/data/logs", &Owner{1000, 100}},
		{"root by sudo, with another's folder", "linux", 0, map[string]string{"XDG_CACHE_HOME": "/etc", "SUDO_UID": "1000", "SUDO_GID": "100"}, "/users/ann/.cache/sluice/data/logs", &Owner{1000, 100}},
		{"root by root's sudo", "linux", 0, map[string]string{"SUDO_UID": "0", "SUDO_GID": "0"}, "/var/log/sluice", nil},
		{"root by sudo of who is not known", "linux", 0, map[string]string{"SUDO_UID": "7", "SUDO_GID": "7"}, "/var/log/sluice", nil},
		{"a service with a home", "linux", 61000, map[string]string{"HOME": "/nonexistent", "LOGS_DIRECTORY": "/var/log/x"}, "/var/log/x", nil},
		{"a service that has no home", "linux", 61000, map[string]string{"LOGS_DIRECTORY": "/var/log/x"}, "/var/log/x", nil},
		{"nothing is known", "linux", 61000, nil, "", nil},
		{"Windows", "windows", -1, map[string]string{"LOCALAPPDATA": "/users/ann/local", "HOME": "/x"}, "/users/ann/local/sluice/data/logs", nil},
	} {
		w := Whose{tt.os, tt.uid, func(name string) string { return tt.env[name] }, func(uid int) string {
			return map[int]string{1000: "/users/ann"}[uid]
		}, func(path string, uid int) bool { return path == "/scratch/ann" && uid == 1000 }}
		got := w.DefaultPlace()
		if got.String() != tt.want || (got.Owner == nil) != (tt.by == nil) || tt.by != nil && *got.Owner != *tt.by {
			t.Errorf("%s: got %q of %v, want %q of %v", tt.name, got, got.Owner, tt.want, tt.by)
		}
		if none := w.PlaceOf(NoFolder); !none.None() {
			t.Errorf("%s: none is %q", tt.name, none)
		}
		if there := w.PlaceOf("/a/b"); there.String() != "/a/b" || there.Owner != nil {
			t.Errorf("%s: -log-dir /a/b is %q", tt.name, there)
		}
	}
}

// TestFolder: one file a start, named by its time, for its owner only; its first line says where it is.
func TestFolder(t *testing.T) {
	home := t.TempDir()
	place := Place{Base: home, Path: ".cache/sluice/data/logs"}
	at := time.Date(2026, 11, 29, 18, 7, 28, 123e6, time.UTC)
	sameTime := func(d *folder) { d.now = func() time.Time { return at } }
	first, second := keep(t, place, sameTime), keep(t, place, sameTime)
	first.Info("of the first")
	second.Info("of the second")
	Flush()
	dir := place.String()
	want := []string{"2026-11-29T18-07-28.123Z-2.log", "2026-11-29T18-07-28.123Z.log"}
	if got := first.names(); fmt.Sprint(got) != fmt.Sprint(want) {
		t.Fatalf("got the files %q, want %q", got, want)
	}
	for name, want := range map[string][]string{want[1]: {"started log", "of the first"}, want[0]: {"started log", "of the second"}} {
		path := filepath.Join(dir, name)
		if got := events(t, path); fmt.Sprint(got) != fmt.Sprint(want) {
			t.Errorf("%s: got %q, want %q", name, got, want)
		}
		text, _ := os.ReadFile(path)
		if o := decode(t, text)[0]; o["message"] != "started log "+path || o["file"] != path {
			t.Errorf("the first line is %v, want the path %s", o, path)
		}
	}
	if got := events(t, second.stderr.Name()); fmt.Sprint(got) != "[started log of the second]" {
		t.Errorf("at standard error: %q", got)
	}
	if to, err := os.Readlink(filepath.Join(dir, latest)); to != want[0] || err != nil {
		t.Errorf("latest leads to %q, %v, want %q", to, err, want[0])
	}
	for path, want := range map[string]os.FileMode{
		dir: 0o700, filepath.Dir(dir): 0o700, filepath.Join(home, ".cache"): 0o700, filepath.Join(dir, want[0]): 0o600,
	} {
		if info, err := os.Stat(path); err != nil || info.Mode().Perm() != want {
			t.Errorf("%s: mode %v, %v, want %v", path, info.Mode(), err, want)
		}
	}
	second.Level.Set(slog.LevelDebug)
	second.Debug("now it is told")
	second.File().Info("only there")
	Flush()
	if got := events(t, filepath.Join(dir, want[0])); fmt.Sprint(got[2:]) != "[now it is told only there]" {
		t.Errorf("got %q", got)
	}
	if got := count(events(t, second.stderr.Name()), "only there"); got != 0 {
		t.Error("a line for the folder is at standard error")
	}
	none := Open(first.stderr, Place{}, slog.LevelInfo)
	none.File().Info("nowhere")
	if none.Folder() != "" || none.Lost() != 0 || none.Trouble() != "" {
		t.Errorf("without a folder: %q, %d, %q", none.Folder(), none.Lost(), none.Trouble())
	}
}

// TestFolderTrouble: whatever keeps the folder from taking lines is one warning at standard error, and when it is over they are there,
// with a word about what is missing. Who logs never waits.
func TestFolderTrouble(t *testing.T) {
	for _, tt := range []struct {
		name       string
		begin, end func(t *testing.T, k *kept)
		prepare    func(full *bool) func(*folder)
	}{
		{"cannot be written", func(t *testing.T, k *kept) {
			if err := os.RemoveAll(k.place.Base); err != nil {
				t.Fatal(err)
			}
			if err := os.WriteFile(k.place.Base, nil, 0o600); err != nil { // a file where the folder should be, which stops root too
				t.Fatal(err)
			}
		}, func(t *testing.T, k *kept) {
			if err := os.Remove(k.place.Base); err != nil {
				t.Fatal(err)
			}
			if err := os.Mkdir(k.place.Base, 0o700); err != nil {
				t.Fatal(err)
			}
		}, nil},
		{"full disk", nil, nil, func(full *bool) func(*folder) {
			return func(d *folder) {
				d.opening = func(root *os.Root, name string) (*os.File, error) {
					if *full {
						return os.OpenFile("/dev/full", os.O_WRONLY, 0)
					}
					return create(root, name)
				}
			}
		}},
	} {
		t.Run(tt.name, func(t *testing.T) {
			var mu sync.Mutex
			full := false
			change := func(d *folder) {
				if tt.prepare != nil {
					tt.prepare(&full)(d)
					opening := d.opening
					d.opening = func(root *os.Root, name string) (*os.File, error) {
						mu.Lock()
						defer mu.Unlock()
						return opening(root, name)
					}
				}
			}
			base := filepath.Join(t.TempDir(), "base")
			if err := os.Mkdir(base, 0o700); err != nil {
				t.Fatal(err)
			}
			k := keep(t, Place{Base: base, Path: "data/logs"}, change)
			k.Info("before")
			k.await("it is written", func() bool { return count(k.inFolder(), "before") == 1 })
			set := func(to bool) {
				mu.Lock()
				full = to
				mu.Unlock()
				if to { // the file that is open is not on this disk
					_ = os.RemoveAll(filepath.Join(base, "data"))
				}
			}
			if tt.begin != nil {
				tt.begin(t, k)
			} else {
				set(true)
			}
			begin := time.Now()
			for i := range 5000 { // more than what waits
				k.Info("meanwhile", "i", i, "filler", strings.Repeat("x", 100))
			}
			if took := time.Since(begin); took > 30*time.Second {
				t.Errorf("5000 lines took %v", took)
			}
			k.await("it is said at standard error", func() bool { return count(events(t, k.stderr.Name()), "takes no lines") == 1 })
			if k.Trouble() == "" || k.Lost() == 0 {
				t.Errorf("got the trouble %q and %d lost lines", k.Trouble(), k.Lost())
			}
			time.Sleep(2 * spoolRetry)
			if n := count(events(t, k.stderr.Name()), "takes no lines"); n != 1 {
				t.Errorf("it is said %d times, want once", n)
			}
			if tt.end != nil {
				tt.end(t, k)
			} else {
				set(false)
			}
			k.await("it takes lines again", func() bool { return k.Trouble() == "" })
			k.Info("after")
			k.await("lines come back", func() bool { return count(k.inFolder(), "after") == 1 })
			list := k.inFolder()
			if count(list, "log lines are missing") == 0 || count(list, "meanwhile")+int(k.Lost()) != 5000 {
				t.Errorf("%d lines are there and %d are counted, want 5000 together, and a word about it", count(list, "meanwhile"), k.Lost())
			}
			if n := count(events(t, k.stderr.Name()), "takes lines again"); n != 1 {
				t.Errorf("that it is over is said %d times, want once", n)
			}
		})
	}
}

// TestFolderDeleted: a folder, or a file, that was removed while the program runs is made again with the next line; nobody is warned.
func TestFolderDeleted(t *testing.T) {
	k := keep(t, Place{Base: t.TempDir(), Path: "data/logs"}, nil)
	for i, what := range []string{filepath.Join(k.place.String(), k.names()[0]), k.place.String(), filepath.Dir(k.place.String())} {
		if err := os.RemoveAll(what); err != nil {
			t.Fatal(err)
		}
		k.Info("again", "i", i)
		k.await("it is there again", func() bool { return count(k.inFolder(), "again") >= 1 })
	}
	if got := events(t, k.stderr.Name()); count(got, "log folder") != 0 || k.Lost() != 0 {
		t.Errorf("at standard error %q, %d lines are lost", got, k.Lost())
	}
}

// TestFolderLimit: a file that is large is followed by another, and the oldest go, but none that somebody writes.
func TestFolderLimit(t *testing.T) {
	dir := t.TempDir()
	old := func(day int, bytes int64) string {
		name := filepath.Join(dir, fmt.Sprintf("2026-01-%02dT00-00-00.000Z.log", day))
		if err := os.WriteFile(name, nil, 0o600); err != nil {
			t.Fatal(err)
		}
		if err := os.Truncate(name, bytes); err != nil {
			t.Fatal(err)
		}
		return name
	}
	used := old(1, 30<<20)
	f, err := os.OpenFile(used, os.O_WRONLY|os.O_APPEND, 0)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	lock(f)
	gone, stays, others := old(2, 40<<20), old(3, 40<<20), filepath.Join(dir, "others.log")
	if err := os.WriteFile(others, make([]byte, 10), 0o600); err != nil {
		t.Fatal(err)
	}
	k := keep(t, Place{Base: dir}, nil)
	for path, want := range map[string]bool{used: true, gone: false, stays: true, others: true} {
		if _, err := os.Stat(path); (err == nil) != want {
			t.Errorf("%s: %v, want it there: %v", path, err, want)
		}
	}
	n := len(k.names())
	line := strings.Repeat("x", 40<<10)
	for i := range 250 {
		k.File().Info("large", "i", i, "text", line)
		Flush()
	}
	if got := len(k.names()); got != n+1 {
		t.Errorf("10 MB made %d files more, want 1", got-n)
	}
	if got := count(k.inFolder(), "large"); got != 250 {
		t.Errorf("%d lines are there, want 250", got)
	}
	for i := range folderFiles + 20 {
		if err := os.WriteFile(filepath.Join(dir, fmt.Sprintf("2026-02-01T00-00-00.%03dZ.log", i)), nil, 0o600); err != nil {
			t.Fatal(err)
		}
	}
	second := keep(t, Place{Base: dir}, nil)
	if got := len(second.names()); got != folderFiles {
		t.Errorf("got %d files, want %d", got, folderFiles)
	}
	if count(k.inFolder(), "large") == 0 {
		t.Error("what the first program writes was removed by the second")
	}
}

// TestFolderLeadsNowhere: under sudo, what is made is in the folder of who has called it, whatever links are there.
func TestFolderLeadsNowhere(t *testing.T) {
	home, outside := t.TempDir(), t.TempDir()
	if err := os.Symlink(outside, filepath.Join(home, ".cache")); err != nil {
		t.Fatal(err)
	}
	k := keep(t, Place{Base: home, Path: ".cache/sluice/data/logs", Owner: &Owner{os.Getuid(), os.Getgid()}}, nil)
	k.await("it is told", func() bool { return k.Trouble() != "" })
	if entries, err := os.ReadDir(outside); err != nil || len(entries) > 0 {
		t.Errorf("outside of the home folder there are %v, %v", entries, err)
	}
}

// TestFolderOwner: what root makes for a user is the user's.
func TestFolderOwner(t *testing.T) {
	if os.Getuid() != 0 {
		t.Skip("SKIPPED: this lab has one user only")
	}
	home := t.TempDir()
	if os.Lchown(home, 4711, 4712) != nil {
		t.Skip("SKIPPED: this lab has one user only")
	}
	k := keep(t, Place{Base: home, Path: ".cache/logs", Owner: &Owner{4711, 4712}}, nil)
	Flush()
	for _, path := range []string{".cache", ".cache/logs", ".cache/logs/" + k.names()[0], ".cache/logs/latest"} {
		info, err := os.Lstat(filepath.Join(home, path))
		if err != nil {
			t.Fatal(err)
		}
		if st := info.Sys().(*syscall.Stat_t); st.Uid != 4711 || st.Gid != 4712 {
			t.Errorf("%s is of %d:%d, want 4711:4712", path, st.Uid, st.Gid)
		}
	}
}

// TestTwoPrograms: they write into one folder at once, each its own file, whole.
func TestTwoPrograms(t *testing.T) {
	dir := t.TempDir()
	a, b := keep(t, Place{Base: dir}, nil), keep(t, Place{Base: dir}, nil)
	var wg sync.WaitGroup
	for i, k := range []*kept{a, b} {
		wg.Go(func() {
			for n := range 500 {
				k.Info("line", "of", i, "n", n)
			}
		})
	}
	wg.Wait()
	Flush()
	var out bytes.Buffer
	r := &Reader{Folders: []string{dir}, Level: slog.LevelInfo}
	if err := r.Print(t.Context(), &out, false); err != nil {
		t.Fatal(err)
	}
	lines := strings.Split(strings.TrimSuffix(out.String(), "\n"), "\n")
	if len(lines) != 1002 {
		t.Errorf("%d lines, want 1002", len(lines))
	}
	for i := 1; i < len(lines); i++ {
		if lines[i][:30] < lines[i-1][:30] {
			t.Fatalf("%q is after %q", lines[i], lines[i-1])
		}
	}
}
