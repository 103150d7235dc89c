//go:build !linux

package host

import (
	"net/netip"
	"syscall"
)

// SetMTU sets the interface's MTU in bytes.
func SetMTU(string, int) error { return ErrUnsupported }

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

// Release ends that the machine fails closed when no process runs.
func Release(RoutingConfig) error { return ErrUnsupported }

// Connections lists the connections from local addresses.
func Connections([]netip.Prefix) ([]Connection, error) { return nil, ErrUnsupported }

func setMark(syscall.RawConn, uint32) error { return nil }

const marks = false
