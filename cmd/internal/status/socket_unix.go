//go:build unix

package status

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"syscall"

	"golang.org/x/sys/unix"
)

// errRefused: the socket's file is there and nobody listens.
var errRefused error = unix.ECONNREFUSED

// Listen makes a socket for the owner only, and its folder if need be. A socket that nobody serves any more is replaced.
func Listen(path string) (net.Listener, error) {
	l, err := listen(path)
	switch {
	case errors.Is(err, fs.ErrPermission):
		return nil, fmt.Errorf("status socket: %w; run this as root (sudo), or choose another with -socket", err)
	case errors.Is(err, syscall.EADDRINUSE): // says what to do
		return nil, fmt.Errorf("status socket: %w", err)
	case err != nil:
		return nil, fmt.Errorf("status socket: %w; choose another with -socket", err)
	}
	return l, nil
}

func listen(path string) (net.Listener, error) {
	if err := os.MkdirAll(filepath.Dir(path), 0o755); err != nil {
		return nil, err
	}
	if err := removeStale(path); err != nil {
		return nil, err
	}
	// Between bind and chmod the mode is what the mask leaves.
	mask := unix.Umask(0o177)
	l, err := net.Listen("unix", path)
	unix.Umask(mask)
	if err != nil {
		return nil, err
	}
	if err := os.Chmod(path, 0o600); err != nil {
		l.Close()
		return nil, err
	}
	return l, nil
}

func removeStale(path string) error {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return err
	case st.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("%s exists and is not a socket: remove it", path)
	}
	conn, err := net.Dial("unix", path)
	if err == nil {
		conn.Close()
		return fmt.Errorf("%s is served by a node that runs already: stop that one, or give this one another -interface: %w",
			path, syscall.EADDRINUSE)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return err
	}
	return os.Remove(path)
}
