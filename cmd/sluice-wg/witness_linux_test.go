//go:build !race

package main

import (
	"bytes"
	"crypto/ecdh"
	"crypto/hkdf"
	"crypto/rand"
	"encoding/binary"
	"errors"
	"hash"
	"net"
	"net/netip"
	"os"
	"testing"
	"time"

	"golang.org/x/crypto/blake2s"

	"github.com/sluice-vpn/sluice/bench/lab"
	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/crypto/aead"
)

// witness is a WireGuard peer in the test's own memory. It answers what the program sends, and since it is one of the
// two who know, it notes every secret that the program must have had: results of Diffie-Hellman, chaining keys, session keys.
type witness struct {
	t       *testing.T
	conn    *net.UDPConn
	program netip.AddrPort
	private *ecdh.PrivateKey
	local   *crypto.Local
	peer    *crypto.Peer
	psk     crypto.PresharedKey

	theirs     *ecdh.PublicKey
	ephemerals map[[32]byte]*ecdh.PrivateKey // ours by their public keys
	initiation [32]byte                      // ephemeral public key of the newest initiation
	seen       map[[32]byte]bool             // ephemeral public keys of the program
	session    map[string][32]byte           // of the newest handshake
	secrets    map[[32]byte]string           // of all handshakes, with what they are
	confirmed  int                           // sessions that carried data
}

func newWitness(t *testing.T, ns *lab.Namespace, program netip.AddrPort) *witness {
	t.Helper()
	c := &witness{
		t: t, program: program, ephemerals: make(map[[32]byte]*ecdh.PrivateKey), seen: make(map[[32]byte]bool),
		secrets: make(map[[32]byte]string),
	}
	err := ns.Run(func() (err error) {
		c.conn, err = net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { c.conn.Close() })
	key, err := crypto.GeneratePrivateKey(rand.Reader)
	if err != nil {
		t.Fatal(err)
	}
	c.private = c.key(key[:])
	c.local, err = crypto.NewLocal(crypto.Config{Rand: c, Wall: time.Now})
	if err != nil {
		t.Fatal(err)
	}
	c.local.SetPrivateKey(c.now(), &key)
	return c
}

// Read is the source of randomness of our side. Draws of 32 bytes are ephemeral keys.
func (c *witness) Read(b []byte) (int, error) {
	n, err := rand.Read(b)
	if len(b) == 32 {
		k := c.key(b)
		c.ephemerals[[32]byte(k.PublicKey().Bytes())] = k
	}
	return n, err
}

func (c *witness) key(b []byte) *ecdh.PrivateKey {
	k, err := ecdh.X25519().NewPrivateKey(b)
	if err != nil {
		c.t.Fatal(err)
	}
	return k
}

var began = time.Now()

func (c *witness) now() time.Duration { return time.Since(began) + time.Hour }

func (c *witness) endpoint() netip.AddrPort { return c.conn.LocalAddr().(*net.UDPAddr).AddrPort() }

// expect makes the program the only peer, under this key and preshared key.
func (c *witness) expect(program crypto.PrivateKey, psk crypto.PresharedKey) {
	c.t.Helper()
	c.theirs, c.psk = c.key(program[:]).PublicKey(), psk
	c.forget()
}

// initiate begins anew, as after a restart, and so without delay; done tells when there is a session. The program drops an
// initiation that comes less than 20 ms after another one.
func (c *witness) initiate() (done func() bool) {
	var tried time.Time
	return func() bool {
		if c.peer.Sending() != nil && !tried.IsZero() {
			return true
		}
		if time.Since(tried) > time.Second/4 {
			tried = time.Now()
			c.forget()
			c.peer.Want(c.now())
			c.drain()
		}
		return false
	}
}

// forget makes the program a peer that nothing is known of.
func (c *witness) forget() {
	if c.peer != nil {
		c.local.RemovePeer(c.now(), c.peer)
		c.drain()
	}
	var err error
	c.peer, err = c.local.AddPeer(c.now(), crypto.PeerConfig{PublicKey: crypto.PublicKey(c.theirs.Bytes()), PresharedKey: c.psk})
	if err != nil {
		c.t.Fatal(err)
	}
}

// serve answers until done says so.
func (c *witness) serve(done func() bool) {
	c.t.Helper()
	buf := make([]byte, 1<<16)
	for end := time.Now().Add(patient); !done(); {
		c.conn.SetReadDeadline(time.Now().Add(10 * time.Millisecond))
		n, err := c.conn.Read(buf)
		if err == nil {
			c.receive(buf[:n])
		} else if !errors.Is(err, os.ErrDeadlineExceeded) {
			c.t.Fatal(err)
		}
		if time.Now().After(end) {
			c.t.Fatal("the program does not answer")
		}
	}
}

func (c *witness) receive(msg []byte) {
	if kind, _ := crypto.Classify(msg); kind == crypto.MessageTransport {
		c.receiveData(msg)
		return
	}
	c.note(msg, true)
	c.local.Handle(c.now(), crypto.Source{Addr: c.program}, msg, nil)
	c.drain()
}

// receiveData sends a packet back to where it came from.
func (c *witness) receiveData(msg []byte) {
	index, counter, _ := crypto.ParseTransport(msg)
	k := c.local.Table().Lookup(index)
	if k == nil {
		return
	}
	body := msg[crypto.SizeTransportHeader:]
	if k.OpenRun([]aead.Packet{{Dst: body, Src: body, Counter: counter}}) != 1 {
		return
	}
	if k.MarkConfirmed() {
		c.peer.Confirm(c.now(), k)
		c.drain()
	}
	packet := body[:len(body)-aead.Overhead]
	if len(packet) < 28 || packet[0]>>4 != 4 || c.peer.Sending() == nil {
		return
	}
	answer := bytes.Clone(packet) // the checksums stay right when sources and destinations change places
	copy(answer[12:16], packet[16:20])
	copy(answer[16:20], packet[12:16])
	copy(answer[20:22], packet[22:24])
	copy(answer[22:24], packet[20:22])
	c.seal(c.peer.Sending(), answer)
	c.confirmed++
}

func (c *witness) seal(k *crypto.Keypair, payload []byte) {
	counter, _ := k.Reserve(1)
	msg := make([]byte, crypto.SizeTransportHeader+len(payload)+aead.Overhead)
	crypto.PutTransportHeader(msg, k.RemoteIndex, counter)
	k.SealRun([]aead.Packet{{Dst: msg[crypto.SizeTransportHeader:], Src: payload, Counter: counter}})
	c.send(msg)
}

func (c *witness) send(msg []byte) {
	if _, err := c.conn.WriteToUDPAddrPort(msg, c.program); err != nil {
		c.t.Fatal(err)
	}
}

func (c *witness) drain() {
	for {
		out, ok := c.peer.Poll()
		if !ok {
			return
		}
		switch out.Kind {
		case crypto.SendMessage:
			c.note(out.Message, false)
			c.send(out.Message)
		case crypto.SessionUp:
			if out.Initiator {
				c.seal(out.Keypair, nil)
			}
		}
	}
}

// note takes down what a handshake message tells. The formats are those of the WireGuard paper, 5.4.2 and 5.4.3.
func (c *witness) note(msg []byte, fromProgram bool) {
	switch kind, _ := crypto.Classify(msg); kind {
	case crypto.MessageInitiation:
		c.initiation = [32]byte(msg[8:40])
		if fromProgram {
			c.seen[c.initiation] = true
		}
	case crypto.MessageResponse:
		response := [32]byte(msg[12:44])
		if fromProgram {
			c.seen[response] = true
		}
		c.derive(response, fromProgram)
	}
}

// derive runs the key schedule of Noise_IKpsk2 (paper, 5.4.2 to 5.4.5) and notes everything that is secret in it.
func (c *witness) derive(response [32]byte, weInitiated bool) {
	dh := func(private *ecdh.PrivateKey, public []byte) []byte {
		point, err := ecdh.X25519().NewPublicKey(public)
		if err != nil {
			c.t.Fatal(err)
		}
		shared, err := private.ECDH(point)
		if err != nil {
			c.t.Fatal(err)
		}
		return shared
	}
	static := c.theirs.Bytes()
	var es, ee, se []byte
	if weInitiated {
		own := c.ephemerals[c.initiation]
		es, ee, se = dh(own, static), dh(own, response[:]), dh(c.private, response[:])
	} else {
		own := c.ephemerals[response]
		es, ee, se = dh(c.private, c.initiation[:]), dh(own, c.initiation[:]), dh(own, static)
	}
	ss := dh(c.private, static)
	for name, secret := range map[string][]byte{"es": es, "ee": ee, "se": se, "ss": ss} {
		c.secrets[[32]byte(secret)] = "Diffie-Hellman " + name
	}
	first := blake2s.Sum256([]byte("Noise_IKpsk2_25519_ChaChaPoly_BLAKE2s"))
	chain := first[:]
	mix := func(input []byte, outputs int, names ...string) [][]byte {
		out := c.kdf(chain, input, outputs, names != nil)
		for i, name := range names {
			c.secrets[[32]byte(out[i])] = name
		}
		chain = out[0]
		return out
	}
	mix(c.initiation[:], 1)
	mix(es, 2, "chaining key", "handshake key")
	mix(ss, 2, "chaining key", "handshake key")
	mix(response[:], 1, "chaining key")
	mix(ee, 1, "chaining key")
	mix(se, 1, "chaining key")
	mix(c.psk[:], 3, "chaining key", "psk's hash", "handshake key")
	keys := mix(nil, 2, "session key", "session key")
	c.session = map[string][32]byte{"initiator's session key": [32]byte(keys[0]), "responder's session key": [32]byte(keys[1]), "ss": [32]byte(ss)}
}

// kdf is KDFn of the paper, which is HKDF with an empty info.
func (c *witness) kdf(chain, input []byte, outputs int, secret bool) (out [][]byte) {
	newHash := func() hash.Hash { h, _ := blake2s.New256(nil); return h }
	extracted, err := hkdf.Extract(newHash, input, chain)
	if err != nil {
		c.t.Fatal(err)
	}
	if secret {
		c.secrets[[32]byte(extracted)] = "key of a key derivation"
	}
	all, err := hkdf.Expand(newHash, extracted, "", 32*outputs)
	if err != nil {
		c.t.Fatal(err)
	}
	for i := range outputs {
		out = append(out, all[32*i:32*i+32])
	}
	return out
}

// clamped reports whether b could be a private key that somebody drew at random, and not text or numbers.
func clamped(b []byte) bool {
	if b[0]&7 != 0 || b[31]&0xc0 != 0x40 {
		return false
	}
	zeros := 0
	for at := 0; at < 32; at += 8 {
		if v := binary.LittleEndian.Uint64(b[at:]); v>>32 == 0 || v<<32 == 0 || v>>48 == 0 {
			zeros++
		}
	}
	return zeros == 0
}
