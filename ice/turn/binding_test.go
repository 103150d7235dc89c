package turn

import (
	"errors"
	"net/netip"
	"testing"
	"time"

	witness "github.com/pion/stun/v4"
)

func (w *world) bind(peer netip.AddrPort) {
	w.t.Helper()
	if err := w.c.Bind(w.now, peer); err != nil {
		w.t.Fatal(err)
	}
}

func TestBind(t *testing.T) {
	w := up(t)
	w.bind(peerA)
	if _, ok := w.c.Channel(peerA); ok {
		t.Error("bound before the answer")
	}
	w.run(time.Second)
	if len(w.told) != 1 || w.told[0].Peer != peerA || w.told[0].Channel != FirstChannel {
		t.Errorf("%+v", w.told)
	}
	w.expect("channel_bound")
	w.bind(peerA) // held twice
	w.run(time.Second)
	w.expect("channel_bound")
	w.asked("ChannelBind+")
	w.c.Unbind(w.now, peerA)
	if n, ok := w.c.Channel(peerA); !ok || n != FirstChannel {
		t.Error("one holder is left")
	}
	if p, ok := w.c.Peer(FirstChannel); !ok || p != peerA {
		t.Error(p, ok)
	}
	w.c.Unbind(w.now, peerA)
	w.c.Unbind(w.now, peerA) // once too often
	w.c.Unbind(w.now, peerB) // never bound
	if _, ok := w.c.Channel(peerA); ok {
		t.Error("nobody is left")
	}
	if _, ok := w.c.Peer(FirstChannel); ok {
		t.Error("nobody is left")
	}
	w.expect()
}

// TestRefreshOnlyIfUsed: a channel that is used is refreshed every four minutes, one that is not is reported lost before its
// permission has ended, and comes back when it is wanted.
func TestRefreshOnlyIfUsed(t *testing.T) {
	w := up(t)
	bindBoth(w)
	binds := w.s.sent[witness.MethodChannelBind]
	for range 20 {
		w.c.MarkUsed(w.now, peerA)
		w.run(time.Minute)
	}
	w.expect("channel_lost:idle")
	if n := w.s.sent[witness.MethodChannelBind] - binds; n != 5 {
		t.Errorf("%d refreshes in 20 minutes", n)
	}
	w.c.MarkUsed(w.now, peerB)
	w.run(time.Second)
	w.expect("channel_bound")
	if n, ok := w.c.Channel(peerB); !ok || n != FirstChannel+1 {
		t.Errorf("%#x", n)
	}
	// Used in the fifth minute: refreshed at once.
	w.run(BindingRefresh + 30*time.Second)
	w.s.seen = nil
	w.c.MarkUsed(w.now, peerB)
	w.run(time.Second)
	w.asked("ChannelBind+")
	w.c.MarkUsed(w.now, netip.MustParseAddrPort("9.9.9.9:9")) // nobody's
}

// TestQuarantine: a number serves no other peer for 15 minutes after its last request, but the same peer at any time.
func TestQuarantine(t *testing.T) {
	w := up(t)
	w.c.nextNumber = maxBindings - 1 // the last one; then it goes round
	w.bind(peerA)
	w.run(time.Second)
	if n, _ := w.c.Channel(peerA); n != LastChannel {
		t.Errorf("%#x", n)
	}
	w.c.Unbind(w.now, peerA)
	w.run(10 * time.Minute)
	w.c.nextNumber = maxBindings - 1
	w.bind(peerB)
	w.run(time.Second)
	if n, _ := w.c.Channel(peerB); n != FirstChannel {
		t.Errorf("%#x", n)
	}
	w.bind(peerA)
	w.run(time.Second)
	if n, _ := w.c.Channel(peerA); n != LastChannel {
		t.Errorf("%#x", n)
	}
	w.c.Unbind(w.now, peerA)
	asked := w.c.bindings[peerA].asked
	w.run(asked + ChannelQuarantine - time.Millisecond - w.now)
	if w.c.numbers[LastChannel] == nil {
		t.Error("forgotten too early")
	}
	w.run(time.Millisecond)
	if w.c.numbers[LastChannel] != nil || w.c.bindings[peerA] != nil {
		t.Error("not forgotten")
	}
}

// TestRevive: bound again within the life of the permission, it is there at once; later it is asked for.
func TestRevive(t *testing.T) {
	w := up(t)
	w.bind(peerA)
	w.run(time.Second)
	w.c.Unbind(w.now, peerA)
	w.run(time.Minute)
	w.s.seen, w.events = nil, nil
	w.bind(peerA)
	w.drain()
	w.expect("channel_bound")
	w.run(time.Second)
	w.asked("")
	w.run(BindingRefresh - time.Minute)
	w.asked("Binding Binding Binding Binding Binding Binding Binding ChannelBind+")
	w.c.Unbind(w.now, peerA)
	w.run(6 * time.Minute)
	w.bind(peerA)
	w.drain()
	w.expect()
	w.run(time.Second)
	w.expect("channel_bound")
}

// TestLetGoInFlight: nobody wants the answer any more.
func TestLetGoInFlight(t *testing.T) {
	w := up(t)
	w.bind(peerA)
	w.c.Unbind(w.now, peerA)
	w.run(time.Second)
	w.expect()
	if w.c.Dropped(DropTransaction) != 1 || w.c.numbers[FirstChannel] == nil {
		t.Error("the answer was taken, or the number is free although the server may have bound it")
	}
	w.bind(peerA)
	w.run(time.Second)
	w.expect("channel_bound")

	// Never asked for: nothing to remember.
	w = newWorld(t)
	w.bind(peerA)
	w.c.Unbind(w.now, peerA)
	if len(w.c.bindings)+len(w.c.numbers)+len(w.c.list)+len(w.c.permitted) != 0 {
		t.Error("remembered")
	}
}

func TestBindRefused(t *testing.T) {
	for code, reason := range map[witness.ErrorCode]Reason{
		witness.CodeForbidden: ReasonForbidden, witness.CodeBadRequest: ReasonRefused, witness.CodeInsufficientCapacity: ReasonCapacity,
		witness.CodePeerAddrFamilyMismatch: ReasonFamily,
	} {
		w := up(t)
		w.s.refuse[witness.MethodChannelBind] = code
		w.bind(peerA)
		w.run(time.Second)
		w.expect("channel_lost:" + reason.String())
		w.c.MarkUsed(w.now, peerA) // is no reason to ask again
		w.run(10 * time.Minute)
		if n := w.s.sent[witness.MethodChannelBind]; n != 1 {
			t.Errorf("%d requests", n)
		}
		clear(w.s.refuse)
		w.bind(peerA)
		w.run(time.Second)
		w.expect("channel_bound")
	}
}

func TestBindMismatch(t *testing.T) {
	w := up(t)
	w.s.allocatedFor = ""
	w.bind(peerA)
	w.run(time.Second)
	w.expect("lost:allocation_mismatch", "allocated", "channel_bound")
}

// TestBindUnanswered: the server is well, but this it never answers.
func TestBindUnanswered(t *testing.T) {
	w := up(t)
	w.s.mute[witness.MethodChannelBind] = true
	w.bind(peerA)
	for range 10 { // so that it does not count as silent
		w.run(4 * time.Second)
		w.c.Probe(w.now)
	}
	w.expect("channel_lost:silent")
	clear(w.s.mute)
	w.c.MarkUsed(w.now, peerA)
	w.run(time.Second)
	w.expect("channel_bound")
}

func TestBindBadPeers(t *testing.T) {
	w := up(t)
	for _, s := range []string{
		"0.0.0.0:1", "224.0.0.1:1", "255.255.255.255:1", "1.2.3.4:0", "[::]:1", "[ff02::1]:1", "[2001:db8::1]:1",
		"[::ffff:1.2.3.4]:5", "[fe80::1%eth0]:1",
	} {
		if err := w.c.Bind(w.now, netip.MustParseAddrPort(s)); !errors.Is(err, ErrPeer) {
			t.Errorf("%s: %v", s, err)
		}
	}
	if err := w.c.Bind(w.now, netip.AddrPort{}); !errors.Is(err, ErrPeer) {
		t.Error(err)
	}
	w.run(time.Second)
	w.asked("")
}

// TestFull: 4096 channels and 1024 permissions, a bounded number in flight, and no room for more.
func TestFull(t *testing.T) {
	w := up(t)
	for i := range maxBindings {
		w.bind(netip.AddrPortFrom(peerA.Addr(), uint16(i+1)))
	}
	if err := w.c.Bind(w.now, peerB); !errors.Is(err, ErrFull) {
		t.Error(err)
	}
	for i := range maxPermissions {
		if err := w.c.Permit(w.now, netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)})); err != nil {
			t.Fatal(err)
		}
	}
	if err := w.c.Permit(w.now, peerB.Addr()); !errors.Is(err, ErrFull) {
		t.Error(err)
	}
	if w.c.inFlight != maxInFlight {
		t.Errorf("%d in flight", w.c.inFlight)
	}
	w.run(10 * time.Second)
	if len(w.told) != maxBindings+maxPermissions || len(w.s.channels) != maxBindings {
		t.Errorf("%d told, %d channels", len(w.told), len(w.s.channels))
	}
	for i := range maxBindings {
		w.c.Unbind(w.now, netip.AddrPortFrom(peerA.Addr(), uint16(i+1)))
	}
	for i := range maxPermissions {
		w.c.Forbid(w.now, netip.AddrFrom4([4]byte{10, 0, byte(i >> 8), byte(i)}))
	}
	if err := w.c.Bind(w.now, peerB); !errors.Is(err, ErrFull) {
		t.Error("quarantine:", err)
	}
	w.run(ChannelQuarantine)
	if n := len(w.c.bindings) + len(w.c.numbers) + len(w.c.list) + len(w.c.permitted) + w.c.permissions + w.c.inFlight; n != 0 {
		t.Errorf("%d are left", n)
	}
	w.bind(peerB)
}

// TestQueueLetGo: some of those that wait for a place are let go of, forgotten and bound again.
func TestQueueLetGo(t *testing.T) {
	w := up(t)
	for i := range 100 {
		w.bind(netip.AddrPortFrom(peerA.Addr(), uint16(i+1)))
	}
	for i := range 100 {
		if i%2 == 0 {
			w.c.Unbind(w.now, netip.AddrPortFrom(peerA.Addr(), uint16(i+1)))
		}
		if i%4 == 0 {
			w.bind(netip.AddrPortFrom(peerA.Addr(), uint16(i+1)))
		}
	}
	w.run(2 * time.Second)
	bound := 0
	for i := range 100 {
		if _, ok := w.c.Channel(netip.AddrPortFrom(peerA.Addr(), uint16(i+1))); ok {
			bound++
		}
	}
	if bound != 75 {
		t.Errorf("%d are bound", bound)
	}
}

func TestPermit(t *testing.T) {
	w := up(t)
	if err := w.c.Permit(w.now, peerA.Addr()); err != nil {
		t.Fatal(err)
	}
	w.run(time.Second)
	w.expect("permitted")
	w.asked("CreatePermission+")
	w.run(PermissionLife)
	w.expect("permit_lost:idle")
	w.c.MarkUsed(w.now, netip.AddrPortFrom(peerA.Addr(), 0))
	w.run(time.Second)
	w.expect("permitted")
	w.c.Forbid(w.now, peerA.Addr())
	w.s.seen, w.events = nil, nil
	if err := w.c.Permit(w.now, peerA.Addr()); err != nil {
		t.Fatal(err)
	}
	w.run(time.Second)
	w.expect("permitted")
	w.asked("") // the server has it still
	w.c.Forbid(w.now, peerA.Addr())
	w.run(PermissionLife)
	if len(w.c.bindings) != 0 {
		t.Error("it is remembered for longer than the server does")
	}
	if err := w.c.Permit(w.now, netip.Addr{}); !errors.Is(err, ErrPeer) {
		t.Error(err)
	}
	w.s.refuse[witness.MethodCreatePermission] = witness.CodeForbidden
	if err := w.c.Permit(w.now, peerB.Addr()); err != nil {
		t.Fatal(err)
	}
	w.run(time.Second)
	w.expect("permit_lost:forbidden")
	w.c.Forbid(w.now, peerB.Addr())
	w.s.seen, w.events = nil, nil
	if err := w.c.Permit(w.now, peerB.Addr()); err != nil {
		t.Fatal(err)
	}
	w.run(time.Second)
	w.asked("") // it would be refused again

	// Of what the server had no room for it may have some now.
	w.c.Forbid(w.now, peerB.Addr())
	w.run(PermissionLife)
	w.s.refuse[witness.MethodCreatePermission] = witness.CodeInsufficientCapacity
	for range 2 {
		w.s.seen, w.events = nil, nil
		if err := w.c.Permit(w.now, peerB.Addr()); err != nil {
			t.Fatal(err)
		}
		w.run(time.Second)
		w.expect("permit_lost:capacity")
		w.asked("CreatePermission+")
		w.c.Forbid(w.now, peerB.Addr())
	}
}
