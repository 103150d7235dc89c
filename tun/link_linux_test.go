//go:build linux && !sluice_portable

package tun

import (
	"encoding/binary"
	"errors"
	"net/netip"
	"os"
	"sync/atomic"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/tun/host"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// awaitCount waits for a counter to be what it is to become; the monitor looks once a second.
func awaitCount(t *testing.T, what string, counter *atomic.Uint64, want uint64) {
	t.Helper()
	for range 2000 {
		if counter.Load() == want {
			return
		}
		time.Sleep(5 * time.Millisecond)
	}
	t.Errorf("%s: %d, want %d", what, counter.Load(), want)
}

// quietIPv6 keeps the kernel from sending anything by itself, which would be dropped and counted too.
func quietIPv6(t *testing.T, name string) {
	t.Helper()
	err := os.WriteFile("/proc/sys/net/ipv6/conf/"+name+"/disable_ipv6", []byte("1"), 0)
	if err != nil && !errors.Is(err, os.ErrNotExist) { // no IPv6 at all
		t.Fatal(err)
	}
}

// What the kernel drops because nobody reads is counted to the packet: here, and in another namespace under another name.
func TestLinuxReadDropped(t *testing.T) {
	const sent = 3000
	other := inNewNamespace(t, func() {})
	inNewNamespace(t, func() {
		d := mustOpen(t, Options{Name: "drops0"})
		q, packets := d.Queues()[0], batch(64)
		begin := func(name string) {
			quietIPv6(t, name)
			must(t, host.AddAddress(name, netip.MustParsePrefix("10.9.0.1/24")))
			must(t, host.SetUp(name))
			expect(t, d, EventUp)
		}
		// overflow returns how many packets were read of those that were sent, and what else was.
		overflow := func() (read uint64) {
			settle(t, q, packets)
			before := q.Stats().ReadPackets.Load()
			transmit(t, []byte("payload"), sent)
			settle(t, q, packets)
			return q.Stats().ReadPackets.Load() - before
		}
		begin("drops0")
		read := overflow()
		if read >= sent {
			t.Fatalf("%d of %d packets read: nothing was dropped", read, sent)
		}
		awaitCount(t, "ReadDropped", &q.Stats().ReadDropped, sent-read)

		link, err := netlink.LinkByName("drops0")
		must(t, err)
		must(t, netlink.LinkSetNsFd(link, other))
		expect(t, d, EventDown)
		inNamespace(t, other, func() {
			link, err := netlink.LinkByName("drops0")
			must(t, err)
			must(t, netlink.LinkSetName(link, "renamed0"))
			begin("renamed0")
			read += overflow()
			awaitCount(t, "ReadDropped after the move", &q.Stats().ReadDropped, 2*sent-read)
		})
	})
}

// To watch the interface costs no packet: what the kernel has dropped stays 0, with offloads and without.
func TestLinuxWatchDropsNothing(t *testing.T) {
	for _, plain := range []bool{false, true} {
		inNewNamespace(t, func() {
			d := mustOpen(t, Options{Name: "watch0", NoOffload: plain})
			quietIPv6(t, "watch0")
			for range 10 {
				if d.monitor.gone() {
					t.Error("the device is gone")
				}
			}
			link, err := netlink.LinkByName("watch0")
			must(t, err)
			if s := link.Attrs().Statistics; s.RxDropped != 0 || s.RxErrors != 0 {
				t.Errorf("without offloads %v: %d packets dropped and %d errors, want none", plain, s.RxDropped, s.RxErrors)
			}
			must(t, d.Close())
		})
	}
}

// A larger MTU than a datagram carries is refused by Open, and set back where somebody else sets it.
func TestLinuxMaxMTU(t *testing.T) {
	inNewNamespace(t, func() {
		if _, err := Open(Options{Name: "mtu0", MTU: 1401, MaxMTU: 1400}); err == nil {
			t.Fatal("Open took an MTU above MaxMTU")
		}
		d := mustOpen(t, Options{Name: "mtu0", MTU: 1300, MaxMTU: 1400})
		must(t, host.SetMTU("mtu0", 1400))
		expect(t, d, EventMTU)
		must(t, host.SetMTU("mtu0", 1300))
		expect(t, d, EventMTU)
		must(t, host.SetMTU("mtu0", 1401))
		expect(t, d, EventMTUClamped)
		expect(t, d, EventMTU)
		link, err := netlink.LinkByName("mtu0")
		must(t, err)
		if d.MTU() != 1400 || link.Attrs().MTU != 1400 {
			t.Errorf("MTU is %d, and we think %d, want 1400", link.Attrs().MTU, d.MTU())
		}
	})
}

func TestParseLink(t *testing.T) {
	stats := make([]byte, 25*8)
	binary.NativeEndian.PutUint64(stats[6*8:], 11) // rx_dropped
	binary.NativeEndian.PutUint64(stats[7*8:], 22) // tx_dropped
	body := func(flags uint32, stats []byte) []byte {
		b := make([]byte, unix.SizeofIfInfomsg)
		binary.NativeEndian.PutUint32(b[8:], flags)
		b = appendAttr(b, unix.IFLA_IFNAME, []byte("wg0\x00"))
		b = appendAttr(b, unix.IFLA_MTU, binary.NativeEndian.AppendUint32(nil, 1420))
		return appendAttr(b, unix.IFLA_STATS64, stats)
	}
	for flags, up := range map[uint32]bool{unix.IFF_UP | unix.IFF_POINTOPOINT: true, unix.IFF_POINTOPOINT: false} {
		want := link{up: up, mtu: 1420, drops: linkDrops{tx: 22, rx: 11}}
		if got, ok := parseLink(body(flags, stats)); !ok || got != want {
			t.Errorf("flags %#x: %+v, %v, want %+v", flags, got, ok, want)
		}
	}
	if got, ok := parseLink(body(0, stats[:56])); ok {
		t.Errorf("short statistics: %+v", got)
	}
	for whole, n := body(0, stats), 0; n < len(whole); n++ {
		if got, ok := parseLink(whole[:n]); ok {
			t.Errorf("%d of %d bytes: %+v", n, len(whole), got)
		}
	}
}

func TestParseAnswer(t *testing.T) {
	number := -int32(unix.ENODEV)
	refusal := binary.NativeEndian.AppendUint32(nil, uint32(number))
	for name, c := range map[string]struct {
		message []byte
		body    string
		err     error
	}{
		"answer":    {appendRequest(nil, unix.RTM_NEWLINK, []byte("body")), "body", nil},
		"first":     {appendRequest(appendRequest(nil, unix.RTM_NEWLINK, []byte("body")), unix.RTM_NEWLINK, []byte("next")), "body", nil},
		"error":     {appendRequest(nil, unix.NLMSG_ERROR, refusal), "", unix.ENODEV},
		"nothing":   {nil, "", unix.EBADMSG},
		"no number": {appendRequest(nil, unix.NLMSG_ERROR, nil), "", unix.EBADMSG},
		"truncated": {appendRequest(nil, unix.RTM_NEWLINK, []byte("body"))[:18], "", unix.EBADMSG},
		"length 0":  {make([]byte, 32), "", unix.EBADMSG},
	} {
		if body, err := parseAnswer(c.message); string(body) != c.body || err != c.err {
			t.Errorf("%s: %q, %v, want %q, %v", name, body, err, c.body, c.err)
		}
	}
}
