package relay

import (
	"crypto/rand"
	"errors"
	"fmt"
	"log/slog"
	"math"
	"net"
	"net/netip"
)

// DefaultPort is the port of STUN and TURN over UDP (RFC 8489 section 18.6).
const DefaultPort = 3478

// Config configures a Server. The zero value is a relay on port 3478 of every address, with a secret of its own making.
type Config struct {
	// Listen are the addresses to listen on, UDP. Port 0 takes a free one. Empty: port 3478 of every IPv4 and every IPv6
	// address. If it is every address of both families, one family may be missing.
	Listen []netip.AddrPort
	// PublicAddrs are the addresses under which clients and peers reach this machine, at most one of a family. A family
	// without one takes the address of Listen, or, if that is unspecified, the one this machine uses towards the internet;
	// behind a NAT it has to be given.
	PublicAddrs []netip.Addr
	// OnlyPublic: a family without one of PublicAddrs has no relayed addresses.
	OnlyPublic bool
	// OtherPort is a second port for Binding requests, from which such are answered, too, on request (RFC 5780): by that clients find out
	// what the NATs before them let in. It is at the addresses of Listen, and only for STUN. 0: none.
	OtherPort uint16
	// OtherAddrs are second addresses of this machine for the same, at most one of a family, which no NAT translates. Listen must be
	// unspecified for that family.
	OtherAddrs []netip.Addr
	// MinPort and MaxPort bound the ports of relayed addresses, both included. 0 and 0: 49152 to 65535 (RFC 8656 section 7.2).
	MinPort, MaxPort uint16
	// Realm is the realm of the credentials, at most 20 bytes, so that the first answer to a client stays within three times
	// its request. Empty: "sluice".
	Realm string
	// Secret is what credentials are made from; whoever knows it can issue them. Empty: a random one, and only
	// [Server.Credential] can.
	Secret string
	// Knows reports whether a user is still known, see [Credential]; who is not is refused as if his credential had expired, so
	// what he has ends within minutes. It is called for each request and must not block. Nil: whoever has a credential is.
	Knows func(user string) bool
	// DeniedPeers are denied beside those that are always: all that is not a public unicast address, see the package
	// comment. NAT64 prefixes of the network the relay is in belong here.
	DeniedPeers []netip.Prefix
	// AllowedPeers are exceptions to what is always denied, not to DeniedPeers. IPv4-mapped IPv6 addresses and the relay's
	// own listening ports stay denied.
	AllowedPeers []netip.Prefix
	// Allocations is how many allocations there may be at once. 0: 4096.
	Allocations int
	// AllocationsPerUser is how many of them one user may have, see [Credential]. 0: 32.
	AllocationsPerUser int
	// BytesPerSecondPerUser bounds what is relayed for one user, in both directions together and without the framing of TURN; what
	// is beyond it is dropped. A quarter of a second's worth, and 256 KiB at least, may come at once. 0: no bound.
	BytesPerSecondPerUser int
	// PeersPerAllocation is how many permissions, and how many channels, one allocation may have. 0: 1024.
	PeersPerAllocation int
	// BindingsPerSecond and RefusalsPerSecond bound what one source (an IPv4 address, an IPv6 /64) is answered without
	// having authenticated: Binding requests, and requests that end in an error. Five seconds' worth may come at once.
	// 0: 100 and 10.
	BindingsPerSecond, RefusalsPerSecond int
	// ReceiveBuffer and SendBuffer are the sizes in bytes of the socket buffers. 0: 4 MiB (10 ms at 3 Gbit/s) to receive, and no
	// bound to send, so that nobody waits for a client or peer whose device is slow: its queue drops. The kernel may grant
	// less; that is logged of the former.
	ReceiveBuffer, SendBuffer int
	// NoOffload switches UDP_GRO and UDP_SEGMENT off.
	NoOffload bool
	// Logger gets a line for what an operator should know, never one for a datagram. Nil discards.
	Logger *slog.Logger
}

const (
	maxRealm = 20
	// minSecret is the least length of a given secret: HMAC-SHA1 is tried offline by everybody who holds one credential.
	minSecret = 16
)

// withDefaults checks cfg and fills what was left zero. Errors name the field.
func (cfg Config) withDefaults() (Config, error) {
	if cfg.MinPort == 0 && cfg.MaxPort == 0 {
		cfg.MinPort, cfg.MaxPort = 49152, 65535
	}
	if cfg.Realm == "" {
		cfg.Realm = "sluice"
	}
	if cfg.Secret == "" {
		cfg.Secret = rand.Text() + rand.Text()
	}
	for _, n := range []struct {
		value     *int
		otherwise int
		name      string
	}{
		{&cfg.Allocations, 4096, "Allocations"},
		{&cfg.AllocationsPerUser, 32, "AllocationsPerUser"},
		{&cfg.PeersPerAllocation, 1024, "PeersPerAllocation"},
		{&cfg.BindingsPerSecond, 100, "BindingsPerSecond"},
		{&cfg.RefusalsPerSecond, 10, "RefusalsPerSecond"},
		{&cfg.ReceiveBuffer, 4 << 20, "ReceiveBuffer"},
		{&cfg.SendBuffer, math.MaxInt32 / 2, "SendBuffer"},
		{&cfg.BytesPerSecondPerUser, 0, "BytesPerSecondPerUser"},
	} {
		if *n.value < 0 {
			return cfg, fmt.Errorf("relay: Config.%s is negative", n.name)
		}
		if *n.value == 0 {
			*n.value = n.otherwise
		}
	}
	if cfg.Logger == nil {
		cfg.Logger = slog.New(slog.DiscardHandler)
	}
	return cfg, cfg.check()
}

func (cfg *Config) check() error {
	switch {
	case cfg.MinPort == 0 || cfg.MinPort > cfg.MaxPort:
		return fmt.Errorf("relay: Config.MinPort to MaxPort is no range: %d to %d", cfg.MinPort, cfg.MaxPort)
	case len(cfg.Realm) > maxRealm:
		return fmt.Errorf("relay: Config.Realm is longer than %d bytes", maxRealm)
	case len(cfg.Secret) < minSecret:
		return fmt.Errorf("relay: Config.Secret is shorter than %d bytes", minSecret)
	}
	for _, a := range cfg.Listen {
		if !a.IsValid() || a.Addr().Is4In6() || a.Addr().IsMulticast() {
			return fmt.Errorf("relay: Config.Listen: %v is no address to listen on", a)
		}
	}
	if err := checkPublic("PublicAddrs", cfg.PublicAddrs); err != nil {
		return err
	}
	if err := checkPublic("OtherAddrs", cfg.OtherAddrs); err != nil {
		return err
	}
	if len(cfg.OtherAddrs) > 0 && cfg.OtherPort == 0 {
		return errors.New("relay: Config.OtherAddrs needs Config.OtherPort")
	}
	for _, p := range append(cfg.DeniedPeers[:len(cfg.DeniedPeers):len(cfg.DeniedPeers)], cfg.AllowedPeers...) {
		if !p.IsValid() {
			return errors.New("relay: Config.DeniedPeers and AllowedPeers must be valid prefixes")
		}
	}
	return nil
}

// checkPublic checks addresses of hosts, at most one of a family; field is of Config.
func checkPublic(field string, list []netip.Addr) error {
	families := map[bool]bool{}
	for _, a := range list {
		if !a.IsValid() || a.Is4In6() || a.IsUnspecified() || a.IsMulticast() || a.Zone() != "" {
			return fmt.Errorf("relay: Config.%s: %v is no address of a host", field, a)
		}
		if families[a.Is4()] {
			return fmt.Errorf("relay: Config.%s has two addresses of one family", field)
		}
		families[a.Is4()] = true
	}
	return nil
}

// listenAddrs are the addresses to listen on; one of optional may be missing.
func (cfg *Config) listenAddrs() (addrs []netip.AddrPort, optional bool) {
	addrs = cfg.Listen
	if len(addrs) == 0 {
		addrs = []netip.AddrPort{
			netip.AddrPortFrom(netip.IPv4Unspecified(), DefaultPort),
			netip.AddrPortFrom(netip.IPv6Unspecified(), DefaultPort),
		}
	}
	families := map[bool]bool{}
	optional = true
	for _, a := range addrs {
		families[a.Addr().Is4()] = true
		optional = optional && a.Addr().IsUnspecified()
	}
	return addrs, optional && len(families) == 2
}

// outward is the address this machine uses towards the internet, or the zero Addr. Nothing is sent: connecting a UDP socket
// only looks up the route.
func outward(v4 bool) netip.Addr {
	network, to := "udp6", "[2001:db8::1]:9"
	if v4 {
		network, to = "udp4", "192.0.2.1:9"
	}
	c, err := net.Dial(network, to)
	if err != nil {
		return netip.Addr{}
	}
	defer c.Close()
	return c.LocalAddr().(*net.UDPAddr).AddrPort().Addr().Unmap()
}
