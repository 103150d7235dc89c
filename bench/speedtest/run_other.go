//go:build !linux

package speedtest

import (
	"context"
	"errors"
)

// errNeedsLinux is what Check and Run return here.
var errNeedsLinux = errors.New("the speed test builds its network out of Linux namespaces; run it on a Linux machine or in a Linux virtual machine")

// errLiveNeedsLinux is what Connect and Serve return here.
var errLiveNeedsLinux = errors.New("the load of the speed test is made with system calls of Linux; run it between two Linux machines")

// Check reports that the speed test needs Linux.
func Check(Config) error { return errNeedsLinux }

// Run reports that the speed test needs Linux.
func Run(context.Context, Config, []Program) (*Report, error) { return nil, errNeedsLinux }

// Connect reports that the speed test needs Linux.
func Connect(context.Context, Config, Live) (*Report, error) { return nil, errLiveNeedsLinux }

// Serve reports that the speed test needs Linux.
func Serve(context.Context, Server) error { return errLiveNeedsLinux }
