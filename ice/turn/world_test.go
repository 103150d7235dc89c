package turn

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/pion/stun/v3"
)

var (
	testServer  = netip.MustParseAddrPort("192.0.2.1:3478")
	testMapped  = netip.MustParseAddrPort("203.0.113.7:40000")
	testRelayed = netip.MustParseAddrPort("192.0.2.1:50000")
	peerA       = netip.MustParseAddrPort("198.51.100.1:1000")
	peerB       = netip.MustParseAddrPort("198.51.100.2:2000")
	goodLogin   = Credentials{Username: "1700000000:salt", Password: "s3cret-password"}
	otherLogin  = Credentials{Username: "1800000000:pepper", Password: "an0ther-password"}
)

const (
	start   = time.Hour // of virtual time
	oneWay  = 10 * time.Millisecond
	testTTL = 10 * time.Minute
)

// scripted is a TURN server of few words in virtual time. Its switches make it misbehave.
type scripted struct {
	t        *testing.T
	realm    string
	nonce    int
	logins   []Credentials
	mapped   netip.AddrPort
	relayed  netip.AddrPort
	lifetime time.Duration

	// state
	allocatedFor string // user name; "": no allocation
	madeFrom     netip.AddrPort
	expires      time.Duration
	channels     map[uint16]netip.AddrPort
	permissions  map[netip.Addr]bool
	lastAllocate transactionID

	// switches
	dead     bool                                    // answers nothing
	refuse   map[stun.Method]stun.ErrorCode          // answers this, after authentication
	mute     map[stun.Method]bool                    // answers nothing to this
	likePion bool                                    // silent where there is no allocation, 400 to a wrong password, no error is signed
	tamper   func(m *stun.Message) (raw []byte)      // rewrites the response, or drops it (nil)
	staleAll bool                                    // every nonce is stale
	renew    bool                                    // every 401 comes with another nonce
	ofUser   bool                                    // an allocation is tied to the user only, the part behind the colon
	drop     func(method stun.Method, sent int) bool // loses the request on its way

	seen []string // methods, with what is special of them
	sent map[stun.Method]int
}

func (s *scripted) nonceText() string { return fmt.Sprintf("nonce-%d", s.nonce) }

// handle answers one request; nil: silence.
func (s *scripted) handle(now time.Duration, raw []byte) []byte {
	m := &stun.Message{}
	if drop := check(raw); drop != DropNone {
		s.t.Errorf("we sent what we would drop: %v", drop)
	}
	if err := stun.Decode(raw, m); err != nil {
		s.t.Fatal(err)
	}
	if err := stun.Fingerprint.Check(m); err != nil {
		s.t.Error("request without a right fingerprint:", err)
	}
	method := m.Type.Method
	s.sent[method]++
	lifetime, hasLifetime := lifetimeOf(m)
	note := method.String()
	if hasLifetime && lifetime == 0 {
		note += "0"
	}
	if m.Contains(stun.AttrMessageIntegrity) {
		note += "+"
	}
	s.seen = append(s.seen, note)
	if s.dead || s.mute[method] || s.drop != nil && s.drop(method, s.sent[method]) {
		return nil
	}
	if s.allocatedFor != "" && now >= s.expires {
		s.allocatedFor = ""
	}
	if method == stun.MethodBinding {
		return s.answer(m, nil, func(out *stun.Message) { s.address(out, stun.AttrXORMappedAddress, s.mapped) })
	}
	login, code := s.authenticate(m)
	if code != 0 {
		return s.fail(m, nil, code)
	}
	key := stun.NewLongTermIntegrity(login.Username, s.realm, login.Password)
	if code, ok := s.refuse[method]; ok {
		return s.fail(m, key, code)
	}
	return s.serve(now, m, login, key, lifetime, hasLifetime)
}

func (s *scripted) authenticate(m *stun.Message) (Credentials, stun.ErrorCode) {
	if !m.Contains(stun.AttrMessageIntegrity) {
		return Credentials{}, stun.CodeUnauthorized
	}
	if s.staleAll || text(m, stun.AttrNonce) != s.nonceText() {
		if s.staleAll {
			s.nonce++
		}
		return Credentials{}, stun.CodeStaleNonce
	}
	for _, l := range s.logins {
		if l.Username == text(m, stun.AttrUsername) && stun.NewLongTermIntegrity(l.Username, s.realm, l.Password).Check(m) == nil {
			return l, 0
		}
	}
	if s.likePion {
		return Credentials{}, stun.CodeBadRequest
	}
	return Credentials{}, stun.CodeUnauthorized
}

func (s *scripted) serve(now time.Duration, m *stun.Message, login Credentials, key stun.MessageIntegrity, lifetime time.Duration, hasLifetime bool) []byte {
	here := s.allocatedFor != "" && s.madeFrom == s.mapped
	method := m.Type.Method
	granted := s.lifetime
	if hasLifetime && method == stun.MethodRefresh && lifetime == 0 {
		granted = 0
	}
	switch {
	case method == stun.MethodAllocate && here && s.lastAllocate != m.TransactionID:
		return s.fail(m, key, stun.CodeAllocMismatch)
	case method != stun.MethodAllocate && !here:
		if s.likePion {
			return nil
		}
		return s.fail(m, key, stun.CodeAllocMismatch)
	case method != stun.MethodAllocate && !s.owns(login):
		return s.fail(m, key, stun.CodeWrongCredentials)
	case method == stun.MethodAllocate:
		s.allocatedFor, s.madeFrom, s.lastAllocate = login.Username, s.mapped, m.TransactionID
		s.expires, s.channels, s.permissions = now+granted, map[uint16]netip.AddrPort{}, map[netip.Addr]bool{}
	case method == stun.MethodRefresh:
		s.expires = now + granted
		if granted == 0 {
			s.allocatedFor = ""
		}
	case method == stun.MethodChannelBind:
		if code := s.bind(m); code != 0 {
			return s.fail(m, key, code)
		}
	case method == stun.MethodCreatePermission:
		peer, _ := xorAddressOf(m, stun.AttrXORPeerAddress)
		s.permissions[peer.Addr()] = true
	}
	return s.answer(m, key, func(out *stun.Message) {
		switch method {
		case stun.MethodAllocate:
			s.address(out, stun.AttrXORRelayedAddress, s.relayed)
			s.address(out, stun.AttrXORMappedAddress, s.mapped)
			addUint32(out, stun.AttrLifetime, seconds(granted))
		case stun.MethodRefresh:
			addUint32(out, stun.AttrLifetime, seconds(granted))
		}
	})
}

// owns takes the allocation over with newer credentials of its user.
func (s *scripted) owns(login Credentials) bool {
	_, user, _ := strings.Cut(login.Username, ":")
	if s.ofUser && strings.HasSuffix(s.allocatedFor, ":"+user) {
		s.allocatedFor = login.Username
	}
	return s.allocatedFor == login.Username
}

// bind demands what RFC 8656, section 12.2, demands: one peer a number and one number a peer.
func (s *scripted) bind(m *stun.Message) stun.ErrorCode {
	v, err := m.Get(stun.AttrChannelNumber)
	peer, ok := xorAddressOf(m, stun.AttrXORPeerAddress)
	if err != nil || !ok {
		return stun.CodeBadRequest
	}
	number := binary.BigEndian.Uint16(v)
	for n, p := range s.channels {
		if (n == number) != (p == peer) {
			s.t.Errorf("channel %#x for %v, but %#x is for %v", number, peer, n, p)
			return stun.CodeBadRequest
		}
	}
	if number < FirstChannel || number > LastChannel {
		s.t.Errorf("channel %#x is none", number)
	}
	s.channels[number], s.permissions[peer.Addr()] = peer, true
	return 0
}

func (s *scripted) address(m *stun.Message, kind stun.AttrType, a netip.AddrPort) {
	m.Add(kind, appendXORAddress(nil, &m.TransactionID, a))
}

func (s *scripted) answer(to *stun.Message, key stun.MessageIntegrity, fill func(*stun.Message)) []byte {
	return s.finish(to, stun.ClassSuccessResponse, key, fill)
}

func (s *scripted) fail(to *stun.Message, key stun.MessageIntegrity, code stun.ErrorCode) []byte {
	if s.likePion {
		key = nil
	}
	if s.renew && code == stun.CodeUnauthorized {
		s.nonce++
	}
	return s.finish(to, stun.ClassErrorResponse, key, func(m *stun.Message) {
		(&stun.ErrorCodeAttribute{Code: code, Reason: []byte("no")}).AddTo(m)
		if code == stun.CodeUnauthorized || code == stun.CodeStaleNonce {
			m.Add(stun.AttrRealm, []byte(s.realm))
			m.Add(stun.AttrNonce, []byte(s.nonceText()))
		}
	})
}

func (s *scripted) finish(to *stun.Message, class stun.MessageClass, key stun.MessageIntegrity, fill func(*stun.Message)) []byte {
	out := &stun.Message{TransactionID: to.TransactionID, Type: stun.NewType(to.Type.Method, class)}
	out.WriteHeader()
	fill(out)
	if key != nil {
		must(key.AddTo(out))
	}
	if s.tamper != nil {
		return s.tamper(out)
	}
	must(stun.Fingerprint.AddTo(out))
	return out.Raw
}

// arrival is a datagram under way.
type arrival struct {
	at       time.Duration
	toServer bool
	raw      []byte
}

// world joins a client and a scripted server by a link with a delay, in virtual time.
type world struct {
	t      *testing.T
	c      *Client
	s      *scripted
	now    time.Duration
	link   []arrival // in order of time, since the delay is constant
	told   []Output  // but not what was sent
	events []string  // the same, as text
	checks int
}

func newWorld(t *testing.T) *world {
	t.Helper()
	s := &scripted{
		t: t, realm: "example.org", logins: []Credentials{goodLogin}, mapped: testMapped, relayed: testRelayed, lifetime: testTTL,
		refuse: map[stun.Method]stun.ErrorCode{}, mute: map[stun.Method]bool{}, sent: map[stun.Method]int{},
	}
	return &world{t: t, s: s, now: start, c: newTestClient(t, Config{Server: testServer, Credentials: goodLogin})}
}

func newTestClient(t testing.TB, config Config) *Client {
	t.Helper()
	config.Random = rand.NewChaCha8([32]byte{1})
	c, err := New(config)
	if err != nil {
		t.Fatal(err)
	}
	return c
}

// up is a world with an allocation.
func up(t *testing.T) *world {
	t.Helper()
	w := newWorld(t)
	w.c.Start(w.now)
	w.run(time.Second)
	w.expect("allocated")
	w.s.seen = nil
	return w
}

func (w *world) drain() {
	for {
		out, ok := w.c.Poll()
		if !ok {
			break
		}
		if out.Kind == SendDatagram {
			w.link = append(w.link, arrival{w.now + oneWay, true, out.Datagram})
			continue
		}
		w.told = append(w.told, out)
		text := out.Kind.String()
		if out.Reason != ReasonNone {
			text += ":" + out.Reason.String()
		}
		w.events = append(w.events, text)
	}
	w.invariants()
}

// invariants: what must hold after each input.
func (w *world) invariants() {
	if w.checks++; len(w.c.list) > 200 && w.checks%500 != 0 {
		return // it takes too long to look at so many each time
	}
	c, running, waiting := w.c, 0, 0
	for _, b := range c.list {
		if b.running {
			running++
		}
		if b.queued {
			waiting++
		}
		if c.bindings[b.peer] != b || b.number != 0 && c.numbers[b.number] != b {
			w.t.Fatalf("the tables disagree on %v", b.peer)
		}
	}
	if running != c.inFlight || c.inFlight > maxInFlight || waiting > len(c.waiting) || len(c.list) != len(c.bindings) {
		w.t.Fatalf("in flight %d, counted %d, waiting %d of %d", running, c.inFlight, waiting, len(c.waiting))
	}
	if len(c.transactions) > c.inFlight+2 {
		w.t.Fatalf("%d transactions", len(c.transactions))
	}
	for i, op := range c.deadlines {
		if op.index != i {
			w.t.Fatal("the heap is broken")
		}
	}
	if at, _ := c.NextTimeout(); at != 0 && at <= w.now-time.Millisecond {
		w.t.Fatalf("a deadline of the past: %v at %v", at, w.now)
	}
}

// run lets so much time pass.
func (w *world) run(d time.Duration) {
	w.t.Helper()
	end := w.now + d
	for steps := 0; ; steps++ {
		if steps > 200_000 {
			w.t.Fatal("the client does not come to rest")
		}
		w.drain()
		next, isLink := end, false
		if at, why := w.c.NextTimeout(); at != 0 && at <= next {
			if why == WhyNothing {
				w.t.Fatal("a deadline for nothing")
			}
			next = at
		}
		if len(w.link) > 0 && w.link[0].at <= next {
			next, isLink = w.link[0].at, true
		}
		w.now = max(w.now, next)
		if isLink {
			a := w.link[0]
			w.link = w.link[1:]
			w.deliver(a)
			continue
		}
		if at, _ := w.c.NextTimeout(); at != 0 && at <= w.now {
			w.c.HandleTimeout(w.now)
			continue
		}
		return
	}
}

func (w *world) deliver(a arrival) {
	if !a.toServer {
		w.c.Handle(w.now, testServer, a.raw)
		return
	}
	if raw := w.s.handle(w.now, a.raw); raw != nil {
		w.link = append(w.link, arrival{w.now + oneWay, false, raw})
	}
}

// expect compares the events since the last time.
func (w *world) expect(events ...string) {
	w.t.Helper()
	if got, want := strings.Join(w.events, " "), strings.Join(events, " "); got != want {
		w.t.Errorf("events %q, want %q", got, want)
	}
	w.events, w.told = nil, nil
}

// asked compares the requests that the server saw since the last time.
func (w *world) asked(methods string) {
	w.t.Helper()
	if got := strings.Join(w.s.seen, " "); got != methods {
		w.t.Errorf("requests %q, want %q", got, methods)
	}
	w.s.seen = nil
}
