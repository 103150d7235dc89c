package main

import (
	"encoding/json"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/bench/lab"
)

// spoke is a peer of a hub, behind an uplink of its own.
type spoke struct {
	*end
	uplink string // the hub's device
	flood  net.Conn
}

// newHub starts the hub and its spokes, each with a session in the tunnel.
func newHub(t *testing.T, family, count int, settings ...string) (hub *end, spokes []*spoke) {
	t.Helper()
	path := program(t, settings...)
	hub = &end{ns: newNamespace(t, "hub"), name: newName(), private: newKey(t), port: 51820, inner: [2]netip.Addr{netip.MustParseAddr("10.9.0.1"), netip.MustParseAddr("fd09::1")}}
	hub.pid = start(t, hub.ns, nil, path, hub.name)
	config := fmt.Sprintf("[Interface]\nPrivateKey = %s\nListenPort = %d\n", hub.private.Encode(), hub.port)
	for i := range count {
		last := byte(i + 2)
		outer := [2][2]netip.Addr{ // of hub and spoke
			{netip.AddrFrom4([4]byte{10, 50, last, 1}), netip.AddrFrom16([16]byte{0xfd, 0x50, 7: last, 15: 1})},
			{netip.AddrFrom4([4]byte{10, 50, last, 2}), netip.AddrFrom16([16]byte{0xfd, 0x50, 7: last, 15: 2})},
		}
		s := &spoke{&end{
			ns: newNamespace(t, fmt.Sprint("spoke", i)), name: newName(), private: newKey(t), port: 51820, outer: outer[1],
			inner: [2]netip.Addr{netip.AddrFrom4([4]byte{10, 9, 0, last}), netip.AddrFrom16([16]byte{0xfd, 9, 15: last})},
		}, fmt.Sprint("up", i), nil}
		plug := func(ns *lab.Namespace, device string, addrs [2]netip.Addr) lab.Plug {
			return lab.Plug{Namespace: ns, Device: device, Addrs: []netip.Prefix{netip.PrefixFrom(addrs[0], 24), netip.PrefixFrom(addrs[1], 64)}}
		}
		if err := lab.Connect(lab.Cable{}, plug(hub.ns, s.uplink, outer[0]), plug(s.ns, "eth0", outer[1])); err != nil {
			t.Fatal(err)
		}
		s.pid = start(t, s.ns, nil, path, s.name)
		mustWith(t, s.ns, fmt.Sprintf("[Interface]\nPrivateKey = %s\nListenPort = %d\n[Peer]\nPublicKey = %s\nAllowedIPs = 10.9.0.0/24, fd09::/64\n",
			s.private.Encode(), s.port, hub.private.Public().Encode()), "wg", "setconf", s.name, "/dev/stdin")
		s.up(t, s.ns)
		config += fmt.Sprintf("[Peer]\nPublicKey = %s\nAllowedIPs = %s/32, %s/128\nEndpoint = %s\n",
			s.private.Public().Encode(), s.inner[0], s.inner[1], netip.AddrPortFrom(s.outer[family], s.port))
		spokes = append(spokes, s)
	}
	mustWith(t, hub.ns, config, "wg", "setconf", hub.name, "/dev/stdin")
	hub.up(t, hub.ns)
	for _, s := range spokes {
		ping(t, hub.ns, 1, s.inner[0])
	}
	return hub, spokes
}

// backlog is how many bytes wait in the queue of a device.
func backlog(t *testing.T, ns *lab.Namespace, device string) (bytes int) {
	t.Helper()
	var queues []struct{ Backlog int }
	if err := json.Unmarshal([]byte(must(t, ns, "tc", "-s", "-j", "qdisc", "show", "dev", device)), &queues); err != nil {
		t.Fatal(err)
	}
	for _, q := range queues {
		bytes = max(bytes, q.Backlog)
	}
	return bytes
}

// TestSlowPeersHoldUpNobody: what is sent to peers behind slow uplinks waits in the queues of these, as much of it as they take, and
// a peer behind another uplink hears and is heard meanwhile.
func TestSlowPeersHoldUpNobody(t *testing.T) {
	need(t, "wg", "ping", "tc")
	for _, c := range []struct {
		family int
		queues string
	}{{0, "1"}, {1, "2"}} {
		t.Run(fmt.Sprintf("IPv%d, %s queues", 4+2*c.family, c.queues), func(t *testing.T) {
			hub, spokes := newHub(t, c.family, 3, "SLUICE_QUEUES="+c.queues)
			slow, fast := spokes[:2], spokes[2]
			for _, s := range slow {
				if out, err := try(hub.ns, nil, "", "tc", "qdisc", "add", "dev", s.uplink, "root", "tbf", "rate", "1mbit", "burst", "3000", "limit", "16000000"); err != nil {
					t.Skipf("SKIPPED: no slow device: %v: %s", err, strings.TrimSpace(out))
				}
				if err := hub.ns.Run(func() (err error) {
					s.flood, err = net.Dial("udp", netip.AddrPortFrom(s.inner[c.family], 9).String())
					return err
				}); err != nil {
					t.Fatal(err)
				}
				defer s.flood.Close()
			}
			const held = 5 << 20
			for end := time.Now().Add(3 * patient); ; {
				waiting := [2]int{backlog(t, hub.ns, slow[0].uplink), backlog(t, hub.ns, slow[1].uplink)}
				if waiting[0] > held && waiting[1] > held {
					break
				}
				if time.Now().After(end) {
					t.Fatalf("%d bytes wait in the slow uplinks' queues, want more than %d in each: they wait elsewhere", waiting, held)
				}
				for i, s := range slow {
					for n := 0; n < 400 && waiting[i] <= held; n++ {
						_, _ = s.flood.Write(make([]byte, 1200)) // an ICMP error of an earlier one is nothing to us
					}
				}
			}
			for family := range fast.inner {
				ping(t, hub.ns, 3, fast.inner[family])
				ping(t, fast.ns, 3, hub.inner[family])
			}
		})
	}
}

// TestReaderThatStopsHoldsUpNobody: what comes in for somebody who does not read it is his loss alone.
func TestReaderThatStopsHoldsUpNobody(t *testing.T) {
	need(t, "wg", "ping")
	hub, spokes := newHub(t, 0, 2)
	var deaf net.PacketConn
	if err := hub.ns.Run(func() (err error) {
		deaf, err = net.ListenPacket("udp", netip.AddrPortFrom(hub.inner[0], 9).String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer deaf.Close()
	var flood net.Conn
	if err := spokes[0].ns.Run(func() (err error) {
		flood, err = net.Dial("udp", deaf.LocalAddr().String())
		return err
	}); err != nil {
		t.Fatal(err)
	}
	defer flood.Close()
	for range 20000 { // far more than a socket buffer holds
		if _, err := flood.Write(make([]byte, 1200)); err != nil {
			t.Fatal(err)
		}
	}
	ping(t, hub.ns, 3, spokes[1].inner[0])
	ping(t, spokes[1].ns, 3, hub.inner[0])
	ping(t, spokes[0].ns, 3, hub.inner[0])
}
