package acceptance

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/bench/lab"
)

// Lines that delay, lose, repeat, reorder and damage what they carry: a direct connection comes up over them, and one over the
// relay, and TCP through both keeps every byte.
func TestBadLines(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	bad := lab.Impairment{
		Delay: 5 * time.Millisecond, Jitter: 5 * time.Millisecond, Loss: 0.01, Duplicate: 0.05, Reorder: 0.02, Corrupt: 0.01,
	}
	nodes := map[string]*member{}
	for name, kind := range map[string]lab.NAT{"gate": lab.Symmetric, "desk": lab.NoNAT, "laptop": lab.Symmetric} {
		site, err := v.internet.AddDistantSite(name+"-site", kind, bad)
		if err != nil {
			t.Fatal(err)
		}
		role := "client"
		if name == "gate" {
			role = "gateway"
		}
		nodes[name] = v.add(name, role, site)
	}
	g := nodes["gate"]
	ended := make(chan error, 2)
	for name, via := range map[string]string{"desk": "direct", "laptop": "relay"} {
		c := nodes[name]
		c.awaitConnection(2*patience, "gate", "connected", isUp(via))
		took := c.awaitLog("connection up", 1, "via="+via).text("after")
		go func() {
			begin := time.Now()
			err := exchange(c.site.Node, g.site.Node, g.overlay(), 1<<20)
			t.Logf("%s (%s): connected after %v, 1 MiB there and back in %v", name, via, took, time.Since(begin))
			ended <- err
		}()
	}
	for range 2 {
		if err := <-ended; err != nil {
			t.Error(err)
		}
	}
	if drops := g.counters(); drops["drop_replayed"] == 0 {
		t.Errorf("no datagram came twice: the lines are not bad: %v", drops)
	}
}

// exchange sends random bytes to an address in a namespace and has them echoed.
func exchange(from, to *lab.Namespace, at netip.Addr, size int) error {
	var listener net.Listener
	err := to.Run(func() (err error) { listener, err = net.Listen("tcp", netip.AddrPortFrom(at, 0).String()); return err })
	if err != nil {
		return err
	}
	defer listener.Close()
	go func() {
		if conn, err := listener.Accept(); err == nil {
			io.Copy(conn, conn)
			conn.Close()
		}
	}()
	var conn net.Conn
	err = from.Run(func() (err error) { conn, err = net.DialTimeout("tcp", listener.Addr().String(), patience); return err })
	if err != nil {
		return err
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(2 * patience))
	sent := make([]byte, size)
	rand.NewChaCha8([32]byte{1}).Read(sent)
	wrote := make(chan error, 1)
	go func() {
		_, err := conn.Write(sent)
		wrote <- errors.Join(err, conn.(*net.TCPConn).CloseWrite())
	}()
	got, err := io.ReadAll(conn)
	if err := errors.Join(err, <-wrote); err != nil {
		return err
	}
	if !bytes.Equal(got, sent) {
		return errors.New("other bytes came back than were sent")
	}
	return nil
}

// oneLine undoes that a text is broken into lines.
func oneLine(text string) string { return strings.Join(strings.Fields(text), " ") }
