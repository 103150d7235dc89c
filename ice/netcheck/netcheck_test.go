package netcheck

import (
	"encoding/binary"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pion/stun/v4"
)

// reflector is a STUN server as in RFC 5780, section 6.1, at two addresses and ports, or at one address or port if they are equal. alter changes
// what it says that it has seen, and tells whether an answer from another address is let through, as a NAT would.
func reflector(t *testing.T, first, second netip.Addr, onePort bool, alter func(at netip.AddrPort, seen netip.AddrPort) netip.AddrPort, passes func(to, from netip.AddrPort) bool) netip.AddrPort {
	t.Helper()
	listen := func(at netip.AddrPort) *net.UDPConn {
		conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(at))
		if err != nil {
			t.Skipf("SKIPPED: no second loopback address on this system: %v", err)
		}
		t.Cleanup(func() { conn.Close() })
		return conn
	}
	a := listen(netip.AddrPortFrom(first, 0))
	port := uint16(a.LocalAddr().(*net.UDPAddr).Port)
	conns := map[netip.AddrPort]*net.UDPConn{netip.AddrPortFrom(first, port): a}
	other := netip.AddrPortFrom(second, port)
	if !onePort {
		b := listen(netip.AddrPortFrom(first, 0))
		other = netip.AddrPortFrom(second, uint16(b.LocalAddr().(*net.UDPAddr).Port))
		conns[netip.AddrPortFrom(first, other.Port())] = b
		if second != first {
			conns[netip.AddrPortFrom(second, port)] = listen(netip.AddrPortFrom(second, port))
			conns[other] = listen(other)
		}
	}
	for at, conn := range conns {
		go func() {
			buffer := make([]byte, 1500)
			for {
				n, from, err := conn.ReadFromUDPAddrPort(buffer)
				if err != nil {
					return
				}
				m := &stun.Message{Raw: append([]byte{}, buffer[:n]...)}
				if m.Decode() != nil {
					continue
				}
				answerFrom := at
				if v, err := m.Get(stun.AttrChangeRequest); err == nil && len(v) == 4 {
					flags := binary.BigEndian.Uint32(v)
					if flags&changeAddress != 0 {
						answerFrom = netip.AddrPortFrom(flip(answerFrom.Addr(), first, second), answerFrom.Port())
					}
					if flags&changePort != 0 {
						p := port
						if answerFrom.Port() == port {
							p = other.Port()
						}
						answerFrom = netip.AddrPortFrom(answerFrom.Addr(), p)
					}
				}
				if conns[answerFrom] == nil || !passes(at, answerFrom) {
					continue
				}
				seen := alter(at, netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
				setters := []stun.Setter{stun.NewTransactionIDSetter(m.TransactionID), stun.BindingSuccess,
					&stun.XORMappedAddress{IP: seen.Addr().AsSlice(), Port: int(seen.Port())}}
				if other != at {
					setters = append(setters, &stun.OtherAddress{IP: other.Addr().AsSlice(), Port: int(other.Port())})
				}
				answer, err := stun.Build(setters...)
				if err != nil {
					return
				}
				conns[answerFrom].WriteToUDPAddrPort(answer.Raw, from)
			}
		}()
	}
	return netip.AddrPortFrom(first, port)
}

func flip(a, first, second netip.Addr) netip.Addr {
	if a == first {
		return second
	}
	return first
}

var one, two, outside = netip.MustParseAddr("127.0.0.1"), netip.MustParseAddr("127.0.0.2"), netip.MustParseAddr("198.51.100.7")

// What NATs do is told by what a server with other addresses and ports sees and gets through, and less where it has fewer.
func TestBehavior(t *testing.T) {
	itself := func(_, seen netip.AddrPort) netip.AddrPort { return seen }
	cone := func(_, seen netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(outside, seen.Port()) }
	byAddress := func(at, seen netip.AddrPort) netip.AddrPort {
		return netip.AddrPortFrom(outside, seen.Port()^uint16(at.Addr().As4()[3]))
	}
	symmetric := func(at, seen netip.AddrPort) netip.AddrPort {
		return netip.AddrPortFrom(outside, at.Port()^uint16(at.Addr().As4()[3]))
	}
	anybody := func(_, _ netip.AddrPort) bool { return true }
	sameAddress := func(to, from netip.AddrPort) bool { return to.Addr() == from.Addr() }
	same := func(to, from netip.AddrPort) bool { return to == from }
	for name, tt := range map[string]struct {
		second             netip.Addr
		onePort            bool
		alter              func(at, seen netip.AddrPort) netip.AddrPort
		passes             func(to, from netip.AddrPort) bool
		mapping, filtering Behavior
		by, filteredBy     Evidence
	}{
		"no NAT":               {two, false, itself, anybody, NoNAT, EndpointIndependent, OneServer, OtherAddress},
		"no NAT, a firewall":   {two, false, itself, same, NoNAT, AddressAndPortDependent, OneServer, OtherAddress},
		"cone":                 {two, false, cone, anybody, EndpointIndependent, EndpointIndependent, OtherAddress, OtherAddress},
		"restricted":           {two, false, cone, sameAddress, EndpointIndependent, AddressDependent, OtherAddress, OtherAddress},
		"port restricted":      {two, false, cone, same, EndpointIndependent, AddressAndPortDependent, OtherAddress, OtherAddress},
		"by address":           {two, false, byAddress, sameAddress, AddressDependent, AddressDependent, OtherAddress, OtherAddress},
		"symmetric":            {two, false, symmetric, same, AddressAndPortDependent, AddressAndPortDependent, OtherAddress, OtherAddress},
		"symmetric, two ports": {one, false, symmetric, same, AddressAndPortDependent, AddressAndPortDependent, OtherPort, OtherPort},
		"cone, two ports":      {one, false, cone, anybody, NotPortDependent, NotPortDependent, OtherPort, OtherPort},
		"cone, one server":     {one, true, cone, anybody, Unknown, Unknown, OneServer, OneServer},
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel()
			at := reflector(t, one, tt.second, tt.onePort, tt.alter, tt.passes)
			f := Check(t.Context(), Config{Servers: []Server{{"one", at}}, Wait: 600 * time.Millisecond}).IPv4
			if f.UDP != Works || f.Mapping != tt.mapping || f.MappingEvidence != tt.by || f.Filtering != tt.filtering || f.FilteringEvidence != tt.filteredBy {
				t.Errorf("%+v, want mapping %s by %s, filtering %s by %s", f, tt.mapping, tt.by, tt.filtering, tt.filteredBy)
			}
		})
	}
}

// Without a server that has two addresses, two servers tell whether the mapping is the same for both.
func TestSeveralServers(t *testing.T) {
	always := func(_, _ netip.AddrPort) bool { return true }
	for want, alter := range map[Behavior]func(at, seen netip.AddrPort) netip.AddrPort{
		EndpointIndependent: func(_, seen netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(outside, seen.Port()) },
		Dependent:           func(at, _ netip.AddrPort) netip.AddrPort { return netip.AddrPortFrom(outside, at.Port()) },
	} {
		servers := []Server{{"one", reflector(t, one, one, true, alter, always)}, {"two", reflector(t, two, two, true, alter, always)}}
		r := Check(t.Context(), Config{Servers: servers})
		if r.IPv4.Mapping != want || r.IPv4.MappingEvidence != OtherServers || len(r.Servers) != 2 || r.Servers[1].RTTS < r.Servers[0].RTTS {
			t.Errorf("%+v, want %s", r, want)
		}
	}
}

// Silence is told from refusal, and a portal that listens from one that does not.
func TestSilence(t *testing.T) {
	silent, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer silent.Close()
	open, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	defer open.Close()
	go func() {
		for {
			conn, err := open.Accept()
			if err != nil {
				return
			}
			conn.Write([]byte("no TLS\n"))
			conn.Close()
		}
	}()
	closed, err := net.Listen("tcp4", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	closed.Close()
	begin := time.Now()
	r := Check(t.Context(), Config{
		Servers: []Server{{"silent", silent.LocalAddr().(*net.UDPAddr).AddrPort()}}, Portals: []string{open.Addr().String(), closed.Addr().String(), "nonsense"},
		Wait: 300 * time.Millisecond, Getenv: func(name string) string {
			return map[string]string{"HTTPS_PROXY": "http://me:secret@proxy:3128", "all_proxy": "me:secret@proxy", "no_proxy": "localhost"}[name]
		},
	})
	if took := time.Since(begin); took > 20*time.Second {
		t.Errorf("took %v", took)
	}
	if r.UDP != Blocked || r.IPv4.UDP != Blocked || r.IPv6.UDP != Untested || r.Servers[0].Answered || r.IPv4.Mapping != Unknown || r.IPv4.MappingEvidence != NoAnswer {
		t.Errorf("silent: %+v", r)
	}
	if p := r.Portals[0]; p.TCP != Works || p.TLS != Failed || p.OtherCertificate {
		t.Errorf("no TLS: %+v", p)
	}
	if p := r.Portals[1]; p.TCP != Refused || p.TLS != Untested {
		t.Errorf("closed: %+v", p)
	}
	if p := r.Portals[2]; p.TCP != Failed || p.Error == "" {
		t.Errorf("nonsense: %+v", p)
	}
	if len(r.Proxy) != 3 || r.Proxy["HTTPS_PROXY"] != "http://proxy:3128" || r.Proxy["all_proxy"] != "proxy" {
		t.Errorf("proxy variables: %q", r.Proxy)
	}
	for _, value := range r.Proxy {
		if strings.Contains(value, "secret") {
			t.Errorf("a password is in %q", value)
		}
	}
}
