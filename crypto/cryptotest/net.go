// Package cryptotest joins WireGuard protocol cores by a link that loses, delays, repeats and reorders, in virtual time.
//
// A [Net] is the link and the clock. A [Node] is one crypto.Local with the smallest data plane that works: a [Remote] per
// peer, with staged packets, stamps and a lane that seals and opens at once. Nothing runs by itself: [Net.Run] moves the
// clock from one event to the next, where an event is a datagram that arrives or a timeout that falls due. With the same
// seed the same things happen at the same nanoseconds, so tests can ask for exact times.
//
// A Net also watches what no data plane may do: it panics when a counter is sent twice under one key.
package cryptotest

import (
	"cmp"
	"math/rand/v2"
	"net/netip"
	"slices"
	"time"

	"golang.org/x/crypto/chacha20poly1305"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/crypto/aead"
)

// Link is what happens to datagrams. The zero value delivers each once, at once.
type Link struct {
	Latency   time.Duration // of every datagram
	Jitter    time.Duration // added at random, up to this: the source of reordering
	Loss      float64       // the share that is lost, 0 to 1
	Duplicate float64       // the share that arrives twice, 0 to 1
}

// Datagram is what goes over the link. Its bytes are frozen.
type Datagram struct {
	From, To netip.AddrPort
	Bytes    []byte
}

// Net is a clock, a link and the nodes on it. It has no locks: one goroutine uses it and everything on it.
type Net struct {
	Link Link
	// Tap, if set, sees every datagram as it is sent, before the link's fate strikes; true drops it.
	Tap func(d Datagram) (drop bool)
	// NewCipher makes the session ciphers of nodes that join from now on. NewNet sets it to the package's NewCipher.
	NewCipher func(key *[aead.KeySize]byte) aead.Cipher

	now    time.Duration
	random *rand.ChaCha8
	dice   *rand.Rand
	nodes  []*Node
	flight []arrival
	sent   map[nonce]bool
}

type arrival struct {
	at time.Duration
	Datagram
}

// nonce names a transport packet on this link: receiver address, receiver index and counter.
type nonce struct {
	to      netip.AddrPort
	index   uint32
	counter uint64
}

// Epoch is the wall-clock time at Net.Now() == 0.
var Epoch = time.Date(2024, 2, 29, 12, 0, 0, 0, time.UTC)

// NewNet makes a link. The clock begins at one hour, so that a forgotten zero shows.
func NewNet(seed uint64, link Link) *Net {
	var key [32]byte
	for i := range 8 {
		key[i] = byte(seed >> (8 * i))
	}
	return &Net{
		Link: link, NewCipher: NewCipher, now: time.Hour, random: rand.NewChaCha8(key), dice: rand.New(rand.NewPCG(seed, 1)),
		sent: make(map[nonce]bool),
	}
}

// Now returns the virtual time.
func (n *Net) Now() time.Duration { return n.now }

// Wall returns the virtual wall-clock time.
func (n *Net) Wall() time.Time { return Epoch.Add(n.now) }

// InFlight returns how many datagrams are under way.
func (n *Net) InFlight() int { return len(n.flight) }

// Read draws from the Net's seeded random source: it is the Rand of the nodes.
func (n *Net) Read(b []byte) (int, error) { return n.random.Read(b) }

// Run lets d pass.
func (n *Net) Run(d time.Duration) { n.RunUntil(n.now+d, nil) }

// RunUntil lets time pass until done returns true, which is asked after each event, or until the time end. It reports
// whether done returned true.
func (n *Net) RunUntil(end time.Duration, done func() bool) bool {
	for {
		if done != nil && done() {
			return true
		}
		at, step := n.nextEvent()
		if step == nil || at > end {
			n.now = max(n.now, end)
			return false
		}
		n.now = max(n.now, at)
		step()
	}
}

// nextEvent finds what happens next; deliveries go before timeouts of the same time.
func (n *Net) nextEvent() (at time.Duration, step func()) {
	if len(n.flight) > 0 {
		at, step = n.flight[0].at, n.deliver
	}
	for _, node := range n.nodes {
		if node.Asleep {
			continue
		}
		for _, r := range node.remotes {
			t, _ := r.Peer.NextTimeout(r.Activity)
			if t != 0 && (step == nil || t < at) {
				at, step = t, func() { r.timeout() }
			}
		}
	}
	return at, step
}

func (n *Net) deliver() {
	d := n.flight[0].Datagram
	n.flight = n.flight[1:]
	for _, node := range n.nodes {
		if node.Addr == d.To && !node.Asleep {
			node.Receive(d.From, slices.Clone(d.Bytes))
		}
	}
}

// Send puts a datagram on the link. It copies b.
func (n *Net) Send(from, to netip.AddrPort, b []byte) {
	n.watch(to, b)
	d := Datagram{From: from, To: to, Bytes: slices.Clone(b)}
	if n.Tap != nil && n.Tap(d) {
		return
	}
	if n.dice.Float64() < n.Link.Loss {
		return
	}
	n.enqueue(d)
	if n.dice.Float64() < n.Link.Duplicate {
		n.enqueue(d)
	}
}

// watch panics when a nonce is used twice.
func (n *Net) watch(to netip.AddrPort, b []byte) {
	index, counter, ok := crypto.ParseTransport(b)
	if !ok {
		return
	}
	key := nonce{to, index, counter}
	if n.sent[key] {
		panic("cryptotest: a counter was sent twice")
	}
	n.sent[key] = true
}

func (n *Net) enqueue(d Datagram) {
	at := n.now + n.Link.Latency
	if n.Link.Jitter > 0 {
		at += time.Duration(n.dice.Int64N(int64(n.Link.Jitter)))
	}
	i, _ := slices.BinarySearchFunc(n.flight, at+1, func(a arrival, t time.Duration) int { return cmp.Compare(a.at, t) })
	n.flight = slices.Insert(n.flight, i, arrival{at, d})
}

// Cipher is the plainest aead.Cipher, straight on golang.org/x/crypto.
type Cipher struct{ key [aead.KeySize]byte }

// NewCipher makes a Cipher; it copies the key.
func NewCipher(key *[aead.KeySize]byte) aead.Cipher { return &Cipher{*key} }

// Wiped reports whether the key has been overwritten.
func (c *Cipher) Wiped() bool { return c.key == [aead.KeySize]byte{} }

// Seal obeys aead.Cipher.
func (c *Cipher) Seal(run []aead.Packet) {
	a, _ := chacha20poly1305.New(c.key[:]) // the key has its length
	for i := range run {
		p := &run[i]
		nonce := nonceOf(p.Counter)
		padded := make([]byte, len(p.Dst)-aead.Overhead)
		copy(padded, p.Src)
		a.Seal(p.Dst[:0], nonce[:], padded, nil)
	}
}

// Open obeys aead.Cipher.
func (c *Cipher) Open(run []aead.Packet) (ok int) {
	a, _ := chacha20poly1305.New(c.key[:]) // the key has its length
	for i := range run {
		p := &run[i]
		nonce := nonceOf(p.Counter)
		plain, err := a.Open(nil, nonce[:], p.Src, nil)
		if p.OK = err == nil; p.OK {
			copy(p.Dst, plain)
			ok++
		}
	}
	return ok
}

// Wipe obeys aead.Cipher.
func (c *Cipher) Wipe() { clear(c.key[:]) }

func nonceOf(counter uint64) (nonce [12]byte) {
	for i := range 8 {
		nonce[4+i] = byte(counter >> (8 * i))
	}
	return nonce
}
