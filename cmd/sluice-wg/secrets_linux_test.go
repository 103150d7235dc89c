//go:build !race

package main

import (
	"bufio"
	"bytes"
	"crypto/ecdh"
	"crypto/rand"
	"encoding/base64"
	"encoding/binary"
	"encoding/hex"
	"fmt"
	"io"
	"maps"
	"net"
	"net/netip"
	"os"
	"slices"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/bench/lab"
	"github.com/sluice-vpn/sluice/crypto"
)

// Not with the race detector: under it handshakes take so long that the garbage collector moves stacks in their midst, which
// leaves keys (package documentation of crypto). .ci/run runs all tests without it as well.

// secretsStay is how long keys may stay in memory when nobody needs them any more.
const secretsStay = time.Second

// victim is a program whose memory is looked at.
type victim struct {
	t      *testing.T
	ns     *lab.Namespace
	name   string
	pid    int
	other  *witness
	tunnel net.Conn
}

const victimPort = 51830

func newVictim(t *testing.T) *victim {
	t.Helper()
	need(t, "ip")
	v := &victim{t: t, ns: newNamespace(t, "a"), name: newName()}
	v.pid = start(t, v.ns, nil, program(t), v.name)
	v.set("listen_port=" + strconv.Itoa(victimPort))
	if err := v.ns.AddAddr(v.name, netip.MustParsePrefix("10.9.0.1/24")); err != nil {
		t.Fatal(err)
	}
	if err := v.ns.SetUp(v.name); err != nil {
		t.Fatal(err)
	}
	awaitPort(t, v.ns, victimPort)
	v.other = newWitness(t, v.ns, netip.AddrPortFrom(netip.AddrFrom4([4]byte{127, 0, 0, 1}), victimPort))
	err := v.ns.Run(func() (err error) {
		v.tunnel, err = net.Dial("udp4", "10.9.0.2:9")
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { v.tunnel.Close() })
	return v
}

func (v *victim) set(lines ...string) {
	v.t.Helper()
	if got := ask(v.t, v.name, "set=1\n"+strings.Join(lines, "\n")+"\n\n"); got != "errno=0\n\n" {
		v.t.Fatalf("set: %q", got)
	}
}

func drawKey[K ~[32]byte](t *testing.T) (k K) {
	t.Helper()
	if _, err := rand.Read(k[:]); err != nil {
		t.Fatal(err)
	}
	return k
}

// meet gives the program a key and the witness as its only peer.
func (v *victim) meet(private crypto.PrivateKey, psk crypto.PresharedKey) {
	v.t.Helper()
	v.other.expect(private, psk)
	v.set("private_key="+hexKey(private), "replace_peers=true", "public_key="+hexKey(v.other.local.PublicKey()), "preshared_key="+hexKey(psk),
		"endpoint="+v.other.endpoint().String(), "allowed_ip=10.9.0.2/32")
}

// exchange sends packets through the tunnel, which come back.
func (v *victim) exchange(sizes ...int) {
	v.t.Helper()
	for _, size := range sizes {
		data := bytes.Repeat([]byte{'x'}, size)
		arrived, sent := false, time.Time{}
		v.other.serve(func() bool {
			if arrived {
				return true
			}
			// A packet may meet the message that confirms a session of the witness's making, and leave with the session before, which
			// the witness has forgotten.
			if time.Since(sent) > time.Second {
				sent = time.Now()
				if _, err := v.tunnel.Write(data); err != nil {
					v.t.Fatal(err)
				}
			}
			v.tunnel.SetReadDeadline(time.Now().Add(time.Millisecond))
			n, err := v.tunnel.Read(make([]byte, 2048))
			arrived = err == nil && n == size
			return arrived
		})
	}
}

// talk makes sessions in both roles, with data in both directions.
func (v *victim) talk() {
	v.t.Helper()
	v.exchange(100, 1300, 1300, 20)
	for range 3 {
		v.other.serve(v.other.initiate())
		v.exchange(100, 1300, 1300, 20)
	}
}

// scan is what a search found: how often each secret stands in the memory, by what it is.
type scan map[string]int

func (s scan) String() string {
	var b strings.Builder
	for _, name := range slices.Sorted(maps.Keys(s)) {
		fmt.Fprintf(&b, "\n\t%d x %s", s[name], name)
	}
	return b.String()
}

// needle is 16 bytes of a secret, or of its text, and what follows where all of it is.
type needle struct {
	half, rest []byte
	name       string
}

func needlesOf(secrets map[[32]byte]string) map[[8]byte][]needle {
	needles := make(map[[8]byte][]needle)
	add := func(b []byte, half int, name string) {
		needles[[8]byte(b)] = append(needles[[8]byte(b)], needle{b[:half], b[half:], name})
	}
	for secret, name := range secrets {
		text := hex.EncodeToString(secret[:])
		add(secret[:], 16, name)
		add(secret[16:], 16, name)
		add([]byte(text), 32, name+" in hexadecimal")
		add([]byte(strings.ToUpper(text)), 32, name+" in hexadecimal")
		add([]byte(base64.StdEncoding.EncodeToString(secret[:])), 20, name+" in base64")
	}
	return needles
}

// search looks for 32-byte secrets, raw or as text, in all that the program may write to. Ephemeral private keys are looked
// for by the public keys that belong to them. Halves that stand alone are counted apart: in memory that programs write they
// would be a key that was overwritten by half, but vector registers have 16 bytes of a key each, and the system saves them on the
// stack of a signal.
func (v *victim) search(secrets map[[32]byte]string) (whole scan, halves int) {
	v.t.Helper()
	needles := needlesOf(secrets)
	var first [1 << 16]bool
	for b := range needles {
		first[binary.LittleEndian.Uint16(b[:])] = true
	}
	whole = make(scan)
	tried := make(map[[32]byte]bool)
	v.eachRange(func(memory []byte) {
		for at := 0; at+32 <= len(memory); at++ {
			if first[binary.LittleEndian.Uint16(memory[at:])] {
				for _, n := range needles[[8]byte(memory[at:])] {
					switch after, found := bytes.CutPrefix(memory[at:], n.half); {
					case found && len(n.rest) > 0 && bytes.HasPrefix(after, n.rest):
						whole[n.name]++
						if len(n.half) == 16 {
							halves-- // the second half of a raw key is met by itself as well
						}
					case found:
						halves++
					}
				}
			}
			if window := [32]byte(memory[at:]); at%4 == 0 && clamped(window[:]) && !tried[window] {
				tried[window] = true
				if k, err := ecdh.X25519().NewPrivateKey(window[:]); err == nil && v.other.seen[[32]byte(k.PublicKey().Bytes())] {
					whole["ephemeral private key"]++
				}
			}
		}
	})
	return whole, halves
}

// eachRange reads the memory that the program may write to.
func (v *victim) eachRange(visit func(memory []byte)) {
	v.t.Helper()
	mem, err := os.Open(fmt.Sprintf("/proc/%d/mem", v.pid))
	if err != nil {
		v.t.Fatal(err)
	}
	defer mem.Close()
	list, err := os.ReadFile(fmt.Sprintf("/proc/%d/maps", v.pid))
	if err != nil {
		v.t.Fatal(err)
	}
	read := 0
	for lines := bufio.NewScanner(bytes.NewReader(list)); lines.Scan(); {
		var from, to uint64
		var rights string
		if _, err := fmt.Sscanf(lines.Text(), "%x-%x %s", &from, &to, &rights); err != nil {
			v.t.Fatal(err)
		}
		if !strings.HasPrefix(rights, "rw") {
			continue
		}
		const piece = 1 << 20
		buf := make([]byte, piece)
		for at := from; at < to; at += piece {
			n, err := mem.ReadAt(buf[:min(uint64(len(buf)), to-at)], int64(at))
			if n == 0 && err != nil {
				continue // gone since
			}
			read += n
			visit(buf[:n])
		}
	}
	if read < 1<<20 {
		v.t.Fatalf("%d bytes of memory were read: that is not all", read)
	}
}

// clampedKey is a private key in the form that is computed with.
func clampedKey(k crypto.PrivateKey) crypto.PrivateKey {
	k[0], k[31] = k[0]&248, k[31]&127|64
	return k
}

// refuse sends requests that fail behind a key, or in it, and returns the keys that they held.
func (v *victim) refuse() map[[32]byte]string {
	v.t.Helper()
	keys := make(map[[32]byte]string)
	for _, request := range []string{
		"set=1\nprivate_key=%s0\n\n", "set=1\nprivate_key=%.63sx\n\n", "set=1\n%s=1\n\n", "set=1\n%s\n\n", "%s\n\n",
		"set=1\nprivate_key=%s\nlisten_port=x\n\n", "set=1\nprivate_key=%s\n", "set=1\nprivate_key=%s",
		"set=1\npublic_key=" + hexKey(v.other.local.PublicKey()) + "\nupdate_only=true\npreshared_key=%s\nendpoint=x\n\n",
	} {
		key := clampedKey(drawKey[crypto.PrivateKey](v.t))
		keys[key] = "key of a refused request"
		conn, err := net.Dial("unix", sockets+v.name+".sock")
		if err != nil {
			v.t.Fatal(err)
		}
		fmt.Fprintf(conn, request, hexKey(key))
		conn.(*net.UnixConn).CloseWrite()
		conn.SetReadDeadline(time.Now().Add(patient))
		if answer, err := io.ReadAll(conn); err != nil || bytes.HasPrefix(answer, []byte("errno=0")) {
			v.t.Errorf("%q: %q, %v", request, answer, err)
		}
		conn.Close()
	}
	return keys
}

// registers is how many halves of keys may stand alone: what the vector registers of a thread hold when a signal comes while it
// seals or opens. The package documentation of crypto says why, and that this is what Go leaves.
const registers = 16

// wantOnce fails the test if a secret that is in use stands in memory more than once.
func (v *victim) wantOnce(live map[[32]byte]string) {
	v.t.Helper()
	found, halves := v.search(live)
	v.t.Logf("in use:%v\n\t%d x a half alone", found, halves)
	for _, name := range live {
		if found[name] != 1 {
			v.t.Errorf("%s: %d copies, want 1", name, found[name])
		}
	}
	if len(found) != len(live) || halves > registers {
		v.t.Errorf("%d secrets in use, %d half alone: found%v", len(live), halves, found)
	}
}

// wantNone fails the test if secrets are in memory.
func (v *victim) wantNone(secrets map[[32]byte]string, of string) {
	v.t.Helper()
	found, halves := v.search(secrets)
	v.t.Logf("%s: %d x a half alone", of, halves)
	if len(found) > 0 || halves > registers {
		v.t.Errorf("secrets %s are in memory after %v:%v\n\t%d x a half alone", of, secretsStay, found, halves)
	}
}

// TestSecretsLeaveMemory runs handshakes and data in both roles, and looks into the program's memory: what is in use stands
// there once, what was retired not at all. The ways to retire keys are those of an administrator.
func TestSecretsLeaveMemory(t *testing.T) {
	v := newVictim(t)
	retired := v.refuse()
	var live, earlier map[[32]byte]string
	for range 3 { // a key and a peer in the place of others
		earlier = maps.Clone(retired)
		private, psk := drawKey[crypto.PrivateKey](t), drawKey[crypto.PresharedKey](t)
		v.meet(private, psk)
		v.talk()
		for range 3 {
			ask(t, v.name, "get=1\n\n")
		}
		maps.Copy(retired, v.refuse())
		v.set("private_key=" + hexKey(private)) // a refused request was applied up to the line that failed
		v.set("public_key="+hexKey(v.other.local.PublicKey()), "preshared_key="+hexKey(psk))
		v.talk()
		live = map[[32]byte]string{clampedKey(private): "private key", psk: "preshared key"}
		for name, key := range v.other.session {
			live[key] = name
		}
		retired[private] = "private key as given"
		maps.Copy(retired, live)
		maps.Copy(retired, v.other.secrets)
	}
	v.wantOnce(live)
	time.Sleep(secretsStay)
	v.wantNone(earlier, "of earlier peers")
	v.set("replace_peers=true", "private_key="+hexKey(drawKey[crypto.PrivateKey](t)))
	time.Sleep(secretsStay)
	v.wantNone(retired, "of a peer that was removed and a private key that was replaced")
}

// TestSecretsLeaveMemoryDown: an interface that is down has no sessions.
func TestSecretsLeaveMemoryDown(t *testing.T) {
	v := newVictim(t)
	private, psk := drawKey[crypto.PrivateKey](t), drawKey[crypto.PresharedKey](t)
	v.meet(private, psk)
	v.talk()
	must(t, v.ns, "ip", "link", "set", v.name, "down")
	time.Sleep(secretsStay)
	gone := maps.Clone(v.other.secrets)
	delete(gone, v.other.session["ss"])
	v.wantNone(gone, "of an interface that is down")
	v.wantOnce(map[[32]byte]string{clampedKey(private): "private key", psk: "preshared key"})
}

// TestSecretsLeaveMemoryReplaced: keys are replaced while the peer stays, whose handshakes fail from then on, in both roles.
func TestSecretsLeaveMemoryReplaced(t *testing.T) {
	v := newVictim(t)
	private, psk := drawKey[crypto.PrivateKey](t), drawKey[crypto.PresharedKey](t)
	v.meet(private, psk)
	v.talk()
	next, nextPSK := drawKey[crypto.PrivateKey](t), drawKey[crypto.PresharedKey](t)
	v.set("public_key="+hexKey(v.other.local.PublicKey()), "preshared_key="+hexKey(nextPSK))
	v.set("private_key=" + hexKey(next))
	v.other.expect(next, psk)
	answered, seen := len(v.other.secrets), len(v.other.seen)
	if _, err := v.tunnel.Write([]byte{'x'}); err != nil {
		t.Fatal(err)
	}
	v.other.serve(func() bool { return len(v.other.secrets) > answered && len(v.other.seen) > seen })
	seen = len(v.other.seen)
	done := v.other.initiate()
	v.other.serve(func() bool { return done() || len(v.other.seen) > seen })
	time.Sleep(secretsStay)
	retired := map[[32]byte]string{private: "private key as given", clampedKey(private): "private key", psk: "preshared key"}
	ephemerals := v.other.seen
	v.other.seen = nil // a handshake that waits for the right response needs its own
	v.wantNone(retired, "that were replaced")
	v.wantOnce(map[[32]byte]string{clampedKey(next): "private key", nextPSK: "preshared key"})
	v.other.seen = ephemerals
	v.set("replace_peers=true")
	time.Sleep(secretsStay)
	maps.Copy(retired, v.other.secrets)
	retired[nextPSK] = "preshared key"
	v.wantNone(retired, "of a peer whose handshakes failed")
	v.wantOnce(map[[32]byte]string{clampedKey(next): "private key"})
}
