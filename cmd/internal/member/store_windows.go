package member

import (
	"path/filepath"

	"golang.org/x/sys/windows"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
)

// byWhom is how to run something as another user.
const byWhom = " (as an administrator, if it is a service)"

// StateFolder is where a node's token and the identities of its peers are, unless another folder is named: the machine's for who has the
// rights of an administrator, as services have, else the user's.
func StateFolder(_ protocol.Role, getenv func(string) string) string {
	base := getenv("LOCALAPPDATA")
	if windows.GetCurrentProcessToken().IsElevated() {
		base = getenv("ProgramData")
	}
	return filepath.Join(base, "sluice", "state")
}

// giveToOwnerOf has nothing to do: what is made says whose it is.
func giveToOwnerOf(string, string) error { return nil }
