package relay

import (
	"bytes"
	"net/netip"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/ice/stun"
	"github.com/sluice-vpn/sluice/pipeline/frame"
)

// TestInside: allocations reach one another although the public addresses are not this machine's and nothing leads them back here,
// as behind a 1:1 NAT: as ChannelData and as indications, of the same and of another user, over two listeners, in both families.
func TestInside(t *testing.T) {
	public4, public6 := netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("2001:db8:ffff::7")
	for name, v6 := range map[string]bool{"IPv4": false, "IPv6": true} {
		for _, user := range []string{"same", "other"} {
			t.Run(name+" "+user, func(t *testing.T) {
				s := start(t, func(c *Config) { c.PublicAddrs = []netip.Addr{public4, public6} })
				a, b := dial(t, s, 0, "same"), dial(t, s, 1, user)
				allocate := (*client).allocate6
				if !v6 {
					allocate = func(c *client) netip.AddrPort {
						return c.allocate(attr{stun.RequestedFamily, []byte{1, 0, 0, 0}})
					}
				}
				testInside(t, s, [2]*client{a, b}, [2]netip.AddrPort{allocate(a), allocate(b)})
			})
		}
	}
}

func testInside(t *testing.T, s *Server, ends [2]*client, relayed [2]netip.AddrPort) {
	drops := func(d drop) uint64 { return s.stats.drops[d].Load() }
	for i, c := range ends { // without permission of the receiver nothing passes, and that is counted
		other, before := relayed[1-i], drops(dropNoPermission)
		c.indicate(other, []byte("nobody permitted this"))
		eventually(t, "the sender's permission to be missed", func() bool { return drops(dropNoPermission) == before+1 })
	}
	if code := ends[0].permit(relayed[1]); code != 0 {
		t.Fatalf("CreatePermission for %v: %d", relayed[1], code)
	}
	before := drops(dropNoPermission)
	ends[0].indicate(relayed[1], []byte("the receiver did not permit this"))
	eventually(t, "the receiver's permission to be missed", func() bool { return drops(dropNoPermission) == before+1 })
	if code := ends[1].permit(relayed[0]); code != 0 {
		t.Fatalf("CreatePermission for %v: %d", relayed[0], code)
	}
	receivedBytes := s.stats.bytes[toClient].Load()
	for i, c := range ends {
		for _, size := range []int{1, 3, 1400} {
			c.indicate(relayed[1-i], bytes.Repeat([]byte{7}, size))
			got := ends[1-i].read(patience)
			ends[1-i].sound(got)
			if peer, _, ok := frame.ParseDataIndication(got); !ok || peer != relayed[i] {
				t.Fatalf("%d bytes from %v: the client got %x", size, relayed[i], got)
			}
		}
	}
	if n := s.stats.bytes[toClient].Load() - receivedBytes; n != 2*1404 {
		t.Errorf("%d bytes count as relayed to clients, want %d", n, 2*1404)
	}
	for i, c := range ends {
		if code := c.bind(0x4001+uint16(i), relayed[1-i]); code != 0 {
			t.Fatalf("ChannelBind: %d", code)
		}
	}
	for i, c := range ends {
		for _, size := range []int{0, 1, 1400, 9000} {
			data := bytes.Repeat([]byte{9}, size)
			c.send(channelData(0x4001+uint16(i), data))
			if got := ends[1-i].read(patience); !bytes.Equal(got, channelData(0x4002-uint16(i), data)) {
				t.Fatalf("the client got %d bytes, want %d of ChannelData", len(got), size+frame.ChannelHeaderSize)
			}
		}
	}
	// An allocation that has ended is not found any more.
	if _, code := ends[1].call(stun.Refresh, attr{stun.Lifetime, make([]byte, 4)}); code != 0 {
		t.Fatalf("Refresh: %d", code)
	}
	eventually(t, "the allocation to go", func() bool { return s.inside.find(relayed[1]) == nil })
	ends[0].send(channelData(0x4001, []byte("late")))
	if got := ends[1].read(50 * time.Millisecond); got != nil {
		t.Errorf("after the end of the allocation its client got %x", got)
	}
}

// TestSetPublicAddrs: new allocations have the new address and the old ones stay; both reach one another.
func TestSetPublicAddrs(t *testing.T) {
	before, after := netip.MustParseAddr("203.0.113.7"), netip.MustParseAddr("203.0.113.44")
	s := start(t, func(c *Config) { c.PublicAddrs = []netip.Addr{before} })
	a := dial(t, s, 0, "a")
	was := a.allocate()
	if err := s.SetPublicAddrs([]netip.Addr{after, after}); err == nil {
		t.Error("two addresses of one family are taken")
	}
	if err := s.SetPublicAddrs([]netip.Addr{after}); err != nil {
		t.Fatal(err)
	}
	b := dial(t, s, 0, "b")
	is := b.allocate()
	if was.Addr() != before || is.Addr() != after {
		t.Fatalf("relayed addresses %v and %v, want them at %v and %v", was, is, before, after)
	}
	if a.bind(0x4001, is) != 0 || b.bind(0x4001, was) != 0 {
		t.Fatal("ChannelBind")
	}
	for from, to := range map[*client]*client{a: b, b: a} {
		from.send(channelData(0x4001, []byte("hello")))
		if got := to.read(patience); !bytes.Equal(got, channelData(0x4001, []byte("hello"))) {
			t.Fatalf("got %x", got)
		}
	}
}

// TestOnlyPublic: a family that is listened on and has no public address has no relayed ones.
func TestOnlyPublic(t *testing.T) {
	s := start(t, func(c *Config) { c.PublicAddrs, c.OnlyPublic = []netip.Addr{loopback4}, true })
	c := dial(t, s, 1, "x")
	c.challenge()
	if _, code := c.call(stun.Allocate, udpTransport, attr{stun.RequestedFamily, []byte{familyIPv6, 0, 0, 0}}); code != stun.CodeFamily {
		t.Errorf("an IPv6 allocation: %d, want %d", code, stun.CodeFamily)
	}
}
