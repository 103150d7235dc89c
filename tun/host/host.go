// Package host configures the operating system around a TUN device: addresses, MTU, link state, routes and policy rules,
// and for gateways forwarding and masquerade.
//
// The functions are single steps. [Routing] and [Forwarding] are what a node needs as a whole: they compare what is there
// with what is wanted, take over what a killed program has left, and take everything back at Close. [Watcher] tells when to compare.
//
// Functions take the interface's name and act in the network namespace of the calling thread. They are for start-up and for
// changes of configuration, in the same place where the name was given; a device that has been moved to another namespace
// belongs to whoever moved it. Adding what is there already and deleting what is not there are no errors.
//
// Linux is implemented (over rtnetlink and nftables' netlink, without the programs ip and nft), and of Windows what a client needs: addresses
// and routes of its interface, and what surrounds the machine. What a system has not returns [ErrUnsupported].
package host

import (
	"errors"
	"net/netip"
)

// ErrUnsupported: the system's network configuration cannot be changed from here.
var ErrUnsupported = errors.New("host: network configuration is not supported on this system")

// ErrPermission: the rights to change the network configuration are missing.
var ErrPermission = errors.New("run as root or with CAP_NET_ADMIN")

// Found is the route that the kernel has to an address. MTU, in bytes, is the route's or else its interface's.
type Found struct {
	Interface      string
	Router, Source netip.Addr // not valid: there is none
	Table, MTU     int
	Unreachable    bool // the kernel refuses to send there; nothing else is known then
}

// Route is a route to a prefix through an interface.
type Route struct {
	Interface string       // name; may be empty if Gateway is set
	Prefix    netip.Prefix // 0.0.0.0/0 or ::/0 is the default route
	Gateway   netip.Addr   // zero: the prefix is on the link
	Source    netip.Addr   // preferred source address; zero: the system's choice
	Table     int          // routing table; 0 is main
	Metric    int          // smaller is preferred; 0 is the system's default
	MTU       int          // bytes; 0 is the interface's
}

// Network is one that the machine has an address in.
type Network struct {
	Prefix    netip.Prefix
	Interface string
}

// Rule is a policy rule, which says when a routing table is asked.
type Rule struct {
	IPv6     bool
	Table    int
	Priority int          // the order of rules, smallest first
	To       netip.Prefix // destination to match; zero matches all
	Mark     uint32       // firewall mark to match; 0 matches all
	Invert   bool         // apply to packets that do not match
	// MinBits ignores the table's routes with a shorter prefix: 1 those to everywhere, 0 none.
	MinBits int
	// Unreachable: no table is asked, nothing leads to what matches.
	Unreachable bool
}

// Connection is one that a program of this machine has begun or taken.
type Connection struct {
	Protocol      uint8 // TCP or UDP
	Local, Remote netip.AddrPort
}
