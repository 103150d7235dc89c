package relay

import (
	"encoding/binary"
	"net"
	"net/netip"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/ice/stun"
)

// freePort is one that nobody has in either family.
func freePort(t *testing.T) uint16 {
	t.Helper()
	conn, err := net.ListenUDP("udp", nil)
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	return uint16(conn.LocalAddr().(*net.UDPAddr).Port)
}

// asker asks a relay from a socket that hears everybody.
type asker struct {
	t    *testing.T
	conn *net.UDPConn
}

func newAsker(t *testing.T, at netip.Addr) *asker {
	t.Helper()
	conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(at, 0)))
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { conn.Close() })
	return &asker{t, conn}
}

// ask sends a request and returns who answers and what OTHER-ADDRESS there is; not valid: nobody, or none.
func (a *asker) ask(to netip.AddrPort, request []byte, wait time.Duration) (from, other netip.AddrPort) {
	a.t.Helper()
	from, answer := a.exchange(to, request, wait)
	if value := stun.Find(answer, stun.OtherAddress); value != nil {
		ip, _ := netip.AddrFromSlice(value[4:])
		other = netip.AddrPortFrom(ip, binary.BigEndian.Uint16(value[2:]))
	}
	return from, other
}

// exchange sends a request and returns who answers, not valid: nobody, and what.
func (a *asker) exchange(to netip.AddrPort, request []byte, wait time.Duration) (from netip.AddrPort, answer []byte) {
	a.t.Helper()
	if _, err := a.conn.WriteToUDPAddrPort(request, to); err != nil {
		a.t.Fatal(err)
	}
	if err := a.conn.SetReadDeadline(time.Now().Add(wait)); err != nil {
		a.t.Fatal(err)
	}
	b := make([]byte, 1500)
	n, from, err := a.conn.ReadFromUDPAddrPort(b)
	if err != nil {
		return netip.AddrPort{}, nil
	}
	if why := new(stun.Message).Parse(b[:n], stun.Client); why != stun.DropNone || n > maxAmplification*len(request) || [12]byte(b[8:]) != [12]byte(request[8:]) {
		a.t.Errorf("an answer of %d bytes to %d: %x", n, len(request), b[:n])
	}
	return stun.Unmap(from), b[:n]
}

// padded is a Binding request that is as long as one with FINGERPRINT, with CHANGE-REQUEST if anything is to change.
func padded(change uint32) []byte {
	attrs := []attr{{stun.Software, []byte("test")}}
	if change != 0 {
		attrs = append(attrs, attr{stun.ChangeRequest, binary.BigEndian.AppendUint32(nil, change)})
	}
	return plain(stun.Binding, stun.Request, newID(), attrs...)
}

// A request is answered from where it asks for, whichever of the four places it comes to, and each answer names the place opposite.
func TestReflect(t *testing.T) {
	second := netip.MustParseAddr("127.0.0.2")
	cfg := testConfig()
	cfg.Listen = []netip.AddrPort{netip.AddrPortFrom(netip.IPv4Unspecified(), 0), netip.AddrPortFrom(netip.IPv6Unspecified(), 0)}
	cfg.PublicAddrs, cfg.OtherPort, cfg.OtherAddrs = []netip.Addr{loopback4, netip.IPv6Loopback()}, freePort(t), []netip.Addr{second}
	s := run(t, cfg)
	first := s.Addrs()[0].Port()
	a := newAsker(t, loopback4)
	addrs, ports := [2]netip.Addr{loopback4, second}, [2]uint16{first, cfg.OtherPort}
	for i := range 4 {
		for change := range uint32(4) {
			to := netip.AddrPortFrom(addrs[i/2], ports[i%2])
			wantFrom := netip.AddrPortFrom(addrs[(i/2+int(change>>1))%2], ports[(i%2+int(change&1))%2])
			want := netip.AddrPortFrom(addrs[1-i/2], ports[1-i%2])
			if from, other := a.ask(to, padded(change>>1*changeAddress|change&1*changePort), 2*time.Second); from != wantFrom || other != want {
				t.Errorf("to %v with change %02b: answered from %v, other address %v, want %v, %v", to, change, from, other, wantFrom, want)
			}
		}
	}
	// IPv6 has one address: the port changes, and what asks for another address gets no answer.
	a = newAsker(t, netip.IPv6Loopback())
	first = s.Addrs()[1].Port()
	at, other := netip.AddrPortFrom(netip.IPv6Loopback(), first), netip.AddrPortFrom(netip.IPv6Loopback(), cfg.OtherPort)
	for change, want := range map[uint32]netip.AddrPort{0: at, changePort: other, changeAddress: {}, changeAddress | changePort: {}} {
		wait := 2 * time.Second
		if !want.IsValid() {
			wait = 100 * time.Millisecond
		}
		if from, named := a.ask(at, padded(change), wait); from != want || want.IsValid() && named != other {
			t.Errorf("IPv6 with change %b: answered from %v, other address %v, want %v, %v", change, from, named, want, other)
		}
	}
	if from, named := a.ask(at, plain(stun.Binding, stun.Request, newID()), 2*time.Second); from != at || named.IsValid() {
		t.Errorf("a short request: answered from %v with other address %v, want no more than three times its size", from, named)
	}
	// The other port is for Binding requests alone.
	for name, b := range map[string][]byte{"Allocate": plain(stun.Allocate, stun.Request, newID()), "noise": []byte("hello"), "an answer": plain(stun.Binding, stun.Success, newID())} {
		if from, _ := a.ask(other, b, 50*time.Millisecond); from.IsValid() {
			t.Errorf("%s at the other port is answered", name)
		}
	}
	for size := range 9 { // of CHANGE-REQUEST, which has 4 bytes
		b := plain(stun.Binding, stun.Request, newID(), attr{stun.Software, []byte("test")}, attr{stun.ChangeRequest, make([]byte, size)})
		a.ask(at, b, 50*time.Millisecond)
		a.ask(other, b, 50*time.Millisecond)
	}
	if from, _ := a.ask(other, padded(0), 2*time.Second); from != other {
		t.Errorf("after requests with a damaged CHANGE-REQUEST the other port is silent")
	}
	if p := s.reach.Load(); !p.ports[cfg.OtherPort] {
		t.Error("the relay may be made to send to its other port")
	}
}

// The other port is under the same limit as the first, and no relay is without a first port because there is no second.
func TestReflectBounds(t *testing.T) {
	cfg := testConfig()
	cfg.OtherPort, cfg.BindingsPerSecond = freePort(t), 1
	run(t, cfg)
	a, answered := newAsker(t, loopback4), 0
	for range 20 {
		if from, _ := a.ask(netip.AddrPortFrom(loopback4, cfg.OtherPort), padded(changePort), 20*time.Millisecond); from.IsValid() {
			answered++
		}
	}
	if answered == 0 || answered > 7 {
		t.Errorf("%d of 20 requests are answered, want about 5", answered)
	}
	taken, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback4, 0)))
	if err != nil {
		t.Fatal(err)
	}
	defer taken.Close()
	cfg.OtherPort = uint16(taken.LocalAddr().(*net.UDPAddr).Port)
	if s := run(t, cfg); s.mirrors[s.gates[0]] != nil || !s.Ready() {
		t.Error("a relay whose second port is taken has one, or does not serve")
	}
}

// A request with comprehension-required attributes that are not known is refused at either port, from where it came to, also if it asks for
// an answer from elsewhere.
func TestReflectUnknown(t *testing.T) {
	cfg := testConfig()
	cfg.OtherPort = freePort(t)
	s := run(t, cfg)
	for i, at := range s.Addrs() {
		a := newAsker(t, at.Addr())
		for _, port := range [2]uint16{at.Port(), cfg.OtherPort} {
			for change := range uint32(4) {
				attrs := []attr{{0x7abc, nil}, {0x7abd, []byte("x")}}
				if change != 0 {
					attrs = append(attrs, attr{stun.ChangeRequest, binary.BigEndian.AppendUint32(nil, change>>1*changeAddress|change&1*changePort)})
				}
				to := netip.AddrPortFrom(at.Addr(), port)
				from, b := a.exchange(to, plain(stun.Binding, stun.Request, newID(), attrs...), 2*time.Second)
				if list := stun.Find(b, stun.UnknownAttributes); from != to || stun.CodeOf(b) != stun.CodeUnknownAttribute || string(list) != "\x7a\xbc\x7a\xbd" {
					t.Errorf("address %d, to %v with change %02b: %d and %x from %v, want 420 and 7abc7abd from there", i, to, change, stun.CodeOf(b), list, from)
				}
			}
		}
	}
}
