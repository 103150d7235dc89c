package portal

import (
	"errors"
	"fmt"
	"net/netip"
	"path/filepath"
	"slices"
	"strings"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
)

func networks(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// decided is what has become of a gateway's offers, in few words.
func decided(offers protocol.Offers) string {
	var list []string
	for _, o := range offers {
		list = append(list, fmt.Sprintf("%v %s", o.Prefix, o.State))
	}
	return strings.Join(list, ", ")
}

// What may be offered without the operator's word, and with it.
func TestJudge(t *testing.T) {
	for _, tt := range []struct {
		limits
		want map[string]protocol.OfferState
	}{
		{limits{}, map[string]protocol.OfferState{
			"10.0.0.0/24": protocol.Approved, "10.0.0.0/8": protocol.Approved, "192.168.1.0/31": protocol.Approved, "fd09::/64": protocol.Approved,
			"172.16.0.0/12": protocol.Approved, "172.0.0.0/8": protocol.Pending, "10.0.0.0/7": protocol.Pending, "fc00::/6": protocol.Refused,
			"0.0.0.0/0": protocol.Pending, "::/0": protocol.Pending, "128.0.0.0/1": protocol.Pending, "8.8.8.8/32": protocol.Pending,
			"10.0.0.1/32": protocol.Pending, "fd09::1/128": protocol.Pending, "169.254.169.254/32": protocol.Pending,
			"169.254.0.0/16": protocol.Pending, "100.127.0.0/16": protocol.Pending, "2001:db8::/32": protocol.Pending,
			"100.64.0.0/24": protocol.Refused, "100.0.0.0/8": protocol.Refused, "100.64.0.7/32": protocol.Refused,
			"fd00:2021:1111::/64": protocol.Refused,
		}},
		{limits{Listed: true, Approved: networks("0.0.0.0/0", "10.1.0.0/16", "8.8.8.8/32"), Refused: networks("10.1.2.0/24", "::/0")},
			map[string]protocol.OfferState{
				"0.0.0.0/0": protocol.Approved, "10.1.0.0/16": protocol.Approved, "10.1.3.0/24": protocol.Approved, "10.1.3.7/32": protocol.Approved,
				"8.8.8.8/32": protocol.Approved, "8.8.8.9/32": protocol.Pending, "10.2.0.0/16": protocol.Pending, "192.168.0.0/24": protocol.Pending,
				"10.1.2.0/24": protocol.Refused, "10.1.2.128/25": protocol.Refused, "::/0": protocol.Refused, "fd09::/64": protocol.Pending,
				"100.64.0.0/11": protocol.Refused,
			}},
		{limits{Listed: true}, map[string]protocol.OfferState{"10.0.0.0/24": protocol.Pending}},
		{limits{Refused: networks("0.0.0.0/0", "10.0.0.0/8")}, map[string]protocol.OfferState{
			"0.0.0.0/0": protocol.Refused, "10.9.0.0/24": protocol.Refused, "192.168.0.0/24": protocol.Approved, "128.0.0.0/1": protocol.Pending,
		}},
	} {
		r := &record{Name: "g", Role: protocol.Gateway, limits: tt.limits}
		for text, want := range tt.want {
			p := netip.MustParsePrefix(text)
			got := r.judge(p, protocol.DefaultOverlay())
			if got.State != want || got.Prefix != p || (got.State == protocol.Approved) != (got.Why == "") {
				t.Errorf("%+v: %s is %+v, want %s", tt.limits, text, got, want)
			}
			if got.Remedy != "" {
				next := record{limits: tt.limits.decide(nil, []netip.Prefix{p}, nil)}
				if again := next.judge(p, protocol.DefaultOverlay()); again.State != protocol.Approved {
					t.Errorf("%q does not help: %+v", got.Remedy, again)
				}
			}
		}
	}
}

// A network is one gateway's, whoever comes later, until that lets go of it or loses it.
func TestGrants(t *testing.T) {
	s := &state{nodes: map[string]*record{}}
	settle := func() {
		offers, changed := settleGrants(s.nodes, protocol.DefaultOverlay())
		owners := map[netip.Prefix]string{}
		for _, r := range changed {
			s.nodes[r.Name] = r
		}
		for name, r := range s.nodes {
			for _, p := range r.Granted {
				if owners[p] != "" {
					t.Errorf("%v is granted to %s and %s", p, owners[p], name)
				}
				owners[p] = name
			}
			if !slices.Equal(offers[name].Approved(), r.Granted) {
				t.Errorf("%s is told %v and granted %v", name, offers[name], r.Granted)
			}
		}
		s.offers = offers
	}
	offer := func(name string, routes ...string) {
		r := record{Name: name, Role: protocol.Gateway, Created: time.Unix(int64(name[0]), 0)}
		if old := s.nodes[name]; old != nil {
			r = *old
		}
		r.Routes = networks(routes...)
		s.nodes[name] = &r
		settle()
	}
	decide := func(name string, approve, refuse []netip.Prefix) {
		r := *s.nodes[name]
		r.limits = r.limits.decide(r.Granted, approve, refuse)
		s.nodes[name] = &r
		settle()
	}
	expect := func(name, want string) {
		t.Helper()
		if got := decided(s.offers[name]); got != want {
			t.Errorf("%s: %s, want %s", name, got, want)
		}
	}
	offer("b", "10.0.0.0/24", "192.168.0.0/16")
	offer("a", "10.0.0.0/16", "192.168.1.0/24", "10.0.0.0/24") // around, inside, the same: of an older gateway
	expect("b", "10.0.0.0/24 approved, 192.168.0.0/16 approved")
	expect("a", "10.0.0.0/16 approved, 192.168.1.0/24 pending, 10.0.0.0/24 pending")
	if why := s.offers["a"][1].Why; why != "it is part of 192.168.0.0/16, which gateway b has" {
		t.Error(why)
	}
	if o := s.offers["a"][2]; o.Why != "gateway b has it" || o.Remedy != "" {
		t.Errorf("%+v", o)
	}
	decide("a", networks("192.168.1.0/24"), nil)
	expect("a", "10.0.0.0/16 approved, 192.168.1.0/24 approved, 10.0.0.0/24 pending")
	decide("b", nil, networks("10.0.0.0/8"))
	expect("b", "10.0.0.0/24 refused, 192.168.0.0/16 approved")
	expect("a", "10.0.0.0/16 approved, 192.168.1.0/24 approved, 10.0.0.0/24 approved") // listed with 10.0.0.0/16
	decide("b", networks("10.0.0.0/24"), nil)
	expect("b", "10.0.0.0/24 pending, 192.168.0.0/16 approved")
	offer("c", "192.168.7.0/24")
	expect("c", "192.168.7.0/24 pending")
	delete(s.nodes, "a")
	delete(s.nodes, "b")
	settle()
	expect("c", "192.168.7.0/24 approved")
	offer("d", "0.0.0.0/0", "::/0")
	decide("d", networks("0.0.0.0/0", "::/0"), nil)
	offer("e", "0.0.0.0/0", "10.5.0.0/16")
	expect("d", "0.0.0.0/0 approved, ::/0 approved")
	expect("e", "0.0.0.0/0 pending, 10.5.0.0/16 approved") // what is within a default route is not taken by it
}

// The operator decides while nodes are there, and a restart knows it.
// One command may approve a network and refuse a part of it; what it says twice in opposite ways is an error, and changes nothing.
func TestContradiction(t *testing.T) {
	p := open(t, filepath.Join(t.TempDir(), "state"))
	gate := sign(t, add(t, p, "gate", protocol.Gateway))
	request := protocol.SyncRequest{PublicKey: key(t), Routes: networks("10.0.0.0/8", "10.1.2.0/24")}
	if _, err := p.Routes(t.Context(), "gate", networks("10.0.0.0/8"), networks("10.1.0.0/16")); err != nil {
		t.Fatal(err)
	}
	const want = "10.0.0.0/8 approved, 10.1.2.0/24 refused"
	if got := decided(ask(t, gate, request).Offers); got != want {
		t.Errorf("%s, want %s", got, want)
	}
	for approve, refuse := range map[string]string{"10.0.0.0/8": "10.0.0.0/8", "10.1.0.0/16": "10.0.0.0/8", "::/0": "::/0"} {
		if _, err := p.Routes(t.Context(), "gate", networks(approve), networks(refuse)); err == nil || !strings.Contains(err.Error(), approve+" is to be approved and refused at once") {
			t.Errorf("-approve %s -refuse %s: %v", approve, refuse, err)
		}
	}
	if got := decided(ask(t, gate, request).Offers); got != want {
		t.Errorf("after contradictions: %s, want %s", got, want)
	}
}

func TestRoutes(t *testing.T) {
	folder := filepath.Join(t.TempDir(), "state")
	p := open(t, folder)
	token := add(t, p, "gate", protocol.Gateway)
	gate, laptop := sign(t, token), sign(t, add(t, p, "laptop", protocol.Client))
	k, mine := key(t), key(t)
	request := protocol.SyncRequest{PublicKey: k, Routes: networks("0.0.0.0/0", "10.0.0.0/24")}
	s := ask(t, gate, request)
	if got := decided(s.Offers); got != "0.0.0.0/0 pending, 10.0.0.0/24 approved" || s.Offers[0].Remedy != "sluice portal node routes gate -approve 0.0.0.0/0" {
		t.Fatalf("%s: %+v", got, s.Offers)
	}
	known := func() protocol.Sync { return ask(t, laptop, protocol.SyncRequest{PublicKey: mine}) }
	if got := fmt.Sprint(known().Peers[0].AllowedIPs); strings.Contains(got, "0.0.0.0/0") || !strings.Contains(got, "10.0.0.0/24") {
		t.Errorf("the client is told %s", got)
	}
	if _, err := p.Routes(t.Context(), "gate", networks("0.0.0.0/0"), networks("10.0.0.0/8")); err != nil {
		t.Fatal(err)
	}
	if got := fmt.Sprint(known().Peers[0].AllowedIPs); !strings.Contains(got, "0.0.0.0/0") || strings.Contains(got, "10.0.0.0/24") {
		t.Errorf("after the decision the client is told %s", got)
	}
	for _, name := range []string{"laptop", "nobody"} {
		if _, err := p.Routes(t.Context(), name, networks("0.0.0.0/0"), nil); err == nil {
			t.Errorf("%s may offer", name)
		}
	}
	if _, err := p.AddNode(t.Context(), NewNode{Name: "x", Role: protocol.Client, Routes: networks("10.0.0.0/8")}); err == nil {
		t.Error("a client that may offer")
	}
	p.Close()
	p = open(t, folder)
	offers, err := p.Routes(t.Context(), "gate", nil, nil)
	if got := decided(offers); err != nil || got != "0.0.0.0/0 approved, 10.0.0.0/24 refused" {
		t.Errorf("after a restart: %s, %v", got, err)
	}
}

// Rights change while nodes are connected, and only those that they concern connect anew.
func TestSetAllow(t *testing.T) {
	p := open(t, filepath.Join(t.TempDir(), "state"))
	add(t, p, "g1", protocol.Gateway)
	add(t, p, "g2", protocol.Gateway)
	add(t, p, "laptop", protocol.Client)
	for _, step := range []struct {
		allow []string
		want  string
	}{
		{[]string{"g2"}, "g2"}, {[]string{"g2", "g1"}, "g1 g2"}, {[]string{AllowNone}, ""}, {[]string{AllowAll}, "g1 g2"}, {[]string{"g3"}, ""},
	} {
		if err := p.SetAllow(t.Context(), "laptop", step.allow); err != nil {
			t.Fatal(err)
		}
		if got := meets(t, p, "laptop"); got != step.want {
			t.Errorf("with %q it meets %q, want %q", step.allow, got, step.want)
		}
	}
	if err := p.SetAllow(t.Context(), "nobody", nil); !errors.Is(err, ErrUnknown) {
		t.Errorf("nobody: %v", err)
	}
	if err := p.SetAllow(t.Context(), "g1", []string{AllowAll}); err == nil {
		t.Error("a gateway that reaches all")
	}
}
