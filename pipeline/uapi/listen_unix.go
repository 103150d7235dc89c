//go:build unix

package uapi

import (
	"errors"
	"fmt"
	"io/fs"
	"net"
	"os"
	"path/filepath"
	"sync"
	"syscall"
	"time"

	"golang.org/x/sys/unix"
)

// What `wg` is told, positive.
const (
	errnoNotPermitted = int(unix.EPERM)
	errnoIO           = int(unix.EIO)
	errnoInvalid      = int(unix.EINVAL)
	errnoProtocol     = int(unix.EPROTO)
	errnoAddressInUse = int(unix.EADDRINUSE)
)

// directory is where `wg` looks for sockets.
const directory = "/var/run/wireguard"

// watchInterval is how often the socket's file is looked for. An inotify instance would tell at once, but a user may
// have only 128 of them.
const watchInterval = time.Second

// Listen makes the configuration socket of an interface, /var/run/wireguard/NAME.sock, for the owner only, and the
// folder if need be. A socket that nobody serves any more is replaced; one that is served is an error. Once the file has
// been removed or replaced, Accept returns ErrGone. Close removes the file if it is still ours.
func Listen(name string) (net.Listener, error) {
	return listen(filepath.Join(directory, name+".sock"), watchInterval)
}

// Adopt serves a listening socket that was inherited as descriptor fd (WG_UAPI_FD), which it takes over. Its file, if
// it has one, is watched and removed as Listen does.
func Adopt(fd uintptr) (net.Listener, error) {
	f := os.NewFile(fd, "uapi")
	if f == nil {
		return nil, fmt.Errorf("uapi: %d is no descriptor", fd)
	}
	defer f.Close()
	l, err := net.FileListener(f)
	if err != nil {
		return nil, fmt.Errorf("uapi: inherited descriptor %d: %w", fd, err)
	}
	sock, ok := l.(*net.UnixListener)
	if !ok {
		l.Close()
		return nil, fmt.Errorf("uapi: inherited descriptor %d is not a Unix socket", fd)
	}
	return newListener(sock, sock.Addr().String(), watchInterval), nil
}

func listen(path string, watch time.Duration) (net.Listener, error) {
	dir := filepath.Dir(path)
	if err := os.MkdirAll(dir, 0o755); err != nil {
		return nil, fmt.Errorf("uapi: %w", err)
	}
	unlock, err := lockDirectory(dir)
	if err != nil {
		return nil, fmt.Errorf("uapi: %w", err)
	}
	defer unlock()
	if err := removeStaleSocket(path); err != nil {
		return nil, err
	}
	// Between bind and chmod the mode is what the mask leaves.
	mask := unix.Umask(0o177)
	sock, err := net.ListenUnix("unix", &net.UnixAddr{Name: path, Net: "unix"})
	unix.Umask(mask)
	if err != nil {
		return nil, fmt.Errorf("uapi: %w", err)
	}
	if err := os.Chmod(path, 0o600); err != nil {
		sock.Close()
		return nil, fmt.Errorf("uapi: %w", err)
	}
	return newListener(sock, path, watch), nil
}

// lockDirectory keeps two programs that start at once from taking each other's new socket for a stale one.
func lockDirectory(dir string) (unlock func(), err error) {
	f, err := os.Open(dir)
	if err != nil {
		return nil, err
	}
	for {
		err = unix.Flock(int(f.Fd()), unix.LOCK_EX)
		if !errors.Is(err, unix.EINTR) {
			break
		}
	}
	if err != nil {
		f.Close()
		return nil, &fs.PathError{Op: "flock", Path: dir, Err: err}
	}
	return func() { f.Close() }, nil
}

func removeStaleSocket(path string) error {
	st, err := os.Lstat(path)
	switch {
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case err != nil:
		return fmt.Errorf("uapi: %w", err)
	case st.Mode().Type() != fs.ModeSocket:
		return fmt.Errorf("uapi: %s exists and is not a socket: remove it", path)
	}
	conn, err := net.Dial("unix", path)
	if err == nil {
		conn.Close()
		return fmt.Errorf("uapi: %s is served by another program: %w", path, syscall.EADDRINUSE)
	}
	if !errors.Is(err, syscall.ECONNREFUSED) {
		return fmt.Errorf("uapi: %w", err)
	}
	if err := os.Remove(path); err != nil {
		return fmt.Errorf("uapi: stale socket: %w", err)
	}
	return nil
}

// listener is a Unix socket that notices when its file is gone.
type listener struct {
	*net.UnixListener
	path string
	file fs.FileInfo   // identity of the file; nil when there is none to watch
	done chan struct{} // closed by Close
	gone chan struct{} // closed by watch
	once sync.Once
}

func newListener(sock *net.UnixListener, path string, interval time.Duration) *listener {
	sock.SetUnlinkOnClose(false) // it would unlink a successor's socket as well
	l := &listener{UnixListener: sock, path: path, done: make(chan struct{}), gone: make(chan struct{})}
	if st, err := os.Lstat(path); err == nil {
		l.file = st
		go l.watch(interval)
	}
	return l
}

func (l *listener) watch(interval time.Duration) {
	ticker := time.NewTicker(interval)
	defer ticker.Stop()
	for {
		select {
		case <-l.done:
			return
		case <-ticker.C:
		}
		if !l.ours() {
			close(l.gone)
			l.UnixListener.Close()
			return
		}
	}
}

func (l *listener) ours() bool {
	if l.file == nil {
		return false
	}
	st, err := os.Lstat(l.path)
	return err == nil && os.SameFile(st, l.file)
}

func (l *listener) Accept() (net.Conn, error) {
	conn, err := l.UnixListener.Accept()
	if err != nil {
		select {
		case <-l.gone:
			return nil, ErrGone
		default:
		}
	}
	return conn, err
}

func (l *listener) Close() error {
	l.once.Do(func() {
		close(l.done)
		if l.ours() {
			os.Remove(l.path)
		}
	})
	return l.UnixListener.Close()
}
