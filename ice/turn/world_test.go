package turn

import (
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"strings"
	"testing"
	"time"

	witness "github.com/pion/stun/v4"

	"github.com/sluice-vpn/sluice/ice/stun"
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
	lastAllocate stun.ID

	// switches
	dead     bool                                       // answers nothing
	refuse   map[witness.Method]witness.ErrorCode       // answers this, after authentication
	mute     map[witness.Method]bool                    // answers nothing to this
	likePion bool                                       // silent where there is no allocation, 400 to a wrong password, no error is signed
	tamper   func(m *witness.Message) (raw []byte)      // rewrites the response, or drops it (nil)
	staleAll bool                                       // every nonce is stale
	renew    bool                                       // every 401 comes with another nonce
	ofUser   bool                                       // an allocation is tied to the user only, the part behind the colon
	drop     func(method witness.Method, sent int) bool // loses the request on its way

	seen []string // methods, with what is special of them
	sent map[witness.Method]int
}

func (s *scripted) nonceText() string { return fmt.Sprintf("nonce-%d", s.nonce) }

// handle answers one request; nil: silence.
func (s *scripted) handle(now time.Duration, raw []byte) []byte {
	m := &witness.Message{}
	if drop := new(stun.Message).Parse(raw, stun.Server); drop != stun.DropNone {
		s.t.Errorf("we sent what we would drop: %v", drop)
	}
	if err := witness.Decode(raw, m); err != nil {
		s.t.Fatal(err)
	}
	if err := witness.Fingerprint.Check(m); err != nil {
		s.t.Error("request without a right fingerprint:", err)
	}
	method := m.Type.Method
	s.sent[method]++
	lifetime, hasLifetime := pionLifetime(m)
	note := method.String()
	if hasLifetime && lifetime == 0 {
		note += "0"
	}
	if m.Contains(witness.AttrMessageIntegrity) {
		note += "+"
	}
	s.seen = append(s.seen, note)
	if s.dead || s.mute[method] || s.drop != nil && s.drop(method, s.sent[method]) {
		return nil
	}
	if s.allocatedFor != "" && now >= s.expires {
		s.allocatedFor = ""
	}
	if method == witness.MethodBinding {
		return s.answer(m, nil, func(out *witness.Message) { s.address(out, witness.AttrXORMappedAddress, s.mapped) })
	}
	login, code := s.authenticate(m)
	if code != 0 {
		return s.fail(m, nil, code)
	}
	key := witness.NewLongTermIntegrity(login.Username, s.realm, login.Password)
	if code, ok := s.refuse[method]; ok {
		return s.fail(m, key, code)
	}
	return s.serve(now, m, login, key, lifetime, hasLifetime)
}

func (s *scripted) authenticate(m *witness.Message) (Credentials, witness.ErrorCode) {
	if !m.Contains(witness.AttrMessageIntegrity) {
		return Credentials{}, witness.CodeUnauthorized
	}
	if s.staleAll || text(m, witness.AttrNonce) != s.nonceText() {
		if s.staleAll {
			s.nonce++
		}
		return Credentials{}, witness.CodeStaleNonce
	}
	for _, l := range s.logins {
		if l.Username == text(m, witness.AttrUsername) && witness.NewLongTermIntegrity(l.Username, s.realm, l.Password).Check(m) == nil {
			return l, 0
		}
	}
	if s.likePion {
		return Credentials{}, witness.CodeBadRequest
	}
	return Credentials{}, witness.CodeUnauthorized
}

func (s *scripted) serve(now time.Duration, m *witness.Message, login Credentials, key witness.MessageIntegrity, lifetime time.Duration, hasLifetime bool) []byte {
	here := s.allocatedFor != "" && s.madeFrom == s.mapped
	method := m.Type.Method
	granted := s.lifetime
	if hasLifetime && method == witness.MethodRefresh && lifetime == 0 {
		granted = 0
	}
	switch {
	case method == witness.MethodAllocate && here && s.lastAllocate != m.TransactionID:
		return s.fail(m, key, witness.CodeAllocMismatch)
	case method != witness.MethodAllocate && !here:
		if s.likePion {
			return nil
		}
		return s.fail(m, key, witness.CodeAllocMismatch)
	case method != witness.MethodAllocate && !s.owns(login):
		return s.fail(m, key, witness.CodeWrongCredentials)
	case method == witness.MethodAllocate:
		s.allocatedFor, s.madeFrom, s.lastAllocate = login.Username, s.mapped, m.TransactionID
		s.expires, s.channels, s.permissions = now+granted, map[uint16]netip.AddrPort{}, map[netip.Addr]bool{}
	case method == witness.MethodRefresh:
		s.expires = now + granted
		if granted == 0 {
			s.allocatedFor = ""
		}
	case method == witness.MethodChannelBind:
		if code := s.bind(m); code != 0 {
			return s.fail(m, key, code)
		}
	case method == witness.MethodCreatePermission:
		peer, _ := pionAddress(m, witness.AttrXORPeerAddress)
		s.permissions[peer.Addr()] = true
	}
	return s.answer(m, key, func(out *witness.Message) {
		switch method {
		case witness.MethodAllocate:
			s.address(out, witness.AttrXORRelayedAddress, s.relayed)
			s.address(out, witness.AttrXORMappedAddress, s.mapped)
			addUint32(out, witness.AttrLifetime, seconds(granted))
		case witness.MethodRefresh:
			addUint32(out, witness.AttrLifetime, seconds(granted))
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
func (s *scripted) bind(m *witness.Message) witness.ErrorCode {
	v, err := m.Get(witness.AttrChannelNumber)
	peer, ok := pionAddress(m, witness.AttrXORPeerAddress)
	if err != nil || !ok {
		return witness.CodeBadRequest
	}
	number := binary.BigEndian.Uint16(v)
	for n, p := range s.channels {
		if (n == number) != (p == peer) {
			s.t.Errorf("channel %#x for %v, but %#x is for %v", number, peer, n, p)
			return witness.CodeBadRequest
		}
	}
	if number < FirstChannel || number > LastChannel {
		s.t.Errorf("channel %#x is none", number)
	}
	s.channels[number], s.permissions[peer.Addr()] = peer, true
	return 0
}

func (s *scripted) address(m *witness.Message, kind witness.AttrType, a netip.AddrPort) {
	m.Add(kind, pionAddressOf(&m.TransactionID, a))
}

func (s *scripted) answer(to *witness.Message, key witness.MessageIntegrity, fill func(*witness.Message)) []byte {
	return s.finish(to, witness.ClassSuccessResponse, key, fill)
}

func (s *scripted) fail(to *witness.Message, key witness.MessageIntegrity, code witness.ErrorCode) []byte {
	if s.likePion {
		key = nil
	}
	if s.renew && code == witness.CodeUnauthorized {
		s.nonce++
	}
	return s.finish(to, witness.ClassErrorResponse, key, func(m *witness.Message) {
		(&witness.ErrorCodeAttribute{Code: code, Reason: []byte("no")}).AddTo(m)
		if code == witness.CodeUnauthorized || code == witness.CodeStaleNonce {
			m.Add(witness.AttrRealm, []byte(s.realm))
			m.Add(witness.AttrNonce, []byte(s.nonceText()))
		}
	})
}

func (s *scripted) finish(to *witness.Message, class witness.MessageClass, key witness.MessageIntegrity, fill func(*witness.Message)) []byte {
	out := &witness.Message{TransactionID: to.TransactionID, Type: witness.NewType(to.Type.Method, class)}
	out.WriteHeader()
	fill(out)
	if key != nil {
		must(key.AddTo(out))
	}
	if s.tamper != nil {
		return s.tamper(out)
	}
	must(witness.Fingerprint.AddTo(out))
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
		refuse: map[witness.Method]witness.ErrorCode{}, mute: map[witness.Method]bool{}, sent: map[witness.Method]int{},
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
