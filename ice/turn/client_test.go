package turn

import (
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	witness "github.com/pion/stun/v4"

	"github.com/sluice-vpn/sluice/ice/stun"
)

func TestAllocate(t *testing.T) {
	w := newWorld(t)
	w.c.Start(w.now)
	w.c.Start(w.now) // once is enough
	w.run(time.Second)
	if len(w.told) != 1 || w.told[0].Relayed != testRelayed || w.told[0].Mapped != testMapped {
		t.Errorf("told %+v", w.told)
	}
	w.expect("allocated")
	w.asked("Allocate Allocate+")
	if relayed, mapped, ok := w.c.Allocation(); !ok || relayed != testRelayed || mapped != testMapped {
		t.Error(relayed, mapped, ok)
	}
	// A keepalive every 25 s, a refresh at half of 10 minutes.
	w.run(26 * time.Second)
	w.asked("Binding")
	w.run(275 * time.Second)
	if n := w.s.sent[witness.MethodRefresh]; n != 1 || w.s.sent[witness.MethodBinding] != 12 {
		t.Errorf("%d refreshes, %d keepalives", n, w.s.sent[witness.MethodBinding])
	}
	w.run(time.Hour)
	w.expect()
}

func TestRetransmission(t *testing.T) {
	w := newWorld(t)
	var at []time.Duration
	w.s.drop = func(witness.Method, int) bool { at = append(at, w.now-oneWay-start); return true }
	w.c.Start(w.now)
	w.run(39499 * time.Millisecond)
	want := []time.Duration{0, 500, 1500, 3500, 7500, 15500, 31500} // RFC 8489, section 6.2.1
	for i := range want {
		want[i] *= time.Millisecond
	}
	if fmt.Sprint(at) != fmt.Sprint(want) {
		t.Errorf("sent at %v, want %v", at, want)
	}
	w.expect("failed:silent")
	if len(w.c.transactions) != 1 || w.c.State() != "allocating" {
		t.Error(w.c)
	}
	w.run(2 * time.Millisecond) // 39500 ms
	if len(w.c.transactions) != 0 || w.c.State() != "waiting" {
		t.Error(w.c)
	}
	if at, why := w.c.NextTimeout(); why != WhyRetry || at < w.now+time.Second-2*time.Millisecond || at > w.now+1250*time.Millisecond {
		t.Error(at-w.now, why)
	}
	// The server comes up, and the next request finds it.
	w.s.drop = nil
	w.run(3 * time.Second)
	w.expect("allocated")
}

// TestLoss: with every other datagram lost all comes about nevertheless.
func TestLoss(t *testing.T) {
	w := newWorld(t)
	n := 0
	w.s.drop = func(witness.Method, int) bool { n++; return n%2 == 1 }
	w.c.Start(w.now)
	if err := w.c.Bind(w.now, peerA); err != nil {
		t.Fatal(err)
	}
	w.run(5 * time.Second)
	w.expect("allocated", "channel_bound")
	for range 60 {
		w.c.MarkUsed(w.now, peerA)
		w.run(time.Minute)
	}
	w.expect()
}

// TestLostAnswer: an answer that is lost is given again to the retransmission.
func TestLostAnswer(t *testing.T) {
	w := newWorld(t)
	lost := false
	w.s.tamper = func(m *witness.Message) []byte {
		if m.Type == witness.NewType(witness.MethodAllocate, witness.ClassSuccessResponse) && !lost {
			lost = true
			return nil
		}
		return m.Raw
	}
	w.c.Start(w.now)
	w.run(2 * time.Second)
	w.expect("allocated")
	w.asked("Allocate Allocate+ Allocate+")
}

func TestStaleNonce(t *testing.T) {
	w := up(t)
	for i := range 50 {
		if err := w.c.Bind(w.now, netip.AddrPortFrom(peerA.Addr(), uint16(1000+i))); err != nil {
			t.Fatal(err)
		}
	}
	w.s.nonce++
	w.run(2 * time.Second)
	if len(w.told) != 50 {
		t.Errorf("%d channels", len(w.told))
	}
	w.events, w.told, w.s.seen = nil, nil, nil
	w.s.nonce++
	w.c.Probe(w.now)
	w.run(time.Second)
	w.asked("Refresh+ Binding Refresh+")
	w.expect()
}

func TestStaleForEver(t *testing.T) {
	w := newWorld(t)
	w.s.staleAll = true
	w.c.Start(w.now)
	w.run(500 * time.Millisecond)
	w.expect("failed:stale_nonce")
	w.asked("Allocate Allocate+ Allocate+ Allocate+ Allocate+")
	w.run(10 * time.Minute)
	if n := w.s.sent[witness.MethodAllocate]; n > 90 {
		t.Errorf("%d requests in 10 minutes", n)
	}
	w.s.staleAll = false
	w.run(2 * time.Minute)
	if !strings.HasSuffix(strings.Join(w.events, " "), "stale_nonce allocated") {
		t.Error(w.events)
	}
}

func TestWrongCredentials(t *testing.T) {
	for _, likePion := range []bool{false, true} {
		w := newWorld(t)
		w.s.likePion = likePion
		w.s.logins = []Credentials{otherLogin}
		w.c.Start(w.now)
		w.run(refusedRetry)
		want := Output{Kind: Failed, Reason: ReasonCredentials, Code: 401, Final: true}
		if likePion {
			want.Reason, want.Code = ReasonRefused, 400
		}
		if len(w.told) != 1 || fmt.Sprint(w.told[0]) != fmt.Sprint(want) {
			t.Errorf("told %+v", w.told)
		}
		w.asked("Allocate Allocate+")
		if at, why := w.c.NextTimeout(); at < w.now || at > w.now+refusedRetry/4 || why != WhyRetry {
			t.Error(at-w.now, why)
		}
		w.events, w.told = nil, nil
		if err := w.c.SetCredentials(w.now, otherLogin); err != nil {
			t.Fatal(err)
		}
		w.run(time.Second)
		w.expect("allocated")
	}
}

// TestRotation: the allocation keeps the credentials that it was made with where the server wants those, and when they are
// refused the newer are tried.
func TestRotation(t *testing.T) {
	w := up(t)
	w.s.logins = append(w.s.logins, otherLogin)
	if err := w.c.SetCredentials(w.now, otherLogin); err != nil {
		t.Fatal(err)
	}
	w.run(12 * time.Minute)
	w.expect()
	if w.s.allocatedFor != goodLogin.Username {
		t.Error("the user changed")
	}
	if n := w.s.sent[witness.MethodRefresh]; n != 3 { // the newer ones were tried once
		t.Errorf("%d Refresh requests, want 3", n)
	}
	w.s.logins = w.s.logins[1:] // the old ones expire
	w.c.Probe(w.now)
	w.run(20 * time.Minute) // the old allocation has to run out first
	last := w.events[len(w.events)-1]
	if w.events[0] != "lost:credentials" || last != "allocated" || w.s.allocatedFor != otherLogin.Username {
		t.Error(w.events)
	}
}

// TestRenewal: with a server that knows the newer credentials for the same user's, the allocation and its channels outlive the
// older ones, again and again.
func TestRenewal(t *testing.T) {
	w := up(t)
	bindBoth(w)
	w.s.ofUser = true
	for i := range 5 {
		next := Credentials{Username: fmt.Sprint(1800000000+i, ":salt"), Password: "n3w-password"}
		w.s.logins = append(w.s.logins, next)
		if err := w.c.SetCredentials(w.now, next); err != nil {
			t.Fatal(err)
		}
		for range 8 { // refreshed at half of 10 minutes
			w.run(time.Minute)
			w.c.MarkUsed(w.now, peerA)
			w.c.MarkUsed(w.now, peerB)
		}
		w.s.logins = w.s.logins[1:] // the old ones expire
	}
	w.run(4 * time.Minute)
	w.expect()
	if w.s.sent[witness.MethodAllocate] != 2 { // with and without credentials
		t.Errorf("%d Allocate requests", w.s.sent[witness.MethodAllocate])
	}
}

// TestRenewalRefused: newer credentials that the server does not know end nothing.
func TestRenewalRefused(t *testing.T) {
	for _, renew := range []bool{false, true} {
		w := up(t)
		w.s.ofUser, w.s.renew = true, renew
		if err := w.c.SetCredentials(w.now, Credentials{Username: "1800000000:salt", Password: "of another secret"}); err != nil {
			t.Fatal(err)
		}
		w.run(30 * time.Minute)
		w.expect()
		if w.s.allocatedFor != goodLogin.Username {
			t.Error("the credentials changed")
		}
	}
}

func TestRevoked(t *testing.T) {
	w := up(t)
	w.s.logins = nil
	w.c.Probe(w.now)
	w.run(refusedRetry)
	w.expect("lost:credentials", "failed:credentials")
	if w.c.State() != "refused" {
		t.Error(w.c)
	}
}

// TestServerPutRight: a server that refused good credentials, for a wrong clock or secret of its own, is found to take them again.
func TestServerPutRight(t *testing.T) {
	w := up(t)
	w.s.logins = nil
	w.c.Probe(w.now)
	w.run(time.Hour)
	if n := w.s.sent[witness.MethodAllocate]; n > 20 {
		t.Errorf("%d requests in an hour", n)
	}
	w.events, w.told = nil, nil
	w.s.logins = []Credentials{goodLogin}
	w.run(2 * refusedRetry)
	w.expect("allocated")
}

// TestRestartedServer: it knows nothing any more, and says so.
func TestRestartedServer(t *testing.T) {
	w := up(t)
	bindBoth(w)
	w.s.allocatedFor, w.s.nonce = "", 77
	w.s.relayed = netip.MustParseAddrPort("192.0.2.1:50001")
	w.run(6 * time.Minute)
	w.expect("lost:allocation_mismatch", "allocated", "channel_bound", "channel_bound")
	if number, ok := w.c.Channel(peerB); !ok || number != FirstChannel+1 {
		t.Errorf("%#x %v", number, ok)
	}
}

// TestRestartedPion: pion/turn says nothing where it has no allocation. Binding requests it answers.
func TestRestartedPion(t *testing.T) {
	w := newWorld(t)
	w.s.likePion = true
	w.c.Start(w.now)
	w.run(time.Second)
	bindBoth(w)
	w.events, w.told = nil, nil
	w.s.allocatedFor, w.s.nonce = "", 77
	w.c.Probe(w.now)
	w.run(SilentAfter - time.Second)
	w.expect()
	w.run(2 * time.Second)
	w.expect("lost:silent", "allocated", "channel_bound", "channel_bound")
}

func bindBoth(w *world) {
	w.t.Helper()
	for _, p := range []netip.AddrPort{peerA, peerB} {
		if err := w.c.Bind(w.now, p); err != nil {
			w.t.Fatal(err)
		}
	}
	w.run(time.Second)
	if n := len(w.events); n < 2 || w.events[n-1] != "channel_bound" || w.events[n-2] != "channel_bound" {
		w.t.Fatal(w.events)
	}
	w.events, w.told, w.s.seen = nil, nil, nil
}

// TestSilence: a server that is gone is reported after 8 s, and when it was only out of reach the allocation is taken up again.
func TestSilence(t *testing.T) {
	w := up(t)
	bindBoth(w)
	w.s.dead = true
	w.c.Probe(w.now)
	asked := w.now
	w.run(SilentAfter - time.Millisecond)
	w.expect()
	w.run(time.Millisecond)
	w.expect("lost:silent")
	if _, _, ok := w.c.Allocation(); ok {
		t.Error("still allocated")
	}
	if _, ok := w.c.Channel(peerA); ok {
		t.Error("still bound")
	}
	w.run(4 * time.Second)
	w.s.dead, w.s.seen = false, nil
	w.run(4 * time.Second)
	w.expect("allocated", "channel_bound", "channel_bound")
	w.asked("Allocate+ Refresh+ ChannelBind+ ChannelBind+")
	if w.now-asked > 17*time.Second {
		t.Error(w.now - asked)
	}
}

// TestKeepaliveFindsSilence: without a probe it takes the keepalive.
func TestKeepaliveFindsSilence(t *testing.T) {
	w := up(t)
	w.s.dead = true
	w.run(KeepaliveEvery + SilentAfter)
	w.expect("lost:silent")
}

func TestDeadForLong(t *testing.T) {
	w := up(t)
	w.s.dead = true
	w.run(3 * time.Hour)
	w.expect("lost:silent")
	if n := w.s.sent[witness.MethodAllocate]; n > 1000 {
		t.Errorf("%d requests", n)
	}
	w.s.dead = false
	w.run(2 * time.Minute)
	w.expect("allocated")
}

// TestGoneWhileSilent: it comes back, but without our allocation.
func TestGoneWhileSilent(t *testing.T) {
	w := up(t)
	w.s.dead = true
	w.c.Probe(w.now)
	w.run(9 * time.Second)
	w.s.dead, w.s.allocatedFor = false, ""
	w.run(4 * time.Second)
	w.expect("lost:silent", "allocated")
}

// TestConfirmFails: the allocation on our 5-tuple turns out to be none that we can refresh.
func TestConfirmFails(t *testing.T) {
	w := up(t)
	w.s.dead = true
	w.c.Probe(w.now)
	w.run(9 * time.Second)
	w.s.dead = false
	w.s.refuse[witness.MethodRefresh] = witness.CodeAllocMismatch
	w.run(4 * time.Second)
	delete(w.s.refuse, witness.MethodRefresh)
	w.run(10 * time.Second)
	w.expect("lost:silent", "failed:allocation_mismatch", "allocated")
}

func TestConfirmLifetimeZero(t *testing.T) {
	w := up(t)
	w.s.dead = true
	w.c.Probe(w.now)
	w.run(9 * time.Second)
	w.s.dead, w.s.lifetime = false, 0
	w.run(4 * time.Second)
	w.s.lifetime = testTTL
	w.run(10 * time.Second)
	w.expect("lost:silent", "allocated")
}

func TestMappedAddressChanges(t *testing.T) {
	w := up(t)
	bindBoth(w)
	w.run(2 * time.Minute)
	w.s.mapped = netip.MustParseAddrPort("203.0.113.8:40001")
	w.run(KeepaliveEvery + time.Second)
	w.expect("lost:mapped_address_changed", "allocated", "channel_bound", "channel_bound")
	if _, mapped, _ := w.c.Allocation(); mapped != w.s.mapped {
		t.Error(mapped)
	}
	// An address that flaps makes no storm.
	port := uint16(0)
	w.s.tamper = func(m *witness.Message) []byte {
		if m.Type.Method == witness.MethodBinding {
			port++
			m = &witness.Message{TransactionID: m.TransactionID, Type: m.Type}
			m.WriteHeader()
			w.s.address(m, witness.AttrXORMappedAddress, netip.AddrPortFrom(testMapped.Addr(), port))
		}
		return m.Raw
	}
	before := w.s.sent[witness.MethodAllocate]
	w.run(time.Hour)
	if n := w.s.sent[witness.MethodAllocate] - before; n > 250 {
		t.Errorf("%d Allocate requests in an hour", n)
	}
}

// TestProbeFindsMapping: a server that is silent where there is no allocation tells all the same that a NAT has mapped us anew, and the
// allocation is made again at once, also when that happens twice in a second.
func TestProbeFindsMapping(t *testing.T) {
	w := up(t)
	w.s.likePion = true
	bindBoth(w)
	for port := range uint16(2) {
		w.s.mapped = netip.AddrPortFrom(testMapped.Addr(), 41000+port)
		w.c.Probe(w.now)
		w.run(500 * time.Millisecond)
		w.expect("lost:mapped_address_changed", "allocated", "channel_bound", "channel_bound")
		w.events = nil
	}
}

// TestStrangersAllocation: a process before us had our port and did not clean up.
func TestStrangersAllocation(t *testing.T) {
	w := newWorld(t)
	w.s.allocatedFor, w.s.madeFrom, w.s.expires = goodLogin.Username, testMapped, start+testTTL
	w.c.Start(w.now)
	w.run(time.Second)
	w.expect("allocated")
	w.asked("Allocate Allocate+ Refresh0+ Allocate+")
}

// TestOtherUsersAllocation: we cannot delete it, so we wait.
func TestOtherUsersAllocation(t *testing.T) {
	w := newWorld(t)
	w.s.allocatedFor, w.s.madeFrom, w.s.expires = "somebody", testMapped, start+20*time.Second
	w.c.Start(w.now)
	w.run(time.Second)
	w.expect("failed:allocation_mismatch")
	w.run(45 * time.Second)
	if last := w.events[len(w.events)-1]; last != "allocated" {
		t.Error(w.events)
	}
	// A server that says 437 whatever we do.
	w = newWorld(t)
	w.s.refuse[witness.MethodAllocate] = witness.CodeAllocMismatch
	w.c.Start(w.now)
	w.run(10 * time.Minute)
	if n := w.s.sent[witness.MethodAllocate]; n < 10 || n > 60 {
		t.Errorf("%d requests", n)
	}
}

func TestRefusals(t *testing.T) {
	for _, c := range []struct {
		code   witness.ErrorCode
		reason Reason
		final  bool
	}{
		{witness.CodeForbidden, ReasonForbidden, true},
		{witness.CodeAddrFamilyNotSupported, ReasonFamily, true},
		{witness.CodeUnsupportedTransProto, ReasonRefused, true},
		{witness.CodeBadRequest, ReasonRefused, true},
		{witness.CodeWrongCredentials, ReasonCredentials, true},
		{witness.CodeUnknownAttribute, ReasonRefused, true},
		{witness.CodeAllocQuotaReached, ReasonCapacity, false},
		{witness.CodeInsufficientCapacity, ReasonCapacity, false},
		{witness.CodeServerError, ReasonRefused, false},
		{witness.CodeTryAlternate, ReasonRefused, false},
	} {
		w := newWorld(t)
		w.s.refuse[witness.MethodAllocate] = c.code
		w.c.Start(w.now)
		w.run(500 * time.Millisecond)
		if want := (Output{Kind: Failed, Reason: c.reason, Code: int(c.code), Final: c.final}); len(w.told) != 1 || fmt.Sprint(w.told[0]) != fmt.Sprint(want) {
			t.Errorf("%d: told %+v", c.code, w.told)
		}
		w.events, w.told = nil, nil
		clear(w.s.refuse)
		if c.final {
			w.run(time.Minute)
			w.expect()
			w.c.Start(w.now)
		}
		w.run(3 * time.Second)
		w.expect("allocated")
	}
}

// TestRefreshRefused: an error that passes costs nothing; one that stays costs the allocation when it runs out.
func TestRefreshRefused(t *testing.T) {
	w := up(t)
	w.s.refuse[witness.MethodRefresh] = witness.CodeServerError
	w.run(9 * time.Minute)
	w.expect()
	delete(w.s.refuse, witness.MethodRefresh)
	w.run(10 * time.Minute)
	w.expect()
	w.s.refuse[witness.MethodRefresh] = witness.CodeServerError
	w.run(11 * time.Minute)
	w.expect("lost:expired", "allocated")

	w = up(t)
	w.s.mute[witness.MethodRefresh] = true // but keepalives are answered
	w.run(6 * time.Minute)
	if len(w.events) == 0 || w.events[0] != "lost:silent" {
		t.Error(w.events)
	}

	w = up(t)
	w.s.lifetime = 0
	w.c.Probe(w.now)
	w.run(500 * time.Millisecond)
	if w.events[0] != "lost:expired" {
		t.Error(w.events)
	}
}

func TestShortLifetime(t *testing.T) {
	w := newWorld(t)
	w.s.lifetime = time.Second
	w.c.Start(w.now)
	w.run(time.Hour)
	if n := w.s.sent[witness.MethodAllocate]; n > 500 {
		t.Errorf("%d requests", n)
	}
}

func TestRelease(t *testing.T) {
	w := up(t)
	bindBoth(w)
	w.c.Release(w.now)
	w.c.Release(w.now)
	out, ok := w.c.Poll()
	if !ok || out.Kind != SendDatagram {
		t.Fatal("nothing to send when Release returns")
	}
	w.link = append(w.link, arrival{w.now + oneWay, true, out.Datagram})
	w.run(time.Second)
	w.expect("released")
	w.asked("Refresh0+")
	if w.s.allocatedFor != "" || len(w.c.list) != 0 || len(w.c.deadlines) != 0 || len(w.c.transactions) != 0 {
		t.Error("something is left")
	}
	// It can be used again.
	w.c.Start(w.now)
	w.run(time.Second)
	w.expect("allocated")
}

func TestReleaseVariants(t *testing.T) {
	w := up(t)
	w.s.nonce++
	w.c.Release(w.now)
	w.run(time.Second)
	w.expect("released")
	w.asked("Refresh0+ Refresh0+")

	w = up(t)
	w.s.dead = true
	w.c.Release(w.now)
	w.run(4 * time.Second)
	w.expect("released")
	w.asked("Refresh0+ Refresh0+ Refresh0+")

	w = newWorld(t) // before Start
	w.c.Release(w.now)
	w.run(time.Second)
	w.expect("released")
	w.asked("")

	w = newWorld(t) // the authenticated Allocate is under way
	w.c.Start(w.now)
	w.run(25 * time.Millisecond)
	w.c.Release(w.now)
	w.run(time.Second)
	w.expect("released")
	w.asked("Allocate Allocate+ Refresh0+")
	if w.s.allocatedFor != "" {
		t.Error("the allocation is left")
	}

	w = newWorld(t) // the same, and it is refused
	w.s.refuse[witness.MethodAllocate] = witness.CodeAllocQuotaReached
	w.c.Start(w.now)
	w.run(25 * time.Millisecond)
	w.c.Release(w.now)
	w.run(time.Second)
	w.expect("released")

	w = up(t) // while it is lost by silence
	w.s.dead = true
	w.c.Probe(w.now)
	w.run(9 * time.Second)
	w.s.dead = false
	w.c.Release(w.now)
	w.run(time.Second)
	w.expect("lost:silent", "released")
	if w.s.allocatedFor != "" {
		t.Error("the allocation is left")
	}

	w = up(t) // and asked for again at once
	w.c.Release(w.now)
	w.c.Start(w.now)
	w.run(5 * time.Second)
	if w.events[len(w.events)-1] != "allocated" {
		t.Error(w.events)
	}
}

func TestFamilies(t *testing.T) {
	relayed6 := netip.MustParseAddrPort("[2001:db8::1]:50000")
	peer6 := netip.MustParseAddrPort("[2001:db8::9]:9")
	for _, c := range []struct {
		family  Family
		relayed netip.AddrPort
		ok      bool
	}{
		{FamilyAny, testRelayed, true}, {FamilyAny, relayed6, true},
		{FamilyIPv4, testRelayed, true}, {FamilyIPv4, relayed6, false},
		{FamilyIPv6, testRelayed, false}, {FamilyIPv6, relayed6, true},
	} {
		w := newWorld(t)
		w.c = newTestClient(t, Config{Server: testServer, Credentials: goodLogin, Family: c.family, Lifetime: time.Hour})
		w.s.relayed = c.relayed
		w.s.mapped = netip.MustParseAddrPort("[2001:db8::77]:77")
		w.c.Start(w.now)
		w.run(time.Second)
		if _, mapped, ok := w.c.Allocation(); ok != c.ok || ok && mapped != w.s.mapped {
			t.Errorf("%d %v: %v", c.family, c.relayed, ok)
		}
		if !c.ok {
			continue
		}
		for _, peer := range []netip.AddrPort{peerA, peer6} {
			if err := w.c.Bind(w.now, peer); (err == nil) != (peer.Addr().Is4() == c.relayed.Addr().Is4()) {
				t.Errorf("%v to %v: %v", c.relayed, peer, err)
			}
		}
		w.run(time.Second)
		w.expect("allocated", "channel_bound")
	}
}

func TestConfig(t *testing.T) {
	good := Config{Server: testServer, Credentials: goodLogin}
	for name, spoil := range map[string]func(*Config){
		"no server": func(c *Config) { c.Server = netip.AddrPort{} },
		"no port":   func(c *Config) { c.Server = netip.AddrPortFrom(testServer.Addr(), 0) },
		"any":       func(c *Config) { c.Server = netip.MustParseAddrPort("0.0.0.0:1") },
		"multicast": func(c *Config) { c.Server = netip.MustParseAddrPort("224.0.0.1:1") },
		"4in6":      func(c *Config) { c.Server = netip.MustParseAddrPort("[::ffff:1.2.3.4]:1") },
		"no user":   func(c *Config) { c.Credentials.Username = "" },
		"long user": func(c *Config) { c.Credentials.Username = strings.Repeat("x", 509) },
		"long pass": func(c *Config) { c.Credentials.Password = strings.Repeat("x", 509) },
		"lifetime":  func(c *Config) { c.Lifetime = -1 },
		"too long":  func(c *Config) { c.Lifetime = 25 * time.Hour },
		"family":    func(c *Config) { c.Family = 3 },
	} {
		config := good
		spoil(&config)
		if c, err := New(config); err == nil || c != nil {
			t.Errorf("%s: accepted", name)
		}
	}
	c, err := New(good)
	if err != nil {
		t.Fatal(err)
	}
	if c.SetCredentials(start, Credentials{}) == nil || c.State() != "idle" || c.Server() != testServer {
		t.Error(c)
	}
}

// TestSecrets: no way of printing shows a secret.
func TestSecrets(t *testing.T) {
	w := up(t)
	config := Config{Server: testServer, Credentials: goodLogin}
	encoded, err := json.Marshal(config.Credentials)
	if err != nil {
		t.Fatal(err)
	}
	texts := []string{string(encoded)}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%d"} {
		texts = append(texts, fmt.Sprintf(verb, config), fmt.Sprintf(verb, goodLogin), fmt.Sprintf(verb, &goodLogin), fmt.Sprintf(verb, w.c))
	}
	for _, text := range texts {
		for _, secret := range []string{goodLogin.Password, goodLogin.Username, fmt.Sprintf("%x", goodLogin.Password), w.c.nonce} {
			if strings.Contains(text, secret) {
				t.Errorf("%s shows %q", text, secret)
			}
		}
	}
}

func TestNames(t *testing.T) {
	seen := map[string]bool{}
	for d := DropNone; d < DropCount; d++ {
		if s := d.String(); s == "" || s == "unknown" || seen[s] {
			t.Errorf("drop %d is called %q", d, s)
		} else {
			seen[s] = true
		}
	}
	for r := ReasonNone; r <= ReasonIdle; r++ {
		if s := r.String(); s == "" || s == "unknown" {
			t.Errorf("reason %d has no name", r)
		}
	}
	for k := SendDatagram; k <= Released; k++ {
		if s := k.String(); s == "" || s == "unknown" {
			t.Errorf("output %d has no name", k)
		}
	}
	for y := WhyNothing; y <= WhyBinding; y++ {
		if s := y.String(); s == "" || s == "unknown" {
			t.Errorf("why %d has no name", y)
		}
	}
	if DropCount.String() != "unknown" || Reason(99).String() != "unknown" || OutputKind(99).String() != "unknown" || Why(99).String() != "unknown" {
		t.Error("what has no name is unknown")
	}
	var c Client
	if c.Dropped(DropCount) != 0 {
		t.Error("out of range")
	}
}

// TestRefreshUnanswered: Refresh alone is never answered, and the server is not silent otherwise.
func TestRefreshUnanswered(t *testing.T) {
	w := up(t)
	w.s.mute[witness.MethodRefresh] = true
	w.c.Probe(w.now)
	for i := range 12 {
		w.run(4 * time.Second)
		w.bind(netip.AddrPortFrom(peerB.Addr(), uint16(i+1)))
	}
	if !slices.Contains(w.events, "lost:silent") {
		t.Error(w.events)
	}
	if n := w.s.sent[witness.MethodRefresh]; n < maxSends {
		t.Errorf("%d requests", n)
	}
}

// TestDeleteFindsNothing: between Allocate and Refresh the stranger's allocation has ended.
func TestDeleteFindsNothing(t *testing.T) {
	w := newWorld(t)
	w.s.allocatedFor, w.s.madeFrom, w.s.expires = goodLogin.Username, testMapped, start+testTTL
	w.s.drop = func(method witness.Method, _ int) bool {
		if method == witness.MethodRefresh {
			w.s.allocatedFor = ""
		}
		return false
	}
	w.c.Start(w.now)
	w.run(time.Second)
	w.expect("allocated")
	w.asked("Allocate Allocate+ Refresh0+ Allocate+")
}

// TestNewerCredentialsInTime: they come while the old ones are being refused.
func TestNewerCredentialsInTime(t *testing.T) {
	w := newWorld(t)
	w.s.logins = []Credentials{otherLogin}
	w.c.Start(w.now)
	w.run(30 * time.Millisecond)
	if err := w.c.SetCredentials(w.now, otherLogin); err != nil {
		t.Fatal(err)
	}
	w.run(5 * time.Second)
	if len(w.told) != 2 || w.told[0].Final {
		t.Errorf("%+v", w.told)
	}
	w.expect("failed:credentials", "allocated")
}

// TestRefusedAtTheEnd: an error arrives after the allocation has run out.
func TestRefusedAtTheEnd(t *testing.T) {
	w := up(t)
	w.c.expires, w.s.expires = w.now+oneWay, w.now+2*oneWay
	w.s.refuse[witness.MethodRefresh] = witness.CodeServerError
	w.c.Probe(w.now)
	w.run(time.Second)
	w.expect("lost:expired", "allocated")
}

// TestKeepaliveRefused: a server that wants no Binding requests is alive all the same.
func TestKeepaliveRefused(t *testing.T) {
	w := up(t)
	w.s.tamper = func(m *witness.Message) []byte {
		if m.Type.Method != witness.MethodBinding {
			return m.Raw
		}
		out := &witness.Message{TransactionID: m.TransactionID, Type: witness.BindingError}
		out.WriteHeader()
		must(witness.CodeUnauthorized.AddTo(out))
		return out.Raw
	}
	w.run(time.Hour)
	w.expect()
	if n := w.s.sent[witness.MethodBinding]; n < 140 || n > 144 {
		t.Errorf("%d keepalives", n)
	}
}

// TestLifetimeIsAskedFor: in Allocate and in Refresh.
func TestLifetimeIsAskedFor(t *testing.T) {
	c := newTestClient(t, Config{Server: testServer, Credentials: goodLogin, Lifetime: 90*time.Second + time.Millisecond})
	for _, method := range []stun.Method{stun.Allocate, stun.Refresh} {
		w := stun.Build(nil, stun.Request, method, stun.ID{})
		c.fill(&w, &c.allocation, method)
		if v := stun.Find(w.Bytes(), stun.Lifetime); string(v) != "\x00\x00\x00\x5A" {
			t.Errorf("%#x: a lifetime of %x, want 90 s", method, v)
		}
	}
}
