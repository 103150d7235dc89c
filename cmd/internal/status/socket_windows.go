package status

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"net"
	"slices"
	"strings"
	"time"

	"golang.org/x/sys/windows"
	"golang.zx2c4.com/wireguard/ipc/namedpipe"
)

// Directory is how the pipes of all nodes of a machine begin: there is one folder of pipes.
const Directory = pipes + `sluice-`

// Directories are where nodes are looked for.
func Directories(func(string) string) []string { return []string{Directory} }

// whoMay ask any node.
const whoMay = "an administrator"

// pipes is the folder of all pipes. Case matters to none but wine, where native calls find it as it is written here only.
const pipes = `\\.\PIPE\`

// PathIn is the pipe of the node with that interface, among those that begin with dir.
func PathIn(dir, iface string) string { return dir + iface }

// errRefused is no error here: a pipe is gone with who serves it.
var errRefused = errors.New("refused")

// Sockets lists the pipes whose names begin with dir, by name.
func Sockets(dir string) ([]string, error) {
	inside, found := pipeName(dir)
	if !found {
		return nil, fmt.Errorf("%s is no name of pipes: they begin with %s", dir, pipes)
	}
	pattern, err := windows.UTF16PtrFromString(pipes + "*")
	if err != nil {
		return nil, err
	}
	var entry windows.Win32finddata
	search, err := windows.FindFirstFile(pattern, &entry)
	if err != nil {
		return nil, fmt.Errorf("list pipes: %w", err)
	}
	defer windows.FindClose(search)
	var list []string
	for err == nil {
		if name := windows.UTF16ToString(entry.FileName[:]); strings.HasPrefix(name, inside) && !slices.Contains(list, pipes+name) {
			list = append(list, pipes+name)
		}
		err = windows.FindNextFile(search, &entry)
	}
	slices.Sort(list)
	if errors.Is(err, windows.ERROR_NO_MORE_FILES) {
		err = nil
	}
	return list, err
}

// dial connects to a pipe. Any user can make one of any name that is not taken, so it is told nothing before it is known who has:
// who asks, the system, or the administrators.
func dial(ctx context.Context, path string) (net.Conn, error) {
	conn, err := namedpipe.DialContext(ctx, path)
	if err != nil {
		return nil, err
	}
	if err := trusted(conn); err != nil {
		return nil, errors.Join(err, conn.Close())
	}
	return conn, nil
}

// trusted tells whether the owner of a pipe may be told things.
func trusted(conn net.Conn) error {
	pipe, ok := conn.(interface{ Handle() windows.Handle })
	if !ok {
		return errors.ErrUnsupported
	}
	descriptor, err := windows.GetSecurityInfo(pipe.Handle(), windows.SE_FILE_OBJECT, windows.OWNER_SECURITY_INFORMATION)
	if err != nil {
		return fmt.Errorf("who has made the pipe: %w", err)
	}
	owner, _, err := descriptor.Owner()
	if err != nil {
		return fmt.Errorf("who has made the pipe: %w", err)
	}
	self, err := windows.GetCurrentProcessToken().GetTokenUser()
	if err != nil {
		return fmt.Errorf("who asks: %w", err)
	}
	if owner.Equals(self.User.Sid) || owner.IsWellKnown(windows.WinLocalSystemSid) || owner.IsWellKnown(windows.WinBuiltinAdministratorsSid) {
		return nil
	}
	return errStranger
}

// Listen makes a pipe for the user of this process, administrators and the system only. A pipe of that name that exists is an error,
// whoever has made it, and so is that somebody has it between two of our connections: all are instances of the first one.
func Listen(path string) (net.Listener, error) {
	name, found := pipeName(path)
	if !found {
		return nil, fmt.Errorf("status socket: %s is no name of a pipe; give -socket %sNAME", path, pipes)
	}
	descriptor, err := ownDescriptor()
	if err != nil {
		return nil, fmt.Errorf("status socket: %w", err)
	}
	var l net.Listener
	if err = free(path); err == nil {
		l, err = (&namedpipe.ListenConfig{SecurityDescriptor: descriptor}).Listen(pipes + name)
	}
	switch {
	case errors.Is(err, fs.ErrPermission), errors.Is(err, fs.ErrExist): // Windows tells either of a name that is taken
		return nil, fmt.Errorf("status socket: %s was made by another program: stop the node that runs already, give this one another -interface,"+
			" or choose another name with -socket: %w", path, err)
	case err != nil:
		return nil, fmt.Errorf("status socket: %w; choose another with -socket", err)
	}
	return l, nil
}

// pipeName is the name of a pipe in the folder of all; false: it is a path elsewhere.
func pipeName(path string) (name string, ok bool) {
	if len(path) < len(pipes) || !strings.EqualFold(path[:len(pipes)], pipes) {
		return "", false
	}
	return path[len(pipes):], true
}

// free is fs.ErrExist if there is a pipe. Windows refuses to make a first instance beside others, wine does not.
func free(path string) error {
	ctx, cancel := context.WithTimeout(context.Background(), time.Second) // all its instances may be in use
	defer cancel()
	conn, err := namedpipe.DialContext(ctx, path)
	switch {
	case err == nil:
		conn.Close()
	case errors.Is(err, fs.ErrNotExist):
		return nil
	case !errors.Is(err, context.DeadlineExceeded) && !errors.Is(err, fs.ErrPermission):
		return err
	}
	return fs.ErrExist
}

// ownDescriptor says who may open the pipe: its owner, the administrators if this process has their rights, and else its user.
func ownDescriptor() (*windows.SECURITY_DESCRIPTOR, error) {
	token := windows.GetCurrentProcessToken()
	self, err := token.GetTokenUser()
	if err != nil {
		return nil, err
	}
	user, owner := self.User.Sid.String(), "BA"
	if !token.IsElevated() {
		owner = user
	}
	return windows.SecurityDescriptorFromString("O:" + owner + "D:P(A;;GA;;;SY)(A;;GA;;;BA)(A;;GA;;;" + user + ")")
}

// writable is true: any user can make a pipe.
func writable(string) bool { return true }
