package turn

import (
	"crypto/rand"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"time"

	"github.com/sluice-vpn/sluice/pipeline/frame"
)

// The timing of a client.
const (
	// SilentAfter is how long the server may leave us without any answer before the allocation is reported lost.
	SilentAfter = 8 * time.Second
	// KeepaliveEvery is how far Binding requests are apart. RFC 8489 leaves it open; NATs drop UDP mappings after 30 s and more
	// (RFC 4787, REQ-5, wants two minutes but not all obey).
	KeepaliveEvery = 25 * time.Second
	// BindingRefresh is the age at which a channel or permission that is used is refreshed: a permission "lasts 5 minutes" (RFC
	// 8656, section 9), a channel 10 (section 12).
	BindingRefresh = 4 * time.Minute
	// PermissionLife is the age at which one that was not refreshed is reported lost.
	PermissionLife = 5 * time.Minute
	// ChannelQuarantine is how long after its last request a channel number may not serve another peer: the binding's 10 minutes,
	// and then "the client MUST wait 5 minutes" (RFC 8656, section 12).
	ChannelQuarantine = 15 * time.Minute
)

// Retransmission, RFC 8489, section 6.2.1: "RTO [...] SHOULD be greater than 500 ms", "Rc [...] default of 7", "Rm [...] default
// of 16".
const (
	initialRTO   = 500 * time.Millisecond
	maxSends     = 7
	lastWaitRTOs = 16
)

const (
	releaseSends   = 3 // of the Refresh request that gives the allocation back
	maxStale       = 3 // nonces in a row that may be stale
	maxInFlight    = 32
	maxBackoff     = time.Minute
	refusedRetry   = 5 * time.Minute  // after an error that will hardly pass by itself
	stableAfter    = time.Minute      // an allocation that lived so long resets the back-off
	promptLosses   = 3                // how often another is asked for at once: a NAT may map us anew twice in a second
	refreshRetry   = 10 * time.Second // after an error that may pass
	minRefresh     = 10 * time.Second // no server makes us refresh faster
	maxLifetime    = time.Hour        // no server makes us refresh slower
	maxCredential  = 508              // bytes; RFC 8489, section 14.3: "less than 509 bytes"
	maxBindings    = LastChannel - FirstChannel + 1
	maxPermissions = 4096
	// scarce is when so many channels are bound that each peer gets one at most: half of what ice/relay grants an allocation.
	scarce = 512
)

// Family is an IP version.
type Family uint8

// The families of a relayed address.
const (
	FamilyAny  Family = iota // as the server pleases, which is IPv4 (RFC 8656, section 7.2)
	FamilyIPv4               // REQUESTED-ADDRESS-FAMILY is sent for this and the next
	FamilyIPv6
)

// Credentials are long-term credentials (RFC 8489, section 9.2), for one relay mostly those of the TURN REST convention. They
// do not show in logs.
type Credentials struct {
	Username, Password string
}

// Format keeps them out of everything that fmt prints.
func (Credentials) Format(f fmt.State, _ rune) { _, _ = io.WriteString(f, "[redacted]") }

// MarshalText keeps them out of JSON and slog.
func (Credentials) MarshalText() ([]byte, error) { return []byte("[redacted]"), nil }

func (c Credentials) check() error {
	if c.Username == "" || len(c.Username) > maxCredential || len(c.Password) > maxCredential {
		return errors.New("turn: user name empty, or user name or password longer than 508 bytes")
	}
	return nil
}

// Config says where the client allocates. Server and Credentials are needed, the zero value of the rest is the default.
type Config struct {
	// Server is the TURN server's UDP address, Unmap()ed. Datagrams from elsewhere are dropped.
	Server      netip.AddrPort
	Credentials Credentials
	// Family of the relayed address.
	Family Family
	// Lifetime to ask for, in whole seconds. 0: the server's default, 10 minutes mostly.
	Lifetime time.Duration
	// Random makes transaction IDs and jitter. nil: crypto/rand.
	Random io.Reader
}

func (c *Config) check() error {
	if !sendable(c.Server.Addr()) || c.Server.Port() == 0 || c.Server.Addr().Is4In6() {
		return fmt.Errorf("turn: %v is no address of a server", c.Server)
	}
	if c.Lifetime < 0 || c.Lifetime > 24*time.Hour {
		return fmt.Errorf("turn: a lifetime of %v is impossible", c.Lifetime)
	}
	if c.Family > FamilyIPv6 {
		return fmt.Errorf("turn: %d is no family", c.Family)
	}
	if c.Random == nil {
		c.Random = rand.Reader
	}
	return c.Credentials.check()
}

// Channel numbers.
const (
	FirstChannel = frame.FirstChannel
	LastChannel  = frame.LastChannel
)

// MaxPayload is the largest payload of a ChannelData message in one UDP datagram over IPv4, in bytes.
const MaxPayload = 65535 - 20 - 8 - frame.ChannelHeaderSize
