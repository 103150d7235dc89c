package names

import (
	"net"
	"net/netip"
	"slices"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

var elsewhere = netip.MustParseAddr("192.0.2.7")

// nameServer is a gateway's: it has one address for every name, by UDP and TCP at the same port, and is silent if it is told to.
func nameServer(t *testing.T, at string, silent bool) netip.AddrPort {
	t.Helper()
	udp, err := net.ListenPacket("udp", at+":0")
	if err != nil {
		t.Skipf("SKIPPED: no name server is asked: this system has no %s: %v", at, err)
	}
	t.Cleanup(func() { udp.Close() })
	tcp, err := net.Listen("tcp", udp.LocalAddr().String())
	if err != nil {
		t.Skipf("SKIPPED: no name server is asked by TCP: %v", err)
	}
	t.Cleanup(func() { tcp.Close() })
	answer := func(query []byte) []byte {
		var m dnsmessage.Message
		if silent || m.Unpack(query) != nil {
			return nil
		}
		m.Response = true
		m.Answers = []dnsmessage.Resource{{
			Header: dnsmessage.ResourceHeader{Name: m.Questions[0].Name, Class: dnsmessage.ClassINET}, Body: &dnsmessage.AResource{A: elsewhere.As4()},
		}}
		text, _ := m.Pack()
		return text
	}
	go func() {
		buffer := make([]byte, 1500)
		for {
			n, from, err := udp.ReadFrom(buffer)
			if err != nil {
				return
			}
			if text := answer(buffer[:n]); text != nil {
				udp.WriteTo([]byte("short"), from) // is no answer
				udp.WriteTo(text, from)
			}
		}
	}()
	go func() {
		for {
			c, err := tcp.Accept()
			if err != nil {
				return
			}
			if query, err := readMessage(c); err == nil && !silent {
				writeMessage(c, answer(query))
			}
			if !silent {
				c.Close()
			}
		}
	}()
	return udp.LocalAddr().(*net.UDPAddr).AddrPort()
}

// askFor asks for a name from an address that may; none: there was no answer.
func askFor(t *testing.T, network string, at netip.AddrPort, name string, wait time.Duration) []netip.Addr {
	t.Helper()
	d := net.Dialer{LocalAddr: &net.UDPAddr{IP: at.Addr().AsSlice()}, Timeout: wait}
	if network == "tcp" {
		d.LocalAddr = &net.TCPAddr{IP: at.Addr().AsSlice()}
	}
	conn, err := d.Dial(network, at.String())
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(wait))
	q := query(t, name, dnsmessage.TypeA, false)
	text := make([]byte, 1500)
	if network == "tcp" {
		if err := writeMessage(conn, q); err != nil {
			t.Fatal(err)
		}
		text, err = readMessage(conn)
	} else {
		var n int
		conn.Write(q)
		n, err = conn.Read(text)
		text = text[:n]
	}
	var m dnsmessage.Message
	if err != nil {
		return nil
	}
	if err := m.Unpack(text); err != nil {
		t.Fatal(err)
	}
	return addresses(m)
}

// TestRelay: a gateway's name servers are asked for what is outside of the zone, the next one where one is silent, and for nothing inside; what is
// under way does not hold up the end.
func TestRelay(t *testing.T) {
	own, dead := netip.MustParseAddr("127.0.0.76"), netip.MustParseAddrPort("127.0.0.78:9") // at dead nobody listens
	serving := func(resolvers ...netip.AddrPort) *server {
		v := &view{own: []netip.Addr{own}, zone: testZone, resolvers: resolvers}
		s, err := listen(v.own, true, func() *view { return v })
		if err != nil {
			t.Skipf("SKIPPED: the server is not tried: this system has no %v: %v", own, err)
		}
		return s
	}
	s := serving(dead, nameServer(t, "127.0.0.77", false))
	defer s.close()
	for _, network := range []string{"udp", "tcp"} {
		for name, want := range map[string]netip.Addr{"example.org.": elsewhere, "gate.sluice.": gate4} {
			if got := askFor(t, network, s.at[0], name, 20*time.Second); !slices.Equal(got, []netip.Addr{want}) {
				t.Errorf("%s, %s: %v, want %v", network, name, got, want)
			}
		}
		if got := askFor(t, network, s.at[0], "nobody.sluice.", 20*time.Second); len(got) > 0 {
			t.Errorf("%s: a name of the zone that there is not: %v", network, got)
		}
	}
	silent := serving(nameServer(t, "127.0.0.77", true))
	for _, network := range []string{"udp", "tcp"} {
		if got := askFor(t, network, silent.at[0], "example.org.", 100*time.Millisecond); got != nil {
			t.Errorf("%s: a silent name server: %v", network, got)
		}
	}
	begin := time.Now()
	if silent.close(); time.Since(begin) > askLimit/2 {
		t.Errorf("the end took %v, want less than a question", time.Since(begin))
	}
}
