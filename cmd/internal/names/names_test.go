package names

import (
	"net"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/dns/dnsmessage"
)

var (
	gate4, gate6 = netip.MustParseAddr("100.64.0.1"), netip.MustParseAddr("fd00:2021:1111::1")
	testZone     = Zone{"gate": {gate4, gate6}, "four": {gate4}, "Bad": {gate4}, "a b": {gate4}}
)

// query is one for a name, with the dot at its end.
func query(t testing.TB, name string, kind dnsmessage.Type, edns bool) []byte {
	t.Helper()
	q := dnsmessage.Message{
		Header:    dnsmessage.Header{ID: 7, RecursionDesired: true},
		Questions: []dnsmessage.Question{{Name: dnsmessage.MustNewName(name), Type: kind, Class: dnsmessage.ClassINET}},
	}
	if edns {
		h := dnsmessage.ResourceHeader{Name: dnsmessage.MustNewName(".")}
		if err := h.SetEDNS0(4096, dnsmessage.RCodeSuccess, false); err != nil {
			t.Fatal(err)
		}
		q.Additionals = []dnsmessage.Resource{{Header: h, Body: &dnsmessage.OPTResource{}}}
	}
	b, err := q.Pack()
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func addresses(m dnsmessage.Message) (list []netip.Addr) {
	for _, r := range m.Answers {
		switch b := r.Body.(type) {
		case *dnsmessage.AResource:
			list = append(list, netip.AddrFrom4(b.A))
		case *dnsmessage.AAAAResource:
			list = append(list, netip.AddrFrom16(b.AAAA))
		}
	}
	return list
}

// TestAnswer: addresses of nodes, no others in the zone, and nothing outside.
func TestAnswer(t *testing.T) {
	long := strings.Repeat("a", 63)
	for _, c := range []struct {
		name string
		kind dnsmessage.Type
		code dnsmessage.RCode
		want []netip.Addr
	}{
		{"gate.sluice.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, []netip.Addr{gate4}},
		{"gate.sluice.", dnsmessage.TypeAAAA, dnsmessage.RCodeSuccess, []netip.Addr{gate6}},
		{"gate.sluice.", dnsmessage.TypeALL, dnsmessage.RCodeSuccess, []netip.Addr{gate4, gate6}},
		{"gate.sluice.", dnsmessage.TypeMX, dnsmessage.RCodeSuccess, nil},
		{"GaTe.SLUICE.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, []netip.Addr{gate4}},
		{"four.sluice.", dnsmessage.TypeAAAA, dnsmessage.RCodeSuccess, nil},
		{"sluice.", dnsmessage.TypeA, dnsmessage.RCodeSuccess, nil},
		{"nobody.sluice.", dnsmessage.TypeA, dnsmessage.RCodeNameError, nil},
		{"x.gate.sluice.", dnsmessage.TypeA, dnsmessage.RCodeNameError, nil},
		{"bad.sluice.", dnsmessage.TypeA, dnsmessage.RCodeNameError, nil},
		{"a b.sluice.", dnsmessage.TypeA, dnsmessage.RCodeNameError, nil},
		{"-.sluice.", dnsmessage.TypeA, dnsmessage.RCodeNameError, nil},
		{long + "." + long + "." + long + ".sluice.", dnsmessage.TypeA, dnsmessage.RCodeNameError, nil},
		{"gate.sluice.example.", dnsmessage.TypeA, dnsmessage.RCodeRefused, nil},
		{"gatesluice.", dnsmessage.TypeA, dnsmessage.RCodeRefused, nil},
		{".", dnsmessage.TypeNS, dnsmessage.RCodeRefused, nil},
	} {
		for _, edns := range []bool{false, true} {
			var got dnsmessage.Message
			if err := got.Unpack(testZone.Answer(query(t, c.name, c.kind, edns))); err != nil {
				t.Errorf("%s %v: %v", c.name, c.kind, err)
				continue
			}
			if got.RCode != c.code || !slices.Equal(addresses(got), c.want) {
				t.Errorf("%s %v: %v with %v, want %v with %v", c.name, c.kind, got.RCode, addresses(got), c.code, c.want)
			}
			if got.ID != 7 || !got.Response || !got.RecursionDesired || len(got.Questions) != 1 || got.Questions[0].Name.String() != c.name {
				t.Errorf("%s %v: %+v is no answer to it", c.name, c.kind, got)
			}
			if (len(got.Additionals) == 1) != edns {
				t.Errorf("%s: %d additional records, EDNS %v", c.name, len(got.Additionals), edns)
			}
		}
	}
}

// TestAnswerToOthers: what is no query gets no answer, and what is a bad one gets a code.
func TestAnswerToOthers(t *testing.T) {
	good := query(t, "gate.sluice.", dnsmessage.TypeA, false)
	change := func(at int, b byte) []byte { c := slices.Clone(good); c[at] = b; return c }
	for what, c := range map[string]struct {
		query []byte
		code  dnsmessage.RCode
		none  bool
	}{
		"nothing":          {query: nil, none: true},
		"half a header":    {query: good[:11], none: true},
		"an answer":        {query: change(2, good[2]|0x80), none: true},
		"an update":        {query: change(2, 5<<3), code: dnsmessage.RCodeNotImplemented},
		"no question":      {query: change(5, 0)[:12], code: dnsmessage.RCodeFormatError},
		"two questions":    {query: append(change(5, 2), good[12:]...), code: dnsmessage.RCodeFormatError},
		"half a question":  {query: good[:20], code: dnsmessage.RCodeFormatError},
		"a missing record": {query: change(11, 1), code: dnsmessage.RCodeFormatError},
		"of another class": {query: change(len(good)-1, 3), code: dnsmessage.RCodeRefused},
	} {
		answer := testZone.Answer(c.query)
		if c.none {
			if answer != nil {
				t.Errorf("%s has the answer %x, want none", what, answer)
			}
			continue
		}
		var got dnsmessage.Message
		if err := got.Unpack(answer); err != nil || got.RCode != c.code || len(got.Answers) > 0 {
			t.Errorf("%s: %v with %d records, %v; want %v", what, got.RCode, len(got.Answers), err, c.code)
		}
	}
}

// FuzzAnswer: whatever is asked, the answer is none or one that can be read, fits a datagram of any resolver's, and is of this zone.
func FuzzAnswer(f *testing.F) {
	f.Add(query(f, "gate.sluice.", dnsmessage.TypeALL, true))
	f.Add(query(f, "example.", dnsmessage.TypeA, false))
	f.Fuzz(func(t *testing.T, q []byte) {
		if len(q) > mostQuery {
			return
		}
		answer := testZone.Answer(q)
		if answer == nil {
			return
		}
		var m dnsmessage.Message
		if err := m.Unpack(answer); err != nil {
			t.Fatalf("%x to %x: %v", answer, q, err)
		}
		if len(answer) > 512 || !m.Response || len(m.Answers) > 2 {
			t.Fatalf("%d bytes with %d records: %x", len(answer), len(m.Answers), answer)
		}
		for _, r := range m.Answers {
			if !strings.HasSuffix(strings.ToLower(r.Header.Name.String()), ".sluice.") {
				t.Fatalf("an answer for %v", r.Header.Name)
			}
		}
	})
}

// ask sends a query from an address, and returns the answer; false: there was none.
func ask(t *testing.T, from string, to netip.AddrPort, wait time.Duration) (dnsmessage.Message, bool) {
	t.Helper()
	var m dnsmessage.Message
	conn, err := net.DialUDP("udp", &net.UDPAddr{IP: net.ParseIP(from)}, net.UDPAddrFromAddrPort(to))
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	if _, err := conn.Write(query(t, "gate.sluice.", dnsmessage.TypeA, false)); err != nil {
		t.Fatal(err)
	}
	buffer := make([]byte, 1500)
	_ = conn.SetReadDeadline(time.Now().Add(wait))
	n, err := conn.Read(buffer)
	if err != nil {
		return m, false
	}
	if err := m.Unpack(buffer[:n]); err != nil {
		t.Fatal(err)
	}
	return m, true
}

// TestServer answers this machine's own address, and nobody else: the later question of another source is overtaken by one of ours.
func TestServer(t *testing.T) {
	own := netip.MustParseAddr("127.0.0.71")
	s, err := listen([]netip.Addr{own}, true, func() *view { return &view{zone: testZone} })
	if err != nil {
		t.Skipf("SKIPPED: the server is not tried: this system has no %v: %v", own, err)
	}
	defer s.close()
	if m, ok := ask(t, "127.0.0.72", s.at[0], 300*time.Millisecond); ok {
		t.Errorf("somebody else has the answer %v, want none", m)
	}
	m, ok := ask(t, own.String(), s.at[0], 10*time.Second)
	if got := addresses(m); !ok || !slices.Equal(got, []netip.Addr{gate4}) {
		t.Errorf("the answer is %v (%v), want %v", got, ok, gate4)
	}
}

// TestHosts: the block comes, changes in its place and goes, and all other lines, mode and owner stay.
func TestHosts(t *testing.T) {
	const other, after = "127.0.0.1 localhost\r\n# sluice sluice1 end\n", "10.0.0.1 later"
	dir := t.TempDir()
	real := filepath.Join(dir, "hosts")
	link := filepath.Join(dir, "link")
	if err := os.WriteFile(real, []byte(other), 0o640); err != nil {
		t.Fatal(err)
	}
	if err := os.Symlink(real, link); err != nil {
		t.Skipf("SKIPPED: a hosts file behind a link is not tried: this system has no links: %v", err)
	}
	h := newHosts(link, "sluice0")
	expect := func(want string) {
		t.Helper()
		got, err := os.ReadFile(real)
		info, _ := os.Stat(real)
		if err != nil || string(got) != want || info.Mode().Perm() != 0o640 {
			t.Fatalf("the file (mode %v, %v) is\n%q, want\n%q", info.Mode(), err, got, want)
		}
	}
	set := func(z Zone) {
		t.Helper()
		if err := h.set(z); err != nil {
			t.Fatal(err)
		}
	}
	block := func(lines string) string { return h.begin + "\n" + lines + h.end + "\n" }
	both := block("100.64.0.1 four.sluice\n100.64.0.1 gate.sluice\nfd00:2021:1111::1 gate.sluice\n")
	set(testZone)
	expect(other + both)
	if err := os.WriteFile(real, []byte(other+both+after), 0o640); err != nil { // somebody else adds a line
		t.Fatal(err)
	}
	set(Zone{"four": {gate4}})
	expect(other + block("100.64.0.1 four.sluice\n") + after)
	set(nil)
	expect(other + after)
	set(Zone{})
	expect(other + after + "\n" + block(""))
	if list, _ := filepath.Glob(filepath.Join(dir, ".*")); len(list) > 0 {
		t.Errorf("%q are left", list)
	}
	if i, err := os.Lstat(link); err != nil || i.Mode()&os.ModeSymlink == 0 {
		t.Errorf("the link is no link any more: %v %v", i, err)
	}
}

// TestHostsUnclear: a block that somebody has taken apart is not touched.
func TestHostsUnclear(t *testing.T) {
	h := newHosts(filepath.Join(t.TempDir(), "hosts"), "sluice0")
	for _, text := range []string{h.begin + "\na\n", "a\n" + h.end + "\n", h.end + "\n" + h.begin + "\n", strings.Repeat(h.begin+"\n"+h.end+"\n", 2)} {
		if err := os.WriteFile(h.path, []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
		if err := h.set(testZone); err == nil || !strings.Contains(err.Error(), "not a pair") {
			t.Errorf("%q: %v, want an error that says so", text, err)
		}
		if got, _ := os.ReadFile(h.path); string(got) != text {
			t.Errorf("%q has become %q", text, got)
		}
	}
}

// TestHostsOverwrite: where nothing can be renamed to the file it is written in its place, shorter too, and not over what somebody has
// written meanwhile.
func TestHostsOverwrite(t *testing.T) {
	path := filepath.Join(t.TempDir(), "hosts")
	if err := os.WriteFile(path, []byte("a long line\n"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := overwrite(path, []byte("a long line\n"), []byte("short\n")); err != nil {
		t.Fatal(err)
	}
	if err := overwrite(path, []byte("a long line\n"), []byte("lost\n")); err != errChanged && (err == nil || !strings.Contains(err.Error(), errChanged.Error())) {
		t.Errorf("%v, want %v", err, errChanged)
	}
	if got, _ := os.ReadFile(path); string(got) != "short\n" {
		t.Errorf("the file is %q, want %q", got, "short\n")
	}
}
