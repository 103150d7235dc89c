package acceptance

import (
	"encoding/binary"
	"encoding/json"
	"net"
	"net/netip"
	"strings"
	"testing"

	"github.com/pion/stun/v4"

	"github.com/sluice-vpn/sluice/bench/lab"
	"github.com/sluice-vpn/sluice/cmd/internal/status"
	"github.com/sluice-vpn/sluice/ice/netcheck"
)

// reflectors serve STUN with CHANGE-REQUEST (RFC 5780, section 6.1) in the hub, at both of its addresses and two ports, and return the first.
func (v *vpn) reflectors() netip.AddrPort {
	v.t.Helper()
	const port, otherPort = 3490, 3491
	conns := map[netip.AddrPort]*net.UDPConn{}
	if err := v.internet.Hub.Run(func() error {
		for _, a := range []netip.Addr{lab.HubAddr, lab.HubAddr2} {
			for _, p := range []uint16{port, otherPort} {
				at := netip.AddrPortFrom(a, p)
				conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
				if err != nil {
					return err
				}
				v.t.Cleanup(func() { conn.Close() })
				conns[at] = conn
			}
		}
		return nil
	}); err != nil {
		v.t.Fatal(err)
	}
	for at, conn := range conns {
		other := netip.AddrPortFrom(lab.HubAddr, port+otherPort-at.Port())
		if at.Addr() == lab.HubAddr {
			other = netip.AddrPortFrom(lab.HubAddr2, other.Port())
		}
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
				by := at
				if change, err := m.Get(stun.AttrChangeRequest); err == nil && len(change) == 4 {
					flags := binary.BigEndian.Uint32(change)
					if flags&4 != 0 {
						by = netip.AddrPortFrom(other.Addr(), by.Port())
					}
					if flags&2 != 0 {
						by = netip.AddrPortFrom(by.Addr(), other.Port())
					}
				}
				answer, err := stun.Build(stun.NewTransactionIDSetter(m.TransactionID), stun.BindingSuccess,
					&stun.XORMappedAddress{IP: from.Addr().AsSlice(), Port: int(from.Port())}, &stun.OtherAddress{IP: other.Addr().AsSlice(), Port: int(other.Port())})
				if err == nil {
					conns[by].WriteToUDPAddrPort(answer.Raw, from)
				}
			}
		}()
	}
	return netip.AddrPortFrom(lab.HubAddr, port)
}

// netcheck checks the network of a site, and returns what it says to people and to programs, and the error of the latter.
func (v *vpn) netcheck(site *lab.Site, args ...string) (text string, r netcheck.Report, err error) {
	v.t.Helper()
	args = append([]string{"netcheck"}, args...)
	text, _ = v.run(site.Node, args...)
	facts, err := v.run(site.Node, append(args, "-json")...)
	if e := json.Unmarshal([]byte(facts), &r); e != nil {
		v.t.Fatalf("%q: %v, %v", args, e, err)
	}
	for line := range strings.Lines(text) {
		if len(strings.TrimSuffix(line, "\n")) > status.Columns {
			v.t.Errorf("netcheck: more than %d columns: %s", status.Columns, line)
		}
	}
	v.t.Logf("%q: %v\n%s", args, err, text)
	return text, r, err
}

// What each kind of NAT does is told by another STUN server with two addresses and two ports, and likewise by the portal's relay.
func TestNetcheckNATs(t *testing.T) {
	t.Parallel()
	v := newVPN(t, "-relay-other-address", lab.HubAddr2.String())
	at := v.reflectors()
	for name, tt := range map[string]struct {
		kind               lab.NAT
		mapping, filtering netcheck.Behavior
	}{
		"open":       {lab.NoNAT, netcheck.NoNAT, netcheck.EndpointIndependent},
		"cone":       {lab.Cone, netcheck.EndpointIndependent, netcheck.EndpointIndependent},
		"restricted": {lab.Restricted, netcheck.EndpointIndependent, netcheck.AddressAndPortDependent},
		"symmetric":  {lab.Symmetric, netcheck.AddressAndPortDependent, netcheck.AddressAndPortDependent},
	} {
		site := v.site(name, tt.kind)
		_, r, err := v.netcheck(site, "-portal", lab.HubAddr.String(), "-relay", at.String())
		if err != nil || r.UDP != netcheck.Works || r.IPv4.Mapping != tt.mapping || r.IPv4.Filtering != tt.filtering {
			t.Errorf("%s: %v: %+v, want mapping %s, filtering %s", name, err, r.IPv4, tt.mapping, tt.filtering)
		}
		if len(r.Portals) != 1 || r.Portals[0].TCP != netcheck.Works || r.Portals[0].TLS != netcheck.Works {
			t.Errorf("%s: portal %+v", name, r.Portals)
		}
		_, r, err = v.netcheck(site, "-portal", lab.HubAddr.String())
		if err != nil || r.UDP != netcheck.Works || r.IPv4.Mapping != tt.mapping || r.IPv4.Filtering != tt.filtering {
			t.Errorf("%s, by the portal's relay alone: %v: %+v, want mapping %s, filtering %s", name, err, r.IPv4, tt.mapping, tt.filtering)
		}
	}
}

// Where UDP is blocked, and where the portal's port is while port 443 is open, netcheck says so and fails.
func TestNetcheckBlocked(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	site := v.site("blocked", lab.Cone)
	if _, err := site.Router.Drop("", "", true); err != nil {
		t.Fatal(err)
	}
	text, r, err := v.netcheck(site, "-portal", lab.HubAddr.String())
	if err == nil || r.UDP != netcheck.Blocked || len(r.Portals) != 1 || r.Portals[0].TCP != netcheck.Works || !strings.Contains(oneLine(text), "blocks UDP") {
		t.Errorf("UDP blocked: %v: %+v\n%s", err, r, text)
	}
	if _, r, err = v.netcheck(v.site("wrong", lab.Cone), "-portal", lab.HubAddr.String()+":4431"); err == nil || r.Portals[0].TCP != netcheck.Refused {
		t.Errorf("a port that nobody listens at: %v: %+v", err, r.Portals)
	}
}
