// Command sluice-wg makes one WireGuard interface in userspace and is configured by `wg`. It takes the place of wireguard-go
// as it is: the same arguments, environment, socket and exit status, so that wg-quick and scripts need no change.
package main

import (
	"errors"
	"fmt"
	"io"
	"os"
	"strings"

	"github.com/sluice-vpn/sluice/cmd/internal/logs"
	"github.com/sluice-vpn/sluice/cmd/internal/node"
	"github.com/sluice-vpn/sluice/cmd/internal/version"
)

const usage = `Usage: sluice-wg [-f | --foreground] INTERFACE-NAME

Makes a WireGuard interface in userspace. It returns once the interface and its socket
/var/run/wireguard/INTERFACE-NAME.sock are there, and works on in the background; then use wg and ip to set it up.
Delete the interface or the socket, or send SIGTERM, to end it; in the foreground it also ends with its terminal.

  -f, --foreground  stay in the foreground
  -version          print the version
  -h, --help        print this text

Exit status: 0, or 1 for a failure, or 2 for arguments that were not understood.

Environment:
  LOG_LEVEL                     debug (or verbose), info (default), warning, error, silent; when set, the output is kept in the background
  WG_PROCESS_FOREGROUND=1       as -f
  WG_TUN_FD, WG_UAPI_FD         inherited descriptors of a TUN device and of a listening socket
  SLUICE_NO_GSO=1               do without segmentation offload, at the TUN device and for UDP
  SLUICE_NO_GRO=1               do without receive offload for UDP
  SLUICE_FORCE_GSO=1            UDP segmentation also on kernels that are known to corrupt it
  SLUICE_NO_AVX512=1            encrypt without AVX-512
  SLUICE_QUEUES=N               queues of the TUN device, each with a core and sockets of its own (1)
  SLUICE_WORKERS=N              goroutines that help each queue to seal and open (0)
  SLUICE_STATS=PATH             write counters to PATH as a JSON object, on SIGUSR1 and at the end
`

// Exit codes.
const (
	exitOK     = 0
	exitFailed = 1
	exitUsage  = 2
)

func main() {
	status := run(os.Args[1:], os.Stdout, logs.Writer(os.Stderr))
	logs.Flush()
	os.Exit(status)
}

func run(args []string, stdout, stderr io.Writer) int {
	o, done, err := parse(args)
	switch {
	case err != nil:
		fmt.Fprintf(stderr, "sluice-wg: %v\nUsage: sluice-wg [-f | --foreground] INTERFACE-NAME\n", err)
		return exitUsage
	case done != "":
		fmt.Fprint(stdout, done)
		return exitOK
	}
	switch err := node.Run(o); {
	case errors.Is(err, node.ErrReported):
		return exitFailed
	case err != nil:
		fmt.Fprintf(stderr, "sluice-wg: %s\n", strings.ReplaceAll(err.Error(), "\n", "; "))
		return exitFailed
	}
	return exitOK
}

// parse returns what to run, or, in done, what to print instead.
func parse(args []string) (o node.Options, done string, err error) {
	flags := true
	for _, arg := range args {
		switch {
		case flags && (arg == "-f" || arg == "--foreground"):
			o.Foreground = true
		case flags && (arg == "-version" || arg == "--version"):
			return o, "sluice-wg " + version.String() + "\n", nil
		case flags && (arg == "-h" || arg == "--help"):
			return o, usage, nil
		case flags && arg == "--":
			flags = false
		case flags && strings.HasPrefix(arg, "-"):
			return o, "", fmt.Errorf("unknown flag %q", arg)
		case o.Name != "":
			return o, "", fmt.Errorf("one interface name only, not %q and %q", o.Name, arg)
		case arg == "":
			return o, "", errors.New("the interface name is empty")
		default:
			o.Name = arg
		}
	}
	if o.Name == "" {
		return o, "", errors.New("the interface name is missing")
	}
	return o, "", nil
}
