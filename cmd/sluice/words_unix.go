//go:build !windows

package main

import (
	"io/fs"
	"os"

	"github.com/sluice-vpn/sluice/cmd/internal/names"
)

// This file has what people read of systems like Linux, words_windows.go the same of Windows.

// memberText is what gateway and client have in common.
const memberText = `

The token comes from the first of these that there is: -token-file FILE (- is standard input), the variable SLUICE_TOKEN,
the systemd credential sluice-token, and what sluice sign-in has stored in the state folder; never from an argument, which
every user of the machine can read. A file that others can read is refused: chmod 600. The stored one is followed within a
second: without one (any more) the program waits in signed-out state, as it does when the portal refuses a token; see
sluice status.

It runs in the foreground until SIGTERM or SIGINT, then puts addresses, routes and firewall back as they were. SIGHUP
says that the network has changed, so it goes on when its terminal closes. SIGUSR1 writes counters to the file named by SLUICE_STATS. The other switches
of sluice-wg in the environment (SLUICE_NO_GSO, SLUICE_QUEUES, ...) count here as well. See it with sluice status.

It needs root, or the capability CAP_NET_ADMIN and write access to /run/sluice`

const (
	clearText = "\n\nWhile there is no tunnel, traffic leaves in the clear, unless -fail-closed keeps it in until -release.\n\n" +
		"   sluice client -token-file /etc/sluice/token"
	userSocketText = " Its status socket is in $XDG_RUNTIME_DIR/sluice, or ~/.cache/sluice, where /run/sluice cannot be\nwritten."
	socketText     = "/run/sluice/INTERFACE.sock"
	stateText      = "STATE_DIRECTORY, else " +
		"/var/lib/sluice for root, of a gateway /var/lib/sluice-gateway where there is one, ~/.local/state/sluice for others"
	logsText = "   root, without sudo    /var/log/sluice\n" +
		"   a user, also by sudo  $XDG_CACHE_HOME/sluice/data/logs, else $HOME/.cache/sluice/data/logs\n\n"
	logsRootText = "root sees those of services too"
	maskText     = "use umask 077"
	// namesMode is how names lead to nodes unless it is said.
	namesMode = names.Auto
)

// everybodyReads tells whether a file is one that all users may read.
func everybodyReads(f *os.File, st fs.FileInfo) bool {
	return st.Mode().IsRegular() && st.Mode().Perm()&0o007 != 0
}
