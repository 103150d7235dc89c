package speedtest

import (
	"errors"
	"fmt"
	"net/netip"
	"os"

	"github.com/sluice-vpn/sluice/bench/lab"
)

// The network of the test bed. The outer addresses are on the cable, the inner ones in the tunnel.
const (
	outerMTU   = 1500
	innerMTU   = 1420
	listenPort = 51820
)

var (
	outerNet = netip.MustParsePrefix("10.71.0.0/24")
	innerNet = netip.MustParsePrefix("10.72.0.0/24")
)

// side is one end of the test bed: 0 is A, 1 is B.
type side int

var sideNames = [2]string{"a", "b"}

func (s side) outer() netip.Addr { return hostOf(outerNet, int(s)+1) }
func (s side) inner() netip.Addr { return hostOf(innerNet, int(s)+1) }

// hostOf is the nth address of an IPv4 prefix.
func hostOf(p netip.Prefix, n int) netip.Addr {
	b := p.Addr().As4()
	b[3] += byte(n)
	return netip.AddrFrom4(b)
}

// testbed is the two namespaces with the cable between them. It is owned by the goroutine that called Run.
type testbed struct {
	ends [2]*lab.Namespace
}

// newTestbed lays the cable. It must be called inside a lab.
func newTestbed(segment bool) (*testbed, error) {
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
	cable := lab.Cable{MTU: outerMTU}
	if segment {
		cable.Off = []lab.Offload{lab.TCPSegmentation, lab.TCP6Segment, lab.UDPSegmentation}
	}
	if err := lab.Connect(cable, plugs[0], plugs[1]); err != nil {
		t.close()
		return nil, err
	}
	return t, nil
}

func (t *testbed) close() {
	for _, ns := range t.ends {
		if ns != nil {
			ns.Close()
		}
	}
}

// checkTUN says what to do if there is no TUN device.
func checkTUN() error {
	f, err := os.OpenFile("/dev/net/tun", os.O_RDWR, 0)
	switch {
	case err == nil:
		return f.Close()
	case errors.Is(err, os.ErrNotExist):
		return errors.New("there is no /dev/net/tun; load the module (sudo modprobe tun), or start the container with --device /dev/net/tun")
	case errors.Is(err, os.ErrPermission):
		return errors.New("/dev/net/tun may not be opened; run as root, or allow it: sudo chmod 666 /dev/net/tun")
	default:
		return fmt.Errorf("/dev/net/tun: %w; load the module: sudo modprobe tun", err)
	}
}
