package tun

import (
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"runtime"

	"golang.org/x/sys/windows"
)

// upAtOnce: Wintun tells of no state; its interface is up while somebody has it open.
const upAtOnce = true

// explain says what a device that cannot be made wants: wintun.dll is looked for beside the program and in System32.
func explain(err error) error {
	folder := "the folder of the program"
	if program, e := os.Executable(); e == nil {
		folder = filepath.Dir(program)
	}
	switch {
	case errors.Is(err, windows.ERROR_MOD_NOT_FOUND), errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("tun: %w: there is no wintun.dll; put that for %s from https://www.wintun.net into %s: %w", ErrNoDriver, runtime.GOARCH, folder, err)
	case errors.Is(err, windows.ERROR_BAD_EXE_FORMAT):
		return fmt.Errorf("tun: %w: the wintun.dll in %s, or in System32, is for another processor; take that for %s from https://www.wintun.net: %w",
			ErrNoDriver, folder, runtime.GOARCH, err)
	case errors.Is(err, windows.ERROR_INVALID_IMAGE_HASH), errors.Is(err, windows.ERROR_DRIVER_BLOCKED):
		return fmt.Errorf("tun: %w: Windows refuses the driver of this wintun.dll, whose signature it does not take; that from https://www.wintun.net is signed: %w",
			ErrNoDriver, err)
	}
	return err
}
