//go:build !linux

package host

import "net/netip"

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
