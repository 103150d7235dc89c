//go:build !linux && !windows

package host

import "net/netip"

// SetUp sets the interface up.
func SetUp(string) error { return ErrUnsupported }

// Watcher tells when something may have been changed.
type Watcher struct{}

// NewWatcher starts to watch.
func NewWatcher(int) (*Watcher, error) { return nil, ErrUnsupported }

// Changes delivers a value when something may have changed.
func (*Watcher) Changes() <-chan struct{} { return nil }

// Close ends the Watcher.
func (*Watcher) Close() error { return ErrUnsupported }

// Routing keeps an interface's addresses and routes.
type Routing struct{}

// NewRouting takes over what a killed process has left.
func NewRouting(RoutingConfig) (*Routing, error) { return nil, ErrUnsupported }

// SetOverlay says which prefixes peers' tunnel addresses are of.
func (*Routing) SetOverlay([]netip.Prefix) {}

// SetAddresses makes these the interface's addresses.
func (*Routing) SetAddresses([]netip.Prefix) error { return ErrUnsupported }

// Set makes these the routes through the interface.
func (*Routing) Set([]netip.Prefix) error { return ErrUnsupported }

// Changes counts what was changed.
func (*Routing) Changes() uint64 { return 0 }

// Unmarked tells why answers are not marked.
func (*Routing) Unmarked() error { return nil }

// FailsClosed tells whether the machine fails closed.
func (*Routing) FailsClosed() bool { return false }

// Release ends that the machine fails closed.
func (*Routing) Release() error { return ErrUnsupported }

// HasIPv6 tells whether an interface has IPv6.
func HasIPv6(string) bool { return false }

// Networks lists the networks that the machine has an address in.
func Networks(string) ([]Network, error) { return nil, ErrUnsupported }

// Routers lists those that default routes lead to.
func Routers() ([]netip.Addr, error) { return nil, ErrUnsupported }

// Lookup asks the kernel for the route to an address.
func Lookup(netip.Addr, uint32) (Found, error) { return Found{}, ErrUnsupported }

// Close deletes the routes.
func (*Routing) Close() error { return ErrUnsupported }
