package speedtest

import (
	"net/netip"

	"github.com/sluice-vpn/sluice/bench/lab"
)

// The network of the test bed. The outer addresses are on the cable, the inner ones in the tunnel.
const (
	outerMTU   = 1500
	innerMTU   = 1420
	memberMTU  = 1416 // the default of client and gateway
	listenPort = 51820
)

var (
	outerNet = netip.MustParsePrefix("10.71.0.0/24")
	innerNet = netip.MustParsePrefix("10.72.0.0/24")
)

// side is one end of the test bed: 0 is A, 1 is B.
type side int

func (s side) outer() netip.Addr { return hostOf(outerNet, int(s)+1) }
func (s side) inner() netip.Addr { return hostOf(innerNet, int(s)+1) }

// hostOf is the nth address of an IPv4 prefix.
func hostOf(p netip.Prefix, n int) netip.Addr {
	b := p.Addr().As4()
	b[3] += byte(n)
	return netip.AddrFrom4(b)
}

// testbed is the two namespaces with the cable between them, or an internet with a site for each. It is owned by the goroutine
// that called Run.
type testbed struct {
	ends     [2]*lab.Namespace
	internet *lab.Internet // nil: a cable
}

// newTestbed lays the cables. It must be called inside a lab.
func newTestbed(topology string, segment bool) (*testbed, error) {
	cable := lab.Cable{MTU: outerMTU}
	if segment {
		cable.Off = []lab.Offload{lab.TCPSegmentation, lab.TCP6Segment, lab.UDPSegmentation}
	}
	switch topology {
	case TopologyNAT:
		return newInternet(lab.Restricted, cable)
	case TopologyRelay:
		return newInternet(lab.Symmetric, cable)
	}
	t := &testbed{}
	plugs := [2]lab.Plug{}
	for i := range t.ends {
		ns, err := lab.NewNamespace(sideNames[i])
		if err != nil {
			t.close()
			return nil, err
		}
		t.ends[i] = ns
		addr := netip.PrefixFrom(side(i).outer(), outerNet.Bits())
		plugs[i] = lab.Plug{Namespace: ns, Device: "outer0", Addrs: []netip.Prefix{addr}}
	}
	if err := lab.Connect(cable, plugs[0], plugs[1]); err != nil {
		t.close()
		return nil, err
	}
	return t, nil
}

// newInternet makes a site for each end, behind NATs of that kind.
func newInternet(kind lab.NAT, uplink lab.Cable) (*testbed, error) {
	internet, err := lab.NewInternet()
	if err != nil {
		return nil, err
	}
	t := &testbed{internet: internet}
	for i := range t.ends {
		site, err := internet.AddSite(sideNames[i], kind, uplink)
		if err != nil {
			t.close()
			return nil, err
		}
		t.ends[i] = site.Node
	}
	return t, nil
}

func (t *testbed) close() {
	if t.internet != nil {
		t.internet.Close()
		return
	}
	for _, ns := range t.ends {
		if ns != nil {
			ns.Close()
		}
	}
}
