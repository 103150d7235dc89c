package pipeline

import (
	"errors"
	"fmt"
	"io"
	"log/slog"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/crypto/aead"
	"github.com/sluice-vpn/sluice/pipeline/udp"
	"github.com/sluice-vpn/sluice/tun"
)

// Config describes a Pipeline. Device is required; the zero value of every other field is its default.
type Config struct {
	// Device is the TUN. The Pipeline owns it from New on and closes it. Each of its queues gets a shard.
	Device tun.Device
	// Listen opens the UDP sockets; nil is udp.Listen. UDP is what it is asked for; Shards is set by the Pipeline, and Port
	// and Mark can be edited later.
	Listen udp.Listener
	UDP    udp.Config
	// Logger gets life-cycle messages, never a line per packet; nil discards.
	Logger *slog.Logger
	// Workers is how many goroutines help each shard to seal and open; 0 does the work inline. They pay off when one
	// peer needs more than one core and cores are idle.
	Workers int
	// NewCipher makes the cipher of one direction of a session; nil is aead.New. For measurements and tests.
	NewCipher func(key *[aead.KeySize]byte) aead.Cipher
	// Answers has nothing delivered but answers to what was sent, and ICMP errors about it; the rest is dropped (unasked).
	Answers bool
	// SampleDelays has one batch in 64 timed from the device to the socket and back, for Counters, and before that from the kernel's
	// arrival on, see udp.Config.Timestamps. It costs two readings of the clock, three where that is told.
	SampleDelays bool
	// HandshakeLifetime is how long a handshake series may try; 0 is 90 s (WireGuard paper, section 6.4).
	HandshakeLifetime time.Duration
	// Stray gets the datagrams that are not WireGuard, on the shard's goroutine; nil drops and counts them. It must not
	// block, nor call the Pipeline's methods, which wait for shards.
	Stray func(Stray)
	// Connector finds the paths to peers that have names; nil: peers have none.
	Connector Connector
	// Clock reads a monotonic clock that runs in suspend, with an arbitrary origin before now; nil is CLOCK_BOOTTIME where
	// there is one. Timers follow package time if Clock is given (tests under testing/synctest).
	Clock func() time.Duration
	// Wall reads the wall clock, for TAI64N and the time of the last handshake; nil is the system's.
	Wall func() time.Time
	// Rand is the source of keys and indices; nil is crypto/rand.
	Rand io.Reader
}

// Sizes that shape a shard. PERF.md part 5 has what others gave on two cores: within the noise, the same.
const (
	// readBytes is how much one batch takes from the TUN; readPackets bounds it for small packets.
	readBytes   = 16 * 65536
	readPackets = 256
	// receiveMessages is how many messages one batch takes from a socket, each up to a whole GRO run.
	receiveMessages = 24
	// sendBytes holds the sealed form of a batch: 36 bytes more for each segment of it, 40 if relayed, in runs.
	sendBytes = readBytes + readBytes/8
	// batchPackets is how many packets may wait to be sealed or opened in one batch.
	batchPackets = 2048
	// MaxMTU is the longest inner packet that a datagram can carry; 4 bytes less where it goes over a relay.
	MaxMTU = udp.MaxDatagram - crypto.SizeTransportHeader - aead.Overhead
	// mailboxSlots is the handshake queue; a message that finds it full is dropped. Cookies start at an eighth.
	mailboxSlots = 1024
	// stagedBytes bounds what all lanes of a shard may stage for peers without a session.
	stagedBytes = 16 << 20
)

// withDefaults checks the configuration and fills in what is zero.
func (c Config) withDefaults() (Config, error) {
	switch {
	case c.Device == nil:
		return c, errors.New("pipeline: Config.Device is missing")
	case len(c.Device.Queues()) == 0:
		return c, errors.New("pipeline: the TUN device has no queue")
	case c.Workers < 0 || c.Workers > 64:
		return c, fmt.Errorf("pipeline: Config.Workers is %d, want 0 to 64", c.Workers)
	case c.HandshakeLifetime < 0:
		return c, fmt.Errorf("pipeline: Config.HandshakeLifetime is %v, want 0 or more", c.HandshakeLifetime)
	}
	if c.Listen == nil {
		c.Listen = udp.Listen
	}
	c.UDP.Shards = len(c.Device.Queues())
	c.UDP.Timestamps = c.SampleDelays
	c.UDP.Routes = c.Connector == nil // which owns the addresses otherwise
	if c.Logger == nil {
		c.Logger = slog.New(slog.DiscardHandler)
	}
	if c.Wall == nil {
		c.Wall = wallClock
	}
	return c, nil
}

func (c Config) cryptoConfig() crypto.Config {
	return crypto.Config{Rand: c.Rand, Wall: c.Wall, NewCipher: c.NewCipher}
}
