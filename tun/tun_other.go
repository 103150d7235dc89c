//go:build !windows && !darwin && !freebsd && !openbsd && !linux

package tun

import (
	"fmt"
	"runtime"
)

func open(Options) (Device, error) {
	return nil, fmt.Errorf("tun: %w for %s", ErrNoDriver, runtime.GOOS)
}
