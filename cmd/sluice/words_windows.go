package main

import (
	"io/fs"
	"os"

	"github.com/sluice-vpn/sluice/cmd/internal/names"
	"github.com/sluice-vpn/sluice/ice/secretfile"
)

// memberText is what gateway and client have in common.
const memberText = `

The token comes from the first of these that there is: -token-file FILE (- is standard input), the variable SLUICE_TOKEN,
and what sluice sign-in has stored in the state folder; never from an argument, which other users of the machine can read.
A file that others can read is refused, with the icacls line that ends that. The stored one is followed within a
second: without one (any more) the program waits in signed-out state, as it does when the portal refuses a token; see
sluice status.

It runs in the foreground until Ctrl-C, then puts addresses and routes back as they were; as a service it runs by sluice
service. The other switches of sluice-wg in the environment (SLUICE_NO_GSO, ...) count here as well. See it with sluice status.

It needs the rights of an administrator, and wintun.dll (https://www.wintun.net) beside the program or in System32`

const (
	clearText = "\n\nOn Windows default routes and -fail-closed are refused.\n\n" +
		"   sluice client -token-file client.token"
	userSocketText = ""
	socketText     = `\\.\PIPE\sluice-INTERFACE`
	stateText      = `%ProgramData%\sluice\state for administrators and services, %LOCALAPPDATA%\sluice\state for others`
	logsText       = "   a service   %ProgramData%\\sluice\\data\\logs\n" +
		"   a user      %LOCALAPPDATA%\\sluice\\data\\logs\n\n"
	logsRootText = "administrators see those of services too"
	maskText     = "make it in a folder that is yours alone"
	// namesMode is how names lead to nodes unless it is said; the others are of Linux.
	namesMode = names.Off
)

// everybodyReads tells whether a file is one that others may read.
func everybodyReads(f *os.File, _ fs.FileInfo) bool {
	others, _, err := secretfile.OthersRead(f)
	return err == nil && others
}
