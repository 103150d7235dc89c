//go:build darwin || dragonfly || freebsd || linux || netbsd || openbsd

package portal

import (
	"errors"
	"fmt"
	"io"
	"os"
	"path/filepath"
	"syscall"
)

// lockFolder makes the folder this process's own until the result is closed, or the process ends.
func lockFolder(folder string) (io.Closer, error) {
	f, err := os.OpenFile(filepath.Join(folder, lockName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, err
	}
	if err := syscall.Flock(int(f.Fd()), syscall.LOCK_EX|syscall.LOCK_NB); err != nil {
		f.Close()
		if errors.Is(err, syscall.EWOULDBLOCK) {
			return nil, fmt.Errorf("a portal runs already with the state in %s; stop it first, or give another folder with -state", folder)
		}
		return nil, err
	}
	return f, nil
}
