//go:build darwin || freebsd || openbsd || (linux && sluice_portable)

package tun

import (
	"errors"
	"fmt"
	"os"
)

// upAtOnce: the device tells when it is up.
const upAtOnce = false

// explain says what a device that cannot be made wants.
func explain(err error) error {
	if errors.Is(err, os.ErrNotExist) {
		return fmt.Errorf("tun: %w: %w", ErrNoDriver, err)
	}
	return err
}
