//go:build !linux

package speedtest

import (
	"context"
	"errors"
)

// errNeedsLinux is what Check and Run return here.
var errNeedsLinux = errors.New("the speed test builds its network out of Linux namespaces; run it on a Linux machine or in a Linux virtual machine")

// Check reports that the speed test needs Linux.
func Check(Config) error { return errNeedsLinux }

// Run reports that the speed test needs Linux.
func Run(context.Context, Config, []Program) (*Report, error) { return nil, errNeedsLinux }
