package link

import (
	"bytes"
	"context"
	"encoding/binary"
	"io"
	"math/rand/v2"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/crypto/aead"
	"github.com/sluice-vpn/sluice/pipeline"
	"github.com/sluice-vpn/sluice/pipeline/udp"
	"github.com/sluice-vpn/sluice/pipeline/udp/udptest"
	"github.com/sluice-vpn/sluice/tun/tuntest"
)

// variant is how many queues the devices of a test have.
type variant int

const (
	plain  variant = 1
	queues variant = 2
)

// node is a pipeline on a network in memory.
type node struct {
	*pipeline.Pipeline
	t      *testing.T
	device *tuntest.Device
	key    crypto.PrivateKey
	inner4 netip.Addr
	outer  netip.AddrPort
	cipher cipherCount
	ran    chan error
	rand   io.Reader
}

// newNode makes a node that runs; change may change its configuration.
func newNode(t *testing.T, network *udptest.Network, v variant, number byte, change func(*pipeline.Config)) *node {
	rng := rand.NewChaCha8([32]byte{number})
	n := &node{
		t: t, device: tuntest.New(tuntest.Config{Queues: int(v)}), inner4: netip.AddrFrom4([4]byte{10, 0, 0, number}),
		outer: netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, number}), 51820), ran: make(chan error, 1), rand: rng,
	}
	var err error
	if n.key, err = crypto.GeneratePrivateKey(rng); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	cfg := pipeline.Config{
		Device: n.device, Listen: network.Host(n.outer.Addr()).Listen, UDP: udp.Config{Port: n.outer.Port()}, NewCipher: n.cipher.make,
		Clock: func() time.Duration { return time.Since(start) + time.Hour }, Wall: time.Now, Rand: rng,
	}
	change(&cfg)
	if n.Pipeline, err = pipeline.New(cfg); err != nil {
		t.Fatal(err)
	}
	go func() { n.ran <- n.Run(context.Background()) }()
	return n
}

// end ends the node and checks that no key outlives it.
func (n *node) end() {
	n.t.Helper()
	if err := n.Close(); err != nil {
		n.t.Error(err)
	}
	if err := <-n.ran; err != nil {
		n.t.Error("Run:", err)
	}
	if n.cipher.made != n.cipher.wiped {
		n.t.Errorf("%d ciphers were made, %d wiped", n.cipher.made, n.cipher.wiped)
	}
}

// edit edits the node.
func (n *node) edit(f func(*pipeline.Edit)) {
	_ = n.Edit(func(e *pipeline.Edit) error { f(e); return nil })
}

func (n *node) counter(name string) uint64 {
	for _, c := range n.Counters() {
		if c.Name == name {
			return c.Value
		}
	}
	n.t.Fatalf("no counter %s", name)
	return 0
}

// wantPackets fails the test unless the node has written exactly these packets, in this order.
func (n *node) wantPackets(want ...[]byte) {
	n.t.Helper()
	got := n.device.TakeSegments()
	if len(got) != len(want) {
		n.t.Errorf("%d packets were delivered, want %d", len(got), len(want))
		return
	}
	for i := range want {
		if !bytes.Equal(got[i], want[i]) {
			n.t.Errorf("packet %d is\n%.120x, want\n%.120x", i, got[i], want[i])
		}
	}
}

// settle lets everything run that can without time passing; sleep lets virtual time pass, and then everything that fell due.
func settle() { synctest.Wait() }

func sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

// cipherCount makes ciphers and counts them and their wiping.
type cipherCount struct{ made, wiped int }

type countedCipher struct {
	aead.Cipher
	count *cipherCount
}

func (c *cipherCount) make(key *[aead.KeySize]byte) aead.Cipher {
	c.made++
	return countedCipher{aead.NewGeneric(key), c}
}

func (c countedCipher) Wipe() {
	c.count.wiped++
	c.Cipher.Wipe()
}

// datagram makes an inner packet of protocol 253 (RFC 3692) that tells its number.
func datagram(src, dst netip.Addr, number int) []byte {
	b := append([]byte{0x45, 0, 0, 24, 0, 0, 0x40, 0, 64, 253, 0, 0}, src.AsSlice()...)
	b = binary.BigEndian.AppendUint32(append(b, dst.AsSlice()...), uint32(number))
	sum := uint32(0)
	for i := 0; i < 20; i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	binary.BigEndian.PutUint16(b[10:], ^uint16(sum>>16+sum&0xffff))
	return b
}

// wantNone fails the test if the counter has counted anything.
func (n *node) wantNone(name string) {
	n.t.Helper()
	if got := n.counter(name); got != 0 {
		n.t.Errorf("%s is %d, want 0", name, got)
	}
}
