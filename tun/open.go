package tun

import (
	"errors"
	"fmt"
	"strings"
)

// Options say which device to open. The zero value asks for one named by the system, with its MTU, one queue and all
// offloads that it has.
type Options struct {
	// Name of the interface. Empty: the system chooses. Linux: at most 15 bytes, and "%d" in it is replaced by the
	// first free number. A persistent device of that name with one queue that nobody has open is taken over.
	Name string
	// MTU in bytes; 0 leaves the system's.
	MTU int
	// MaxMTU is the largest MTU that the interface may have, 0: any. Open refuses more; a larger one that is set from outside is
	// set back, where that is permitted, and told by EventMTUClamped. Linux only.
	MaxMTU int
	// Queues of a multi-queue device (IFF_MULTI_QUEUE); 0 and 1 ask for a plain one. Only Linux has more than one.
	Queues int
	// FD, if above 0, is an open TUN descriptor to adopt, for example WG_TUN_FD, made with IFF_TUN and IFF_NO_PI; with
	// IFF_VNET_HDR it gets superpackets. Name and Queues are then ignored.
	// The device owns it from a successful Open on.
	FD int
	// NoOffload asks for a device without superpackets.
	NoOffload bool
}

// Errors of Open that callers branch on, wrapped with what to be done about them.
var (
	// ErrNoDriver: the system has no TUN driver.
	ErrNoDriver = errors.New("no TUN driver")
	// ErrPermission: the rights to make a TUN device are missing.
	ErrPermission = errors.New("not permitted")
	// ErrBusy: there is an interface of that name already.
	ErrBusy = errors.New("name in use")
	// ErrName: no interface can have that name.
	ErrName = errors.New("invalid interface name")
)

// maxName is the length of an interface name on Linux, IFNAMSIZ-1.
const maxName = 15

// DefaultMTU is the MTU in bytes that a device is taken to have where the system does not tell.
const DefaultMTU = 1420

// eventBacklog is how many events may wait.
const eventBacklog = 64

// Open makes a TUN device, or adopts one. Errors: [ErrNoDriver], [ErrPermission], [ErrBusy], [ErrName], all wrapped, or
// the system's.
func Open(o Options) (Device, error) {
	if err := validateName(o.Name); err != nil {
		return nil, err
	}
	if o.MaxMTU > 0 && o.MTU > o.MaxMTU {
		return nil, fmt.Errorf("tun: an MTU of %d is too large; use at most %d", o.MTU, o.MaxMTU)
	}
	return open(o)
}

// validateName obeys net/core/dev.c dev_valid_name.
func validateName(name string) error {
	switch {
	case len(name) > maxName:
		return fmt.Errorf("tun: %w: %q is longer than %d bytes", ErrName, name, maxName)
	case name == "." || name == "..":
		return fmt.Errorf("tun: %w: %q", ErrName, name)
	case strings.ContainsAny(name, "/: \t\n\v\f\r\x00"):
		return fmt.Errorf("tun: %w: %q has a slash, a colon, a space or a zero byte", ErrName, name)
	case strings.Count(name, "%") > 0 && (strings.Count(name, "%") > 1 || !strings.Contains(name, "%d")):
		return fmt.Errorf("tun: %w: %q; only one %%d may stand for a number", ErrName, name)
	}
	return nil
}

// post delivers an event. When nobody reads, the oldest gives way, so that the newest state is always told.
func post(events chan Event, e Event) {
	for {
		select {
		case events <- e:
			return
		default:
		}
		select {
		case <-events:
		default:
		}
	}
}
