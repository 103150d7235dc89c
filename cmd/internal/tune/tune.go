// Package tune changes what of this machine's settings was measured to help a node, remembers what was there before, and puts it back.
// Only what PERF.md has a measurement of is changed. Settings that the kernel lacks are left out.
package tune

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strconv"
	"strings"
)

// Setting is one number of the kernel's that is raised.
type Setting struct {
	Name string `json:"name"` // as sysctl(8) has it
	Want int64  `json:"want"` // it is left alone where it is as high already
	// Now is its value, Missing: the kernel has none. Before is what -revert puts back, if Changed.
	Now     int64 `json:"now"`
	Missing bool  `json:"missing"`
	Changed bool  `json:"changed"`
	Before  int64 `json:"before,omitempty"`
}

// Lacks tells whether the setting is lower than it should be.
func (s *Setting) Lacks() bool { return !s.Missing && s.Now < s.Want }

// wanted are the settings. net.core.rmem_max: a node that may not pass it (no CAP_NET_ADMIN in the first user namespace) has 208 KiB by default;
// with the 4 MiB that it asks for TCP sent no segments again instead of 44,000 to 57,000 in 3 s (PERF.md, part 5).
var wanted = []Setting{{Name: "net.core.rmem_max", Want: 4 << 20}}

// Tuning reads and writes settings below Root, and remembers in Memory. Its methods belong to one goroutine.
type Tuning struct {
	Root   string // "": /proc/sys
	Memory string // a file
}

// before is what Memory holds, by the setting's name.
type before map[string]int64

// Show lists the settings.
func (t *Tuning) Show() ([]Setting, error) {
	was, err := t.recall()
	if err != nil {
		return nil, err
	}
	list := slices.Clone(wanted)
	for i := range list {
		s := &list[i]
		s.Before, s.Changed = was[s.Name]
		s.Now, err = t.read(s.Name)
		if s.Missing = errors.Is(err, fs.ErrNotExist); err != nil && !s.Missing {
			return nil, err
		}
	}
	return list, nil
}

// Apply raises what lacks, after it has noted what was there. What was noted by an earlier Apply stays so.
func (t *Tuning) Apply() error {
	list, err := t.Show()
	if err != nil {
		return err
	}
	was, err := t.recall()
	if err != nil {
		return err
	}
	for _, s := range list {
		if !s.Lacks() {
			continue
		}
		if !s.Changed {
			was[s.Name] = s.Now
		}
		if err := t.remember(was); err != nil { // first: what is not noted cannot be put back
			return err
		}
		if err := t.write(s.Name, s.Want); err != nil {
			if !s.Changed { // nothing was
				delete(was, s.Name)
				err = errors.Join(err, t.remember(was))
			}
			return err
		}
	}
	return nil
}

// Revert puts back what Apply has changed, and forgets it. What somebody else has changed since is left as it is.
func (t *Tuning) Revert() error {
	was, err := t.recall()
	if err != nil {
		return err
	}
	for _, s := range wanted {
		value, changed := was[s.Name]
		if !changed {
			continue
		}
		switch now, err := t.read(s.Name); {
		case errors.Is(err, fs.ErrNotExist), err == nil && now != s.Want:
		case err != nil:
			return err
		default:
			if err := t.write(s.Name, value); err != nil {
				return err
			}
		}
		delete(was, s.Name)
		if err := t.remember(was); err != nil {
			return err
		}
	}
	return nil
}

func (t *Tuning) path(name string) string {
	root := t.Root
	if root == "" {
		root = "/proc/sys"
	}
	return filepath.Join(root, strings.ReplaceAll(name, ".", "/"))
}

func (t *Tuning) read(name string) (int64, error) {
	text, err := os.ReadFile(t.path(name))
	if err != nil {
		return 0, explain(name, err)
	}
	n, err := strconv.ParseInt(strings.TrimSpace(string(text)), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("%s is no number: %.40q", name, text)
	}
	return n, nil
}

func (t *Tuning) write(name string, value int64) error {
	f, err := os.OpenFile(t.path(name), os.O_WRONLY|os.O_TRUNC, 0) // never made
	if err != nil {
		return explain(name, err)
	}
	_, err = f.WriteString(strconv.FormatInt(value, 10))
	return explain(name, errors.Join(err, f.Close()))
}

func explain(name string, err error) error {
	switch {
	case err == nil:
		return nil
	case errors.Is(err, fs.ErrPermission):
		return fmt.Errorf("%s: not permitted; run this as root of the machine, outside of containers: %w", name, err)
	}
	return fmt.Errorf("%s: %w", name, err)
}

// recall reads what was there before; nothing if there is no file.
func (t *Tuning) recall() (before, error) {
	was := before{}
	text, err := os.ReadFile(t.Memory)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return was, nil
	case err != nil:
		return nil, fmt.Errorf("what was there before: %w", err)
	}
	if err := json.Unmarshal(text, &was); err != nil {
		return nil, fmt.Errorf("%s is damaged, so what was there before is not known; remove it to go on: %w", t.Memory, err)
	}
	return was, nil
}

// remember writes it in one step, or removes the file if there is nothing to put back.
func (t *Tuning) remember(was before) error {
	if len(was) == 0 {
		if err := os.Remove(t.Memory); err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
		return nil
	}
	text, err := json.Marshal(was)
	if err != nil {
		return err
	}
	if err := os.MkdirAll(filepath.Dir(t.Memory), 0o755); err != nil {
		return err
	}
	next := t.Memory + ".new"
	if err := os.WriteFile(next, text, 0o644); err != nil {
		return err
	}
	return os.Rename(next, t.Memory)
}
