//go:build unix

package member

import (
	"os"
	"path/filepath"
	"strings"
	"syscall"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
)

const rootState = "/var/lib/sluice"

// byWhom is how to run something as another user.
const byWhom = " (sudo)"

// StateFolder is where a node's token and the identities of its peers are, unless another folder is named: what the service manager has
// made for its state (systemd.exec(5), $STATE_DIRECTORY, the first of its list), else root's, else the user's
// (XDG Base Directory Specification, $XDG_STATE_HOME).
func StateFolder(role protocol.Role, getenv func(string) string) string {
	if folder, _, _ := strings.Cut(getenv("STATE_DIRECTORY"), ":"); folder != "" {
		return folder
	}
	if os.Geteuid() == 0 {
		return folderOf(role, rootState)
	}
	folder := getenv("XDG_STATE_HOME")
	if !filepath.IsAbs(folder) {
		folder = filepath.Join(getenv("HOME"), ".local", "state")
	}
	return filepath.Join(folder, "sluice")
}

// folderOf is root's folder for a role. A gateway has one of its own where the packages have made it, so that a client on the same machine
// has another token.
func folderOf(role protocol.Role, root string) string {
	own := root + "-" + string(protocol.Gateway)
	if st, err := os.Stat(own); role == protocol.Gateway && err == nil && st.IsDir() {
		return own
	}
	return root
}

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
