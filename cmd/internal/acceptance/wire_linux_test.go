package acceptance

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"net"
	"net/netip"
	"os"
	"sync"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-vpn/sluice/bench/lab"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
)

// wire hears all that passes a namespace and counts what is looked for.
type wire struct {
	mu      sync.Mutex
	wanted  map[string][]byte // by a name for errors
	found   map[string]int
	packets int
}

func listenWire(t *testing.T, ns *lab.Namespace) *wire {
	t.Helper()
	w := &wire{wanted: map[string][]byte{}, found: map[string]int{}}
	var fd int
	err := ns.Run(func() (err error) {
		all := int(uint16(unix.ETH_P_ALL)<<8 | uint16(unix.ETH_P_ALL)>>8) // in network byte order
		fd, err = unix.Socket(unix.AF_PACKET, unix.SOCK_RAW|unix.SOCK_CLOEXEC|unix.SOCK_NONBLOCK, all)
		return err
	})
	if err != nil {
		t.Fatal(err)
	}
	_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, 32<<20)
	f := os.NewFile(uintptr(fd), "wire")
	done := make(chan struct{})
	t.Cleanup(func() { f.Close(); <-done })
	go func() {
		defer close(done)
		buffer := make([]byte, 1<<17)
		for {
			n, err := f.Read(buffer)
			if err != nil {
				return
			}
			w.look(buffer[:n])
		}
	}()
	return w
}

func (w *wire) look(packet []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.packets++
	for name, text := range w.wanted {
		if bytes.Contains(packet, text) {
			w.found[name]++
		}
	}
}

func (w *wire) want(name string, text []byte) {
	w.mu.Lock()
	defer w.mu.Unlock()
	w.wanted[name] = text
}

func (w *wire) count(name string) (n, packets int) {
	w.mu.Lock()
	defer w.mu.Unlock()
	return w.found[name], w.packets
}

// wantSecret has the wire listened for a node's secret in the forms that it might have.
func (w *wire) wantSecret(t *testing.T, m *member) {
	t.Helper()
	text, err := os.ReadFile(m.token)
	if err != nil {
		t.Fatal(err)
	}
	token, err := protocol.ParseToken(string(bytes.TrimSpace(text)))
	if err != nil {
		t.Fatal(err)
	}
	w.want(m.name+"'s token", bytes.TrimSpace(text))
	signIn := token.SignInKey()
	for name, secret := range map[string][]byte{"secret": token.Secret[:], "sign-in key": signIn[:], "identity key": token.Identity().Seed()} {
		for form, looked := range map[string][]byte{
			"": secret, " in base64": []byte(base64.RawStdEncoding.EncodeToString(secret)),
			" in URL base64": []byte(base64.RawURLEncoding.EncodeToString(secret)), " in hex": []byte(hex.EncodeToString(secret)),
		} {
			w.want(m.name+"'s "+name+form, looked)
		}
	}
}

// On the network between the sites there is nothing of what the tunnel carries, directly or over the relay, and none of the secrets
// that the portal gives.
func TestNothingReadableOnTheWire(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	w := listenWire(t, v.internet.Hub)
	marker, control := []byte("a text that only the two ends may read"), []byte("a text that everybody may read")
	w.want("the tunnel's text", marker)
	w.want("control", control)
	gs := v.site("gate-site", lab.Symmetric)
	machine, network, err := gs.AddHost("behind")
	if err != nil {
		t.Fatal(err)
	}
	defer machine.Close()
	server := serveEcho(t, machine, network.Addr().Next().Next())
	g := v.add("gate", "gateway", gs, "-routes", network.String())
	w.wantSecret(t, g)
	for name, kind := range map[string]lab.NAT{"direct": lab.Cone, "relay": lab.Restricted} {
		c := v.add(name, "client", v.site(name+"-site", kind))
		w.wantSecret(t, c)
		c.awaitLog("connected to the portal", 1)
		v.restart(c) // what it signs in with passes the wire once more, now that it is listened for
		c.awaitConnection(patience, "gate", "connected", isUp(name))
		if err := c.site.Node.Run(func() error { return echoOnce(server, marker) }); err != nil {
			t.Fatalf("%s: %v", name, err)
		}
		if s := c.connection("gate"); s.Via != name || s.RxBytes < uint64(100*len(marker)) {
			t.Errorf("%s: %s, %d bytes came", name, s.Explanation, s.RxBytes)
		}
		err := c.site.Node.Run(func() error {
			conn, err := net.Dial("udp", netip.AddrPortFrom(lab.HubAddr, 9).String())
			if err == nil {
				defer conn.Close()
				_, err = conn.Write(control)
			}
			return err
		})
		if err != nil {
			t.Fatal(err)
		}
	}
	await(t, patience, "the control text is seen", func() bool { n, _ := w.count("control"); return n >= 2 })
	for name := range w.wanted {
		if n, packets := w.count(name); n > 0 && name != "control" {
			t.Errorf("%s is in %d of %d packets", name, n, packets)
		}
	}
}

// serveEcho answers each connection with what it sends, for the test's time.
func serveEcho(t *testing.T, ns *lab.Namespace, at netip.Addr) (server netip.AddrPort) {
	t.Helper()
	server = netip.AddrPortFrom(at, 7)
	var l net.Listener
	if err := ns.Run(func() (err error) { l, err = net.Listen("tcp", server.String()); return err }); err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { l.Close() })
	go func() {
		for {
			conn, err := l.Accept()
			if err != nil {
				return
			}
			go func() {
				defer conn.Close()
				io.Copy(conn, conn)
			}()
		}
	}()
	return server
}

// echoOnce sends a text many times and reads it back.
func echoOnce(server netip.AddrPort, text []byte) error {
	conn, err := net.DialTimeout("tcp", server.String(), patience)
	if err != nil {
		return err
	}
	defer conn.Close()
	if err := conn.SetDeadline(time.Now().Add(patience)); err != nil {
		return err
	}
	sent := bytes.Repeat(text, 100)
	if _, err := conn.Write(sent); err != nil {
		return err
	}
	got := make([]byte, len(sent))
	if _, err := io.ReadFull(conn, got); err != nil {
		return err
	}
	if !bytes.Equal(got, sent) {
		return fmt.Errorf("another text came back")
	}
	return nil
}
