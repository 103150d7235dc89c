package names

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"maps"
	"os"
	"path/filepath"
	"slices"
)

// HostsFile is where resolvers look before they ask anybody.
const HostsFile = "/etc/hosts"

// mostHosts is the most bytes of a hosts file that is touched.
const mostHosts = 4 << 20

// hosts is a block of lines in a hosts file, kept for one interface; all other lines are somebody else's.
type hosts struct {
	path       string
	begin, end string // lines around the block
}

func newHosts(path, iface string) hosts {
	return hosts{path: path, begin: "# sluice " + iface + " begin: kept by the program, and removed at its end", end: "# sluice " + iface + " end"}
}

// block is what the zone looks like in the file.
func (h hosts) block(z Zone) []byte {
	var b bytes.Buffer
	fmt.Fprintln(&b, h.begin)
	for _, name := range slices.Sorted(maps.Keys(z)) {
		if _, _, known := z.Lookup(name + "." + Domain); !known {
			continue
		}
		for _, a := range z[name] {
			fmt.Fprintf(&b, "%s %s.%s\n", a, name, Domain)
		}
	}
	fmt.Fprintln(&b, h.end)
	return b.Bytes()
}

// edit puts the block where it was, or at the end; nil removes it. Where only one of its two lines is left, or they are there twice, nobody can
// say what is whose, and it is an error.
func (h hosts) edit(text, block []byte) ([]byte, error) {
	first, last, count := -1, -1, 0
	at := 0
	for line := range bytes.Lines(text) {
		switch string(bytes.TrimRight(line, "\r\n")) {
		case h.begin:
			first = at
			count++
		case h.end:
			last = at + len(line)
			count++
		}
		at += len(line)
	}
	switch {
	case count == 0 && block == nil:
		return text, nil
	case count == 0:
		if len(text) > 0 && text[len(text)-1] != '\n' {
			block = append([]byte("\n"), block...)
		}
		return slices.Concat(text, block), nil
	case count != 2 || first < 0 || last <= first:
		return nil, fmt.Errorf("%s: the lines %q and %q are not a pair; remove them and what is between", h.path, h.begin, h.end)
	}
	return slices.Concat(text[:first], block, text[last:]), nil
}

// set has the file say what the zone does; a nil one removes the block. A file that says so is left alone.
func (h hosts) set(z Zone) error {
	var block []byte
	if z != nil {
		block = h.block(z)
	}
	path, err := filepath.EvalSymlinks(h.path)
	if err != nil {
		return err
	}
	text, info, err := readHosts(path)
	if err != nil {
		return err
	}
	changed, err := h.edit(text, block)
	if err != nil || bytes.Equal(changed, text) {
		return err
	}
	if replace(path, text, changed, info) == nil {
		return nil
	}
	// A container's hosts file is a mount, which nothing can be renamed to, and not every folder can be written.
	return overwrite(path, text, changed)
}

func readHosts(path string) ([]byte, fs.FileInfo, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, nil, err
	}
	defer f.Close()
	info, err := f.Stat()
	if err != nil {
		return nil, nil, err
	}
	if !info.Mode().IsRegular() {
		return nil, nil, fmt.Errorf("%s is no ordinary file", path)
	}
	text, err := io.ReadAll(io.LimitReader(f, mostHosts+1))
	if err == nil && len(text) > mostHosts {
		err = fmt.Errorf("%s has more than %d bytes, and is not touched", path, mostHosts)
	}
	return text, info, err
}

// errChanged: somebody else writes the file at this moment.
var errChanged = errors.New("the file has changed meanwhile")

// replace puts a new file in the place of the old one, which readers see whole, before or after.
func replace(path string, before, after []byte, info fs.FileInfo) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".sluice-hosts-*")
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	_, err = f.Write(after)
	if err == nil {
		err = f.Chmod(info.Mode().Perm())
	}
	if err == nil {
		err = keepOwner(f, path, info)
	}
	if err == nil {
		err = f.Sync()
	}
	if err = errors.Join(err, f.Close()); err != nil {
		return err
	}
	if now, _, err := readHosts(path); err != nil || !bytes.Equal(now, before) {
		return errors.Join(errChanged, err)
	}
	return os.Rename(f.Name(), path)
}

// overwrite writes into the file that is there. A reader may see the half of it, for a moment.
func overwrite(path string, before, after []byte) error {
	f, err := os.OpenFile(path, os.O_RDWR, 0)
	if err != nil {
		return err
	}
	now, err := io.ReadAll(io.LimitReader(f, mostHosts+1))
	if err == nil && !bytes.Equal(now, before) {
		err = errChanged
	}
	if err == nil {
		_, err = f.WriteAt(after, 0)
	}
	if err == nil {
		err = f.Truncate(int64(len(after)))
	}
	return errors.Join(err, f.Close())
}
