//go:build unix

package member

import (
	"os"
	"syscall"
)

// giveToOwnerOf has a file that root has made belong to the folder's owner, a service's user for example.
func giveToOwnerOf(folder, path string) error {
	st, err := os.Stat(folder)
	if err != nil {
		return err
	}
	if of, ok := st.Sys().(*syscall.Stat_t); ok && os.Geteuid() == 0 && of.Uid != 0 {
		return os.Chown(path, int(of.Uid), int(of.Gid))
	}
	return nil
}
