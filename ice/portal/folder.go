package portal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"slices"
)

const (
	certificateName = "portal.pem"
	storeName       = "store"
	lockName        = "lock"
	markName        = "sequence"
)

// openFolder makes the folder if need be, for its owner only, and locks it.
func openFolder(folder string) (lock io.Closer, err error) {
	defer func() {
		if errors.Is(err, os.ErrPermission) {
			err = fmt.Errorf("%w; run this as root (sudo), or give another folder with -state", err)
		}
	}()
	if err := os.MkdirAll(folder, 0o700); err != nil {
		return nil, err
	}
	entries, err := os.ReadDir(folder)
	if err != nil {
		return nil, err
	}
	ours := func(e os.DirEntry) bool { return e.Name() == certificateName || e.Name() == lockName }
	if st, err := os.Stat(folder); err != nil {
		return nil, err
	} else if st.Mode().Perm()&0o077 != 0 {
		// As systemd makes it, say; but the folder of somebody else is left alone.
		if len(entries) > 0 && !slices.ContainsFunc(entries, ours) {
			return nil, fmt.Errorf("%s holds other files and others may read it; give a folder that is empty or not there yet", folder)
		}
		if err := os.Chmod(folder, 0o700); err != nil {
			return nil, err
		}
	}
	return lockFolder(folder)
}
