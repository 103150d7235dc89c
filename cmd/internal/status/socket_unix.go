//go:build unix

package status

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"
)

// Directory is where the sockets of all nodes of a machine are that may write there.
const Directory = "/run/sluice"

// Directories are where nodes are looked for: Directory, and that of an ordinary user's nodes
// (XDG Base Directory Specification, $XDG_RUNTIME_DIR, or else $HOME/.cache).
func Directories(getenv func(string) string) []string {
	folder := getenv("XDG_RUNTIME_DIR")
	if !filepath.IsAbs(folder) {
		folder = filepath.Join(getenv("HOME"), ".cache")
	}
	if os.Geteuid() == 0 || !filepath.IsAbs(folder) {
		return []string{Directory}
	}
	return []string{Directory, filepath.Join(folder, "sluice")}
}

// whoMay ask any node.
const whoMay = "root"

// PathIn is the socket of the node with that interface in a folder of sockets.
func PathIn(dir, iface string) string { return filepath.Join(dir, iface+suffix) }

// suffix ends the names of sockets.
const suffix = ".sock"

// errRefused: the socket's file is there and nobody listens.
var errRefused error = unix.ECONNREFUSED

// Sockets lists the sockets in a folder, by name. A folder that is not there has none.
func Sockets(dir string) ([]string, error) {
	entries, err := os.ReadDir(dir) // sorted
	if errors.Is(err, fs.ErrNotExist) {
		return nil, nil
	}
	var list []string
	for _, e := range entries {
		if e.Type() == fs.ModeSocket && strings.HasSuffix(e.Name(), suffix) {
			list = append(list, filepath.Join(dir, e.Name()))
		}
	}
	return list, err
}

// dial connects to a socket. The folder's rights say who can have made it.
func dial(ctx context.Context, path string) (net.Conn, error) {
	return new(net.Dialer).DialContext(ctx, "unix", path)
}

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

// writable tells whether this user may make files in a folder.
func writable(folder string) bool { return unix.Access(folder, unix.W_OK) == nil }
