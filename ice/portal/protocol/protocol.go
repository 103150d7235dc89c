// Package protocol is what a node and the portal say to each other, beside signaling: the token that a node signs in with,
// and one request, sync, by which it reports its key and routes and learns everything that it needs. It is JSON inside the
// TLS connection of ice/signal; nothing in it depends on WireGuard keys.
package protocol

import (
	"net/netip"
	"time"
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

// SyncRequest is a node's report and question. The portal answers at once if Known is not the revision of what it would
// answer, else as soon as that changes, or after SyncHold.
type SyncRequest struct {
	PublicKey Key            `json:"public_key"` // the node's own, at present
	Routes    []netip.Prefix `json:"routes,omitempty"`
	Known     uint64         `json:"known,omitempty"` // 0: answer now
	Program   string         `json:"program,omitempty"`
}

// Sync is the portal's answer. If Refused is set, the rest may be empty: one line that says what is wrong and what to do.
type Sync struct {
	Revision  uint64         `json:"revision"`
	Refused   string         `json:"refused,omitempty"`
	Name      string         `json:"name"`
	Role      Role           `json:"role"`
	Addresses []netip.Prefix `json:"addresses"` // in the tunnel: one of each family, /32 and /128
	Overlay   []netip.Prefix `json:"overlay"`   // the prefixes all tunnel addresses come from
	Peers     []Peer         `json:"peers"`     // those that this node may talk to, by name
	Relays    []Relay        `json:"relays,omitempty"`
	Time      int64          `json:"time"` // the portal's clock, seconds since 1970
}

// Peer is another node. AllowedIPs are its tunnel addresses and, for a gateway, its routes.
type Peer struct {
	Name         string         `json:"name"`
	Role         Role           `json:"role"`
	PublicKey    Key            `json:"public_key"` // zero: it never signed in
	PresharedKey Key            `json:"preshared_key"`
	AllowedIPs   []netip.Prefix `json:"allowed_ips"`
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

// Token is a node's one secret: who it is, where the portal is, and how to know it.
type Token struct {
	Name        string
	Portals     []string // host:port, one at least
	Fingerprint [32]byte // SHA-256 of the portal's certificate
	Secret      [32]byte
}

// Encode returns the token as one word of printable ASCII that begins with "sluice1-".
func (t Token) Encode() string { panic("todo") }

// ParseToken reads a token; surrounding white space is ignored. Errors say what is wrong without quoting the token.
func ParseToken(text string) (Token, error) { panic("todo") }
