// Package secretfile writes what nobody but its owner may read, or what must be whole: state of the portal, identities of peers. And it
// tells whether others may read a file: by its mode, on Windows by its access control list (DACL), where the system and the
// administrators are no others, as root is none elsewhere.
package secretfile

import (
	"errors"
	"os"
	"path/filepath"
)

// Write makes a file of mode 0600, or of an access control list that says as much, that holds text, in one step: after an error, or a power failure, there is what was there before.
// The folder must exist.
func Write(path string, text []byte) error {
	f, err := os.CreateTemp(filepath.Dir(path), ".new-*") // mode 0600
	if err != nil {
		return err
	}
	if err = restrict(f.Name()); err == nil { // before there is something to read
		_, err = f.Write(text)
	}
	err = errors.Join(err, f.Sync(), f.Close())
	if err == nil {
		err = os.Rename(f.Name(), path)
	}
	if err != nil {
		_ = os.Remove(f.Name())
		return err
	}
	if folder, err := os.Open(filepath.Dir(path)); err == nil {
		_ = folder.Sync() // that the name outlives a power failure too; not every system can
		folder.Close()
	}
	return nil
}
