package pipeline

import (
	"bytes"
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/crypto/aead"
	"github.com/sluice-vpn/sluice/pipeline/udp"
	"github.com/sluice-vpn/sluice/pipeline/udp/udptest"
	"github.com/sluice-vpn/sluice/tun"
	"github.com/sluice-vpn/sluice/tun/ip"
	"github.com/sluice-vpn/sluice/tun/tuntest"
)

// world is two nodes, A and B, on a network in memory and virtual time.
type world struct {
	t       *testing.T
	network *udptest.Network
	a, b    *node
}

type node struct {
	*Pipeline
	device *tuntest.Device
	host   *udptest.Host
	key    crypto.PrivateKey
	inner4 netip.Addr
	inner6 netip.Addr
	outer  netip.AddrPort
	cipher *cipherCount
	ran    chan error
}

// variant is what of a world a test varies.
type variant struct {
	name    string
	workers int
	queues  int
	offload tun.Capabilities
	join    bool // datagrams arrive in runs
	v6      bool // outer IPv6
	psk     bool
}

var (
	plain   = variant{name: "plain", queues: 1}
	offload = variant{name: "offload", queues: 1, offload: tuntest.AllCapabilities, join: true}
	crewed  = variant{name: "workers", queues: 1, offload: tuntest.AllCapabilities, join: true, workers: 3}
	queues  = variant{name: "two queues", queues: 2, offload: tuntest.AllCapabilities, join: true}
	outer6  = variant{name: "outer IPv6 with preshared key", queues: 1, offload: tuntest.AllCapabilities, join: true, v6: true, psk: true}
	all     = []variant{plain, offload, crewed, queues, outer6}
)

// runWorld runs test in a bubble of virtual time and then checks what must always hold: both pipelines end in order, every
// cipher that was made was wiped, every goroutine has ended (or synctest fails).
func runWorld(t *testing.T, v variant, test func(w *world)) {
	runWorldWith(t, v, func(*Config) {}, test)
}

// runWorldWith is runWorld with another configuration of A.
func runWorldWith(t *testing.T, v variant, change func(*Config), test func(w *world)) {
	synctest.Test(t, func(t *testing.T) {
		w := &world{t: t, network: udptest.New(1)}
		w.network.JoinRuns(v.join)
		w.a = newNode(t, w.network, v, 1, change)
		w.b = newNode(t, w.network, v, 2)
		var psk crypto.PresharedKey
		if v.psk {
			psk = crypto.PresharedKey{1, 2, 3}
		}
		w.a.know(w.b, psk)
		w.b.know(w.a, psk)
		w.settle()
		test(w)
		w.end()
	})
}

// end checks what must always hold at the end.
func (w *world) end() {
	w.t.Helper()
	for _, n := range []*node{w.a, w.b} {
		if err := n.Close(); err != nil {
			w.t.Error(err)
		}
		if err := <-n.ran; err != nil {
			w.t.Error("Run:", err)
		}
		for _, s := range n.shards {
			if s.staged != 0 || s.outbound.full().any() {
				w.t.Errorf("shard %d still holds %d staged bytes, or runs to send", s.id, s.staged)
			}
		}
		if made, wiped := n.cipher.made, n.cipher.wiped; made != wiped {
			w.t.Errorf("%d ciphers were made, %d wiped", made, wiped)
		}
	}
}

// newNode makes a node that runs; with may change its configuration.
func newNode(t *testing.T, network *udptest.Network, v variant, number byte, with ...func(*Config)) *node {
	rng := rand.NewChaCha8([32]byte{number})
	n := &node{
		device: tuntest.New(tuntest.Config{Queues: v.queues, Capabilities: v.offload}),
		inner4: netip.AddrFrom4([4]byte{10, 0, 0, number}),
		inner6: netip.AddrFrom16([16]byte{0xfd, 15: number}),
		outer:  netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, number}), 51820),
		cipher: new(cipherCount),
		ran:    make(chan error, 1),
	}
	if v.v6 {
		n.outer = netip.AddrPortFrom(netip.AddrFrom16([16]byte{0x20, 1, 0xd, 0xb8, 15: number}), 51820)
	}
	n.host = network.Host(n.outer.Addr())
	var err error
	if n.key, err = crypto.GeneratePrivateKey(rng); err != nil {
		t.Fatal(err)
	}
	start := time.Now()
	cfg := Config{
		Device: n.device, Listen: n.host.Listen, UDP: udp.Config{Port: n.outer.Port()}, Workers: v.workers,
		NewCipher: n.cipher.make, Clock: func() time.Duration { return time.Since(start) + time.Hour }, Wall: time.Now, Rand: rng,
	}
	for _, change := range with {
		change(&cfg)
	}
	if n.Pipeline, err = New(cfg); err != nil {
		t.Fatal(err)
	}
	go func() { n.ran <- n.Run(context.Background()) }()
	return n
}

// know makes other a peer of n, at its address.
func (n *node) know(other *node, psk crypto.PresharedKey) {
	_ = n.Edit(func(e *Edit) error {
		e.SetPrivateKey(&n.key)
		p := e.AddPeer(other.key.Public())
		p.SetPresharedKey(&psk)
		p.SetEndpoint(other.outer)
		p.AddAllowedIP(netip.PrefixFrom(other.inner4, 32))
		p.AddAllowedIP(netip.PrefixFrom(other.inner6, 128))
		return nil
	})
}

// settle lets everything run that can without time passing.
func (w *world) settle() { synctest.Wait() }

// sleep lets virtual time pass, and then everything that fell due.
func (w *world) sleep(d time.Duration) {
	time.Sleep(d)
	synctest.Wait()
}

func (n *node) counter(name string) uint64 {
	for _, c := range n.Counters() {
		if c.Name == name {
			return c.Value
		}
	}
	panic("no counter " + name)
}

// wantCounter fails the test unless the counter has this value.
func (w *world) wantCounter(n *node, name string, want uint64) {
	w.t.Helper()
	if got := n.counter(name); got != want {
		w.t.Errorf("%s is %d, want %d", name, got, want)
	}
}

// wantPackets fails the test unless n has written exactly these packets, in this order.
func (w *world) wantPackets(n *node, want ...[]byte) {
	w.t.Helper()
	got := n.device.TakeSegments()
	if len(got) != len(want) {
		w.t.Errorf("%d packets were delivered, want %d", len(got), len(want))
		return
	}
	for i := range want {
		if !bytes.Equal(got[i], want[i]) {
			w.t.Errorf("packet %d is\n%.120x, want\n%.120x", i, got[i], want[i])
			return
		}
	}
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

// datagram makes an inner UDP packet with a payload and an identification that tell its number, so that those of a run
// are consecutive, as segmentation makes them.
func datagram(src, dst netip.Addr, number, size int) []byte {
	header := ip.IPv4HeaderLen
	if src.Is6() {
		header = ip.IPv6HeaderLen
	}
	b := make([]byte, header+ip.UDPHeaderLen+size)
	u := b[header:]
	binary.BigEndian.PutUint16(u[0:], 1000)
	binary.BigEndian.PutUint16(u[2:], 2000)
	binary.BigEndian.PutUint16(u[4:], uint16(len(u)))
	for i := range size {
		u[8+i] = byte(number + i*7)
	}
	if size >= 4 {
		binary.BigEndian.PutUint32(u[8:], uint32(number))
	}
	writeIPHeader(b, src, dst, ip.ProtocolUDP)
	if src.Is4() {
		binary.BigEndian.PutUint16(b[4:], uint16(number))
		ip.IPv4(b).SetChecksum()
	}
	binary.BigEndian.PutUint16(u[6:], ^ip.Sum(u, ip.PseudoSum(b, ip.ProtocolUDP, len(u))))
	return b
}

func writeIPHeader(b []byte, src, dst netip.Addr, protocol byte) {
	if src.Is4() {
		copy(b, []byte{0x45, 0, 0, 0, 0, 0, 0x40, 0, 64, protocol})
		from, to := src.As4(), dst.As4()
		copy(b[12:], from[:])
		copy(b[16:], to[:])
		ip.IPv4(b).SetTotalLen(len(b))
		ip.IPv4(b).SetChecksum()
		return
	}
	b[0], b[6], b[7] = 0x60, protocol, 64
	from, to := src.As16(), dst.As16()
	copy(b[8:], from[:])
	copy(b[24:], to[:])
	ip.IPv6(b).SetPayloadLen(len(b) - ip.IPv6HeaderLen)
}

// superpacket makes a TCP superpacket as a kernel with TSO would, and the segments that it stands for.
func superpacket(src, dst netip.Addr, seq uint32, payload, size int) (tuntest.Packet, [][]byte) {
	header, kind := ip.IPv4HeaderLen, tun.GSOTCPv4
	if src.Is6() {
		header, kind = ip.IPv6HeaderLen, tun.GSOTCPv6
	}
	b := make([]byte, header+ip.TCPHeaderLen+payload)
	tcp := ip.TCP(b[header:])
	binary.BigEndian.PutUint16(tcp[0:], 1000)
	binary.BigEndian.PutUint16(tcp[2:], 2000)
	binary.BigEndian.PutUint32(tcp[4:], seq)
	tcp[12] = 5 << 4
	tcp.SetFlags(ip.TCPAck)
	for i := range payload {
		tcp[ip.TCPHeaderLen+i] = byte(i * 31)
	}
	writeIPHeader(b, src, dst, ip.ProtocolTCP)
	tcp.SetChecksum(ip.PseudoSum(b, ip.ProtocolTCP, len(tcp)))
	p := tuntest.Packet{Data: b, Offload: tun.Offload{
		Type: kind, NeedsChecksum: true, ChecksumStart: uint16(header), ChecksumOffset: 16,
		HeaderLen: uint16(header + ip.TCPHeaderLen), SegmentSize: uint16(size),
	}}
	return p, tuntest.Cut(p)
}

// datagrams makes n packets from a to b.
func datagrams(src, dst netip.Addr, n, size int) (list [][]byte) {
	for i := range n {
		list = append(list, datagram(src, dst, i, size))
	}
	return list
}

// eachVariant runs test in a world of each variant.
func eachVariant(t *testing.T, test func(w *world)) {
	for _, v := range all {
		t.Run(fmt.Sprint(v.name), func(t *testing.T) { runWorld(t, v, test) })
	}
}
