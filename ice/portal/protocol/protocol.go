// Package protocol is what a node and the portal say to each other, beside signaling: the token that a node signs in with,
// and one request, sync, by which it reports its key and routes and learns everything that it needs. It is JSON inside the
// TLS connection of ice/signal; nothing in it depends on WireGuard keys. Peers know one another by their identities, which the
// portal cannot make.
package protocol

import (
	"encoding/base64"
	"errors"
	"fmt"
	"net/netip"
	"strings"
	"time"
	"unicode"
	"unicode/utf8"

	"github.com/sluice-vpn/sluice/ice/signal"
)

// Verb is the last part of the subject of a sync request (signal.PortalSubject).
const Verb = "sync"

// SyncHold is how long the portal may hold a request whose Known is the present revision before it answers all the same.
const SyncHold = 20 * time.Second

// DefaultOverlay are the prefixes that tunnel addresses come from: shared address space (RFC 6598) and a unique local one.
func DefaultOverlay() []netip.Prefix {
	return []netip.Prefix{netip.MustParsePrefix("100.64.0.0/11"), netip.MustParsePrefix("fd00:2021:1111::/107")}
}

// Role is what a node is there for.
type Role string

// The roles. A client reaches gateways and what is behind them; a gateway forwards.
const (
	Client  Role = "client"
	Gateway Role = "gateway"
)

// Key is a 32-byte key, base64 in JSON. It does not print.
type Key [32]byte

// MarshalText returns standard base64.
func (k Key) MarshalText() ([]byte, error) {
	return base64.StdEncoding.AppendEncode(nil, k[:]), nil
}

// UnmarshalText reads standard base64 of exactly 32 bytes.
func (k *Key) UnmarshalText(text []byte) error { return exactly(k[:], text, errKey) }

// Format keeps keys out of everything that fmt prints.
func (k Key) Format(f fmt.State, _ rune) { _, _ = f.Write([]byte("[key]")) }

var errKey = errors.New("a key is 32 bytes in base64")

// SyncRequest is a node's report and question. The portal answers at once if Known is not the revision of what it would
// answer, else as soon as that changes, or after SyncHold.
type SyncRequest struct {
	PublicKey Key            `json:"public_key"` // the node's own, at present
	Identity  Identity       `json:"identity"`   // who says so
	Signature Signature      `json:"signature"`  // see SignKey
	Routes    []netip.Prefix `json:"routes,omitempty"`
	DNS       []netip.Addr   `json:"dns,omitempty"`   // name servers that go with a default route among Routes
	Known     uint64         `json:"known,omitempty"` // 0: answer now
	Program   string         `json:"program,omitempty"`
	Via       netip.Addr     `json:"via,omitzero"` // where the node has reached the portal
}

// Sync is the portal's answer. If Refused is set, the rest may be empty: one line that says what is wrong and what to do. Displaced
// goes with it: another program has signed in as this node, and until it is gone this one must do nothing under the name.
type Sync struct {
	Revision  uint64         `json:"revision"`
	Refused   string         `json:"refused,omitempty"`
	Displaced bool           `json:"displaced,omitempty"`
	Name      string         `json:"name"`
	Role      Role           `json:"role"`
	Addresses []netip.Prefix `json:"addresses"` // in the tunnel: one of each family, /32 and /128
	Overlay   []netip.Prefix `json:"overlay"`   // the prefixes all tunnel addresses come from
	// Offers are a gateway's, in the order of its request.
	Offers Offers  `json:"offers,omitempty"`
	Peers  []Peer  `json:"peers"` // those that this node may talk to, by name
	Relays []Relay `json:"relays,omitempty"`
	Time   int64   `json:"time"` // the portal's clock, seconds since 1970
	// Lease is for how long this answer may be acted upon, in seconds from now: a node that has not heard from the portal for
	// longer lets go of its peers.
	Lease int64 `json:"lease"`
}

// Peer is another node. AllowedIPs are its tunnel addresses and, for a gateway, the networks that it offers and that are
// approved.
type Peer struct {
	Name         string         `json:"name"`
	Role         Role           `json:"role"`
	PublicKey    Key            `json:"public_key"` // zero: it never signed in
	Identity     Identity       `json:"identity,omitzero"`
	Signature    Signature      `json:"signature,omitzero"` // see Signed
	PresharedKey Key            `json:"preshared_key"`
	AllowedIPs   []netip.Prefix `json:"allowed_ips"`
	DNS          []netip.Addr   `json:"dns,omitempty"` // name servers to use while a default route leads to it
	Online       bool           `json:"online"`
}

// Relay is a STUN and TURN server, with credentials for this node.
type Relay struct {
	Name     string           `json:"name"`
	Addrs    []netip.AddrPort `json:"addrs"` // at most one of each family
	Username string           `json:"username"`
	Password string           `json:"password"`
	Expires  int64            `json:"expires"` // seconds since 1970, by the portal's clock
}

// The bounds of what is said. What breaks one is refused as a whole.
const (
	MaxRoutes     = 64
	MaxPeers      = 4096
	MaxRelays     = 8
	MaxDNS        = 3
	MaxLease      = 30 * 24 * time.Hour
	maxAllowedIPs = MaxRoutes + 4
	MaxRefusal    = 2 * maxText // bytes
	maxText       = 256         // bytes of a program's name, a credential
)

// Validate checks a request as the portal must. Signatures are for peers to verify.
func (r *SyncRequest) Validate() error {
	switch {
	case r.PublicKey == Key{}:
		return errors.New("no public key")
	case !printable(r.Program, maxText):
		return errors.New("the program's name is too long, or not one line")
	}
	if err := ValidateRoutes(r.Routes); err != nil {
		return err
	}
	if err := ValidateDNS(r.DNS); err != nil {
		return err
	}
	if r.Identity == (Identity{}) || r.Signature == (Signature{}) {
		return errors.New("no identity has signed the public key; update the program")
	}
	return nil
}

// ValidateRoutes checks what a gateway offers. Errors are for whoever chose the routes.
func ValidateRoutes(routes []netip.Prefix) error {
	if n := len(routes); n > MaxRoutes {
		return fmt.Errorf("%d routes are more than the %d that one gateway may offer; join neighbours (10.0.0.0/24 and 10.0.1.0/24"+
			" are 10.0.0.0/23), or divide them among several gateways", n, MaxRoutes)
	}
	for _, p := range routes {
		if p.Bits() > 0 && (p.Addr().IsLoopback() || p.Addr().Is6() && p.Addr().IsLinkLocalUnicast()) {
			return fmt.Errorf("%v has a meaning on one machine or link only; leave it out", p)
		}
	}
	return validatePrefixes(routes, MaxRoutes)
}

// ValidateDNS checks the name servers of a gateway. Errors are for whoever chose them.
func ValidateDNS(list []netip.Addr) error {
	if len(list) > MaxDNS {
		return fmt.Errorf("%d name servers are more than the %d that one gateway may name", len(list), MaxDNS)
	}
	for _, a := range list {
		if !a.IsValid() || a.Is4In6() || a.Zone() != "" || a.IsUnspecified() || a.IsLoopback() || a.IsMulticast() || a.IsLinkLocalUnicast() {
			return fmt.Errorf("%v is no name server that others can reach", a)
		}
	}
	return nil
}

// printable reports whether text is one line of at most most bytes that a terminal may show.
func printable(text string, most int) bool {
	return len(text) <= most && utf8.ValidString(text) && !strings.ContainsFunc(text, unprintable)
}

func unprintable(r rune) bool { return !unicode.IsPrint(r) }

// Validate checks an answer as a node must.
func (s *Sync) Validate() error {
	switch {
	case !printable(s.Refused, MaxRefusal):
		return errors.New("the refusal is too long, or not one line")
	case s.Refused != "":
		return nil
	case !signal.ValidName(s.Name):
		return errors.New("invalid node name")
	case s.Role != Client && s.Role != Gateway:
		return fmt.Errorf("unknown role %.20q", string(s.Role))
	case len(s.Peers) > MaxPeers:
		return errors.New("too many peers")
	case len(s.Relays) > MaxRelays:
		return errors.New("too many relays")
	case len(s.Offers) > MaxRoutes:
		return errors.New("too many offers")
	case s.Lease <= 0 || s.Lease > int64(MaxLease/time.Second):
		return errors.New("no lease, or one that is too long")
	}
	if err := s.validateAddresses(); err != nil {
		return err
	}
	names := map[string]bool{s.Name: true}
	for i := range s.Peers {
		if err := s.Peers[i].validate(); err != nil {
			return err
		}
		if err := s.validatePeer(&s.Peers[i]); err != nil {
			return err
		}
		if names[s.Peers[i].Name] {
			return errors.New("a peer is named twice, or is the node itself")
		}
		names[s.Peers[i].Name] = true
	}
	for i := range s.Relays {
		if err := s.Relays[i].validate(); err != nil {
			return err
		}
	}
	for i := range s.Offers {
		if err := s.Offers[i].validate(); err != nil {
			return err
		}
	}
	return nil
}

func (s *Sync) validateAddresses() error {
	if len(s.Addresses) == 0 || len(s.Addresses) == 2 && s.Addresses[0].Addr().Is4() == s.Addresses[1].Addr().Is4() {
		return errors.New("no tunnel address, or two of one family")
	}
	for _, p := range s.Addresses {
		if !p.IsSingleIP() {
			return fmt.Errorf("%v is not one tunnel address", p)
		}
	}
	if err := validatePrefixes(s.Addresses, 2); err != nil {
		return err
	}
	if err := validatePrefixes(s.Overlay, 4); err != nil {
		return err
	}
	return s.validateOverlay()
}

func (p *Peer) validate() error {
	if !signal.ValidName(p.Name) || p.Role != Client && p.Role != Gateway {
		return errors.New("a peer of invalid name or role")
	}
	if err := ValidateDNS(p.DNS); err != nil {
		return err
	}
	return validatePrefixes(p.AllowedIPs, maxAllowedIPs)
}

func (r *Relay) validate() error {
	for _, text := range []string{r.Name, r.Username, r.Password} {
		if text == "" || !printable(text, maxText) {
			return errors.New("an invalid relay")
		}
	}
	return ValidateRelayAddrs(r.Addrs)
}

// ValidateRelayAddrs checks the addresses of one relay: one or two, of different families, each a host's.
func ValidateRelayAddrs(list []netip.AddrPort) error {
	if len(list) == 0 || len(list) > 2 || len(list) == 2 && list[0].Addr().Is4() == list[1].Addr().Is4() {
		return errors.New("a relay without address, or with two of one family")
	}
	for _, a := range list {
		addr := a.Addr()
		if !a.IsValid() || a.Port() == 0 || addr.IsUnspecified() || addr.IsMulticast() || addr.Is4In6() || addr.Zone() != "" {
			return errors.New("an invalid address of a relay")
		}
	}
	return nil
}

func validatePrefixes(list []netip.Prefix, most int) error {
	if len(list) > most {
		return fmt.Errorf("more than %d networks", most)
	}
	for _, p := range list {
		if !p.IsValid() || p != p.Masked() || p.Addr().Is4In6() || p.Addr().IsMulticast() {
			return fmt.Errorf("%v is not a network; use one like 10.0.0.0/24", p)
		}
	}
	return nil
}
