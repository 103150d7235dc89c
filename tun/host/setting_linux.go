package host

import (
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"

	"golang.org/x/sys/unix"
)

// settings are the namespace's own for the thread that opens them: /proc/sys/net follows the opener (net/sysctl_net.c,
// net_ctl_header_lookup).
const settings = "/proc/sys/net/"

func readSetting(path string) (string, error) {
	value, err := os.ReadFile(settings + path)
	return strings.TrimSpace(string(value)), err
}

// changeSetting changes a setting that is from, and leaves any other value alone.
func changeSetting(path, from, to string) (changed bool, err error) {
	value, err := readSetting(path)
	if err != nil || value != from {
		return false, err
	}
	if err = os.WriteFile(settings+path, []byte(to), 0); err == nil {
		return true, nil
	}
	name := strings.ReplaceAll(path, "/", ".")
	if errors.Is(err, unix.EROFS) {
		return false, fmt.Errorf("host: net.%s=%s is needed but /proc/sys is read-only: set it outside of the container"+
			" (docker run --sysctl net.%s=%s): %w", name, to, name, to, err)
	}
	return false, wrap(err, "set net.%s=%s", name, to)
}

// interfacesWith lists the interfaces that have a setting of a family.
func interfacesWith(family, setting string) (names []string) {
	found, _ := filepath.Glob(settings + family + "/conf/*/" + setting) // the pattern is valid
	for _, path := range found {
		switch name := filepath.Base(filepath.Dir(path)); name {
		case "all", "default", "lo":
		default:
			names = append(names, name)
		}
	}
	return names
}
