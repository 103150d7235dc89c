package names

import (
	"io/fs"
	"os"
	"syscall"

	"golang.org/x/sys/unix"
)

// keepOwner gives a file that is to take the place of path its owner and its SELinux label, if it has one.
func keepOwner(f *os.File, path string, info fs.FileInfo) error {
	if s, ok := info.Sys().(*syscall.Stat_t); ok {
		if err := f.Chown(int(s.Uid), int(s.Gid)); err != nil {
			return err
		}
	}
	const label = "security.selinux"
	text := make([]byte, 4096)
	n, err := unix.Getxattr(path, label, text)
	if err != nil { // there is no SELinux
		return nil
	}
	return unix.Fsetxattr(int(f.Fd()), label, text[:n], 0)
}
