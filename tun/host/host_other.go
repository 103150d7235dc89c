//go:build !linux

package host

import (
	"net/netip"
	"syscall"
)

// SetMTU sets the interface's MTU in bytes.
func SetMTU(string, int) error { return ErrUnsupported }

// SetUp sets the interface up.
func SetUp(string) error { return ErrUnsupported }

// SetDown sets the interface down.
func SetDown(string) error { return ErrUnsupported }

// AddAddress adds an address with its prefix length.
func AddAddress(string, netip.Prefix) error { return ErrUnsupported }

// DeleteAddress deletes an address.
func DeleteAddress(string, netip.Prefix) error { return ErrUnsupported }

// AddRoute adds a route.
func AddRoute(Route) error { return ErrUnsupported }

// DeleteRoute deletes a route.
func DeleteRoute(Route) error { return ErrUnsupported }

// AddRule adds a policy rule.
func AddRule(Rule) error { return ErrUnsupported }

// DeleteRule deletes a policy rule.
func DeleteRule(Rule) error { return ErrUnsupported }

// Forwarding is what StartForwarding set up.
type Forwarding struct{}

// StartForwarding makes the machine a gateway.
func StartForwarding(Forward) (*Forwarding, error) { return nil, ErrUnsupported }

// ClearForwarding takes back what killed gateways have set up.
func ClearForwarding(string) error { return ErrUnsupported }

// Mend sets up again what others have taken away.
func (*Forwarding) Mend() (bool, error) { return false, ErrUnsupported }

// Unended tells whether Mend is to be called once more soon.
func (*Forwarding) Unended() bool { return false }

// Set obeys another Forward.
func (*Forwarding) Set(Forward) error { return ErrUnsupported }

// Strangers tells whether packets of others were dropped.
func (*Forwarding) Strangers() bool { return false }

// SwitchedOn lists the settings that were off before.
func (*Forwarding) SwitchedOn() []string { return nil }

// Obstacles lists the chains of others that drop forwarded packets.
func (*Forwarding) Obstacles() ([]Obstacle, error) { return nil, ErrUnsupported }

// Close takes back what was set up.
func (*Forwarding) Close() error { return ErrUnsupported }

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

// Release ends that the machine fails closed when no process runs.
func Release(RoutingConfig) error { return ErrUnsupported }

// HasIPv6 tells whether an interface has IPv6.
func HasIPv6(string) bool { return false }

// Networks lists the networks that the machine has an address in.
func Networks(string) ([]Network, error) { return nil, ErrUnsupported }

// Connections lists the connections from local addresses.
func Connections([]netip.Prefix) ([]Connection, error) { return nil, ErrUnsupported }

// Routers lists those that default routes lead to.
func Routers() ([]netip.Addr, error) { return nil, ErrUnsupported }

// Lookup asks the kernel for the route to an address.
func Lookup(netip.Addr, uint32) (Found, error) { return Found{}, ErrUnsupported }

// Close deletes the routes.
func (*Routing) Close() error { return ErrUnsupported }

func setMark(syscall.RawConn, uint32) error { return nil }
