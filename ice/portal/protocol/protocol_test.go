package protocol

import (
	"bytes"
	"encoding/base64"
	"encoding/json"
	"fmt"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"
)

func prefixes(list ...string) (out []netip.Prefix) {
	for _, s := range list {
		out = append(out, netip.MustParsePrefix(s))
	}
	return out
}

// sequence is a key with bytes that can be told apart.
func sequence(first byte) (k Key) {
	for i := range k {
		k[i] = first + byte(i)
	}
	return k
}

func validRequest() SyncRequest {
	return SyncRequest{PublicKey: sequence(1), Identity: Identity(sequence(4)), Signature: Signature{5}, Routes: prefixes("10.0.0.0/24", "fd00:1::/64"), Known: 1<<64 - 1, Program: "sluice 1.0"}
}

func validSync() Sync {
	return Sync{
		Revision: 1<<64 - 1, Name: "laptop", Role: Client, Addresses: prefixes("100.64.0.2/32", "fd00:2021:1111::2/128"),
		Overlay: DefaultOverlay(), Time: 1_800_000_000, Lease: 86400,
		Offers: Offers{{Prefix: netip.MustParsePrefix("8.0.0.0/8"), State: Pending, Why: "it is not private", Remedy: "approve it"}},
		Peers: []Peer{{
			Name: "gate", Role: Gateway, PublicKey: sequence(2), PresharedKey: sequence(3), Online: true,
			Identity: Identity(sequence(4)), Signature: Signature{5},
			AllowedIPs: prefixes("100.64.0.1/32", "fd00:2021:1111::1/128", "0.0.0.0/0"),
		}},
		Relays: []Relay{{
			Name: "portal", Addrs: []netip.AddrPort{netip.MustParseAddrPort("203.0.113.1:3478"), netip.MustParseAddrPort("[2001:db8::1]:3478")},
			Username: "1800000000:laptop", Password: "secret", Expires: 1_800_000_000,
		}},
	}
}

func encode(t testing.TB, v any) []byte {
	t.Helper()
	text, err := json.Marshal(v)
	if err != nil {
		t.Fatal(err)
	}
	return text
}

// oneLine fails unless err can be shown to a person as it is.
func oneLine(t *testing.T, err error) {
	t.Helper()
	if text := err.Error(); len(text) > 2*maxText || strings.ContainsFunc(text, unprintable) {
		t.Errorf("error %q", text)
	}
}

func TestKeyText(t *testing.T) {
	k := sequence(7)
	text, err := k.MarshalText()
	if err != nil || string(text) != base64.StdEncoding.EncodeToString(k[:]) {
		t.Fatalf("%q, %v", text, err)
	}
	var back Key
	if err := back.UnmarshalText(text); err != nil || back != k {
		t.Errorf("read back: %v", err)
	}
	loose := bytes.Clone(text)
	loose[42]++ // two bits that are no part of the key
	for _, bad := range []string{
		"", string(text[:43]), string(text) + "=", string(text[:40]) + "\n" + string(text[41:]), string(loose), strings.Repeat("=", 44),
		base64.StdEncoding.EncodeToString(make([]byte, 31)), base64.StdEncoding.EncodeToString(make([]byte, 33)),
		strings.ReplaceAll(base64.URLEncoding.EncodeToString(bytes.Repeat([]byte{0xff}, 32)), "=", "_"),
	} {
		got := k
		if err := got.UnmarshalText([]byte(bad)); err == nil || got != k {
			t.Errorf("%q: %v", bad, err)
		}
	}
}

// Secrets do not print, whatever the verb and wherever they stand.
func TestSecretsDoNotPrint(t *testing.T) {
	k := Key(bytes.Repeat([]byte{0xab}, 32))
	token := Token{Name: "laptop", Portals: []string{"h:1"}, Secret: k}
	peer := Peer{Name: "gate", PresharedKey: k}
	for _, verb := range []string{"%v", "%+v", "%#v", "%s", "%q", "%x", "%X", "%d", "%b", "%o", "%c", "%U"} {
		for _, v := range []any{k, &k, token, &token, peer, []Key{k}, map[string]Token{"a": token}, Sync{Peers: []Peer{peer}}} {
			text := strings.ToLower(fmt.Sprintf(verb, v))
			for _, leak := range []string{"abab", "171 171", "171, 171", "0xab", "q6ur", "10101011"} {
				if strings.Contains(text, leak) {
					t.Errorf("%s of %T prints %q", verb, v, text)
				}
			}
		}
	}
}

func TestRoundTrip(t *testing.T) {
	r := validRequest()
	got, err := DecodeRequest(encode(t, r))
	if err != nil || !bytes.Equal(encode(t, got), encode(t, r)) || got.PublicKey != r.PublicKey {
		t.Errorf("request: %v", err)
	}
	s := validSync()
	back, err := DecodeSync(encode(t, s))
	if err != nil || !bytes.Equal(encode(t, back), encode(t, s)) || back.Peers[0].PresharedKey != s.Peers[0].PresharedKey {
		t.Errorf("answer: %v", err)
	}
	if back, err = DecodeSync([]byte(`{"refused":"no","later":{"than":1}}`)); err != nil || back.Refused != "no" {
		t.Errorf("a refusal alone, of a newer portal: %v", err)
	}
}

func TestRequestBounds(t *testing.T) {
	many := make([]netip.Prefix, MaxRoutes+1)
	for i := range many {
		many[i] = netip.PrefixFrom(netip.AddrFrom4([4]byte{10, byte(i), 0, 0}), 24)
	}
	for name, tt := range map[string]struct {
		change func(*SyncRequest)
		ok     bool
	}{
		"as it is":             {func(*SyncRequest) {}, true},
		"no routes":            {func(r *SyncRequest) { r.Routes = nil }, true},
		"default route":        {func(r *SyncRequest) { r.Routes = prefixes("0.0.0.0/0", "::/0") }, true},
		"most routes":          {func(r *SyncRequest) { r.Routes = many[1:] }, true},
		"one route more":       {func(r *SyncRequest) { r.Routes = many }, false},
		"zero key":             {func(r *SyncRequest) { r.PublicKey = Key{} }, false},
		"no identity":          {func(r *SyncRequest) { r.Identity = Identity{} }, false},
		"no signature":         {func(r *SyncRequest) { r.Signature = Signature{} }, false},
		"host bits":            {func(r *SyncRequest) { r.Routes = prefixes("10.0.0.1/24") }, false},
		"mapped":               {func(r *SyncRequest) { r.Routes = prefixes("::ffff:10.0.0.0/120") }, false},
		"multicast":            {func(r *SyncRequest) { r.Routes = prefixes("224.0.0.0/4") }, false},
		"multicast of IPv6":    {func(r *SyncRequest) { r.Routes = prefixes("ff02::/16") }, false},
		"loopback":             {func(r *SyncRequest) { r.Routes = prefixes("127.0.0.0/8") }, false},
		"loopback of IPv6":     {func(r *SyncRequest) { r.Routes = prefixes("::1/128") }, false},
		"link-local of IPv6":   {func(r *SyncRequest) { r.Routes = prefixes("fe80::/64") }, false},
		"longest program":      {func(r *SyncRequest) { r.Program = strings.Repeat("x", maxText) }, true},
		"longer program":       {func(r *SyncRequest) { r.Program = strings.Repeat("x", maxText+1) }, false},
		"program of two lines": {func(r *SyncRequest) { r.Program = "a\nb" }, false},
		"program with escape":  {func(r *SyncRequest) { r.Program = "\x1b[2J" }, false},
	} {
		r := validRequest()
		tt.change(&r)
		_, err := DecodeRequest(encode(t, r))
		if (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil {
			oneLine(t, err)
		}
	}
}

func TestSyncBounds(t *testing.T) {
	peers := make([]Peer, MaxPeers+1)
	for i := range peers {
		peers[i] = Peer{Name: fmt.Sprintf("p%d", i), Role: Client}
	}
	at := netip.MustParseAddrPort
	for name, tt := range map[string]struct {
		change func(*Sync)
		ok     bool
	}{
		"as it is":              {func(*Sync) {}, true},
		"alone":                 {func(s *Sync) { s.Peers, s.Relays = nil, nil }, true},
		"most peers":            {func(s *Sync) { s.Peers = peers[1:] }, true},
		"one peer more":         {func(s *Sync) { s.Peers = peers }, false},
		"a peer twice":          {func(s *Sync) { s.Peers = append(s.Peers, s.Peers[0]) }, false},
		"itself a peer":         {func(s *Sync) { s.Peers[0].Name = s.Name }, false},
		"name":                  {func(s *Sync) { s.Name = "a.b" }, false},
		"role":                  {func(s *Sync) { s.Role = "boss\n" }, false},
		"peer's name":           {func(s *Sync) { s.Peers[0].Name = "*" }, false},
		"peer's role":           {func(s *Sync) { s.Peers[0].Role = "" }, false},
		"peer's host bits":      {func(s *Sync) { s.Peers[0].AllowedIPs = prefixes("10.0.0.1/8") }, false},
		"no address":            {func(s *Sync) { s.Addresses = nil }, false},
		"a network for address": {func(s *Sync) { s.Addresses = prefixes("100.64.0.0/24") }, false},
		"two of one family":     {func(s *Sync) { s.Addresses = prefixes("100.64.0.2/32", "100.64.0.3/32") }, false},
		"no overlay":            {func(s *Sync) { s.Overlay = nil }, false},
		"everything an overlay": {func(s *Sync) { s.Overlay = prefixes("0.0.0.0/0", "::/0") }, false},
		"half of all":           {func(s *Sync) { s.Overlay = prefixes("0.0.0.0/1", "fd00::/8") }, false},
		"address of no overlay": {func(s *Sync) { s.Addresses = prefixes("8.8.8.8/32") }, false},
		"peer in the overlay":   {func(s *Sync) { s.Peers[0].AllowedIPs = prefixes("100.64.0.0/24") }, false},
		"peer around overlay":   {func(s *Sync) { s.Peers[0].AllowedIPs = prefixes("100.0.0.0/8") }, false},
		"gateway's network":     {func(s *Sync) { s.Peers[0].AllowedIPs = prefixes("100.64.0.1/32", "10.0.0.0/24", "8.8.8.8/32") }, true},
		"client's network":      {func(s *Sync) { s.Peers[0].Role, s.Peers[0].AllowedIPs = Client, prefixes("10.0.0.0/24") }, false},
		"client's address":      {func(s *Sync) { s.Peers[0].Role, s.Peers[0].AllowedIPs = Client, prefixes("10.0.0.1/32") }, false},
		"a client":              {func(s *Sync) { s.Peers[0].Role, s.Peers[0].AllowedIPs = Client, prefixes("100.64.0.1/32") }, true},
		"no lease":              {func(s *Sync) { s.Lease = 0 }, false},
		"endless lease":         {func(s *Sync) { s.Lease = 1 << 62 }, false},
		"too many offers":       {func(s *Sync) { s.Offers = slices.Repeat(s.Offers, MaxRoutes+1) }, false},
		"offer's state":         {func(s *Sync) { s.Offers[0].State = "perhaps" }, false},
		"offer's host bits":     {func(s *Sync) { s.Offers[0].Prefix = netip.MustParsePrefix("8.8.8.8/24") }, false},
		"offer's reason":        {func(s *Sync) { s.Offers[0].Why = "a\x1b[2J" }, false},
		"offer's command":       {func(s *Sync) { s.Offers[0].Remedy = "a\nb" }, false},
		"too much overlay": {func(s *Sync) {
			s.Overlay = prefixes("10.0.0.0/24", "10.0.1.0/24", "10.0.2.0/24", "10.0.3.0/24", "10.0.4.0/24")
		}, false},
		"most relays":           {func(s *Sync) { s.Relays = slices.Repeat(s.Relays, MaxRelays) }, true},
		"one relay more":        {func(s *Sync) { s.Relays = slices.Repeat(s.Relays, MaxRelays+1) }, false},
		"relay without address": {func(s *Sync) { s.Relays[0].Addrs = nil }, false},
		"relay's family twice":  {func(s *Sync) { s.Relays[0].Addrs = []netip.AddrPort{at("203.0.113.1:1"), at("203.0.113.2:1")} }, false},
		"relay's port":          {func(s *Sync) { s.Relays[0].Addrs[0] = at("203.0.113.1:0") }, false},
		"relay anywhere":        {func(s *Sync) { s.Relays[0].Addrs[0] = at("0.0.0.0:3478") }, false},
		"relay multicast":       {func(s *Sync) { s.Relays[0].Addrs[0] = at("224.0.0.1:3478") }, false},
		"relay mapped":          {func(s *Sync) { s.Relays[0].Addrs[0] = at("[::ffff:203.0.113.1]:3478") }, false},
		"relay with zone":       {func(s *Sync) { s.Relays[0].Addrs[0] = at("[fe80::1%eth0]:3478") }, false},
		"relay's name":          {func(s *Sync) { s.Relays[0].Name = "a\tb" }, false},
		"relay's user":          {func(s *Sync) { s.Relays[0].Username = strings.Repeat("x", maxText+1) }, false},
		"no relay's user":       {func(s *Sync) { s.Relays[0].Username = "" }, false},
		"relay's password":      {func(s *Sync) { s.Relays[0].Password = strings.Repeat("x", maxText+1) }, false},
		"longest refusal":       {func(s *Sync) { s.Refused = strings.Repeat("x", MaxRefusal) }, true},
		"longer refusal":        {func(s *Sync) { s.Refused = strings.Repeat("x", MaxRefusal+1) }, false},
		"refusal of two lines":  {func(s *Sync) { s.Refused = "a\nb" }, false},
	} {
		s := validSync()
		tt.change(&s)
		_, err := DecodeSync(encode(t, s))
		if (err == nil) != tt.ok {
			t.Errorf("%s: %v", name, err)
		}
		if err != nil {
			oneLine(t, err)
		}
	}
}

// No part of a message is taken for the whole.
func TestTruncation(t *testing.T) {
	request, answer := encode(t, validRequest()), encode(t, validSync())
	for n := range request {
		if _, err := DecodeRequest(request[:n]); err == nil {
			t.Errorf("the first %d bytes of a request", n)
		}
	}
	for n := range answer {
		if _, err := DecodeSync(answer[:n]); err == nil {
			t.Errorf("the first %d bytes of an answer", n)
		}
	}
	for _, more := range []string{"{}", "x", "]", "\x00", " null"} {
		if _, err := DecodeRequest(append(bytes.Clone(request), more...)); err == nil {
			t.Errorf("a request and %q", more)
		}
		if _, err := DecodeSync(append(bytes.Clone(answer), more...)); err == nil {
			t.Errorf("an answer and %q", more)
		}
	}
	if _, err := DecodeRequest(append(request, bytes.Repeat([]byte(" "), MaxRequest)...)); err == nil {
		t.Error("a request that is too long")
	}
	if _, err := DecodeSync(append(answer, bytes.Repeat([]byte(" "), MaxAnswer)...)); err == nil {
		t.Error("an answer that is too long")
	}
	for _, other := range []string{"null", "[]", "1", `""`, `{"public_key":1}`, `{"known":-1}`, `{"known":1e3}`, strings.Repeat("[", 10_000)} {
		if _, err := DecodeRequest([]byte(other)); err == nil {
			t.Errorf("%.20s is taken for a request", other)
		}
		if _, err := DecodeSync([]byte(other)); err == nil {
			t.Errorf("%.20s is taken for an answer", other)
		}
	}
}

func TestSyncHoldIsShort(t *testing.T) {
	// Clients and NATs between give up an idle connection later than this.
	if SyncHold < time.Second || SyncHold > time.Minute {
		t.Errorf("SyncHold is %v", SyncHold)
	}
}

func FuzzDecodeRequest(f *testing.F) {
	f.Add(encode(f, validRequest()))
	f.Add([]byte(`{"public_key":"AQAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAAA=","routes":["::/0"]}`))
	f.Add([]byte(`{"routes":["10.0.0.0/33"]} {}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		r, err := DecodeRequest(data)
		if err != nil {
			oneLine(t, err)
			return
		}
		again, err := DecodeRequest(encode(t, r))
		if err != nil || !bytes.Equal(encode(t, again), encode(t, r)) {
			t.Errorf("%s does not survive: %v", encode(t, r), err)
		}
	})
}

func FuzzDecodeSync(f *testing.F) {
	f.Add(encode(f, validSync()))
	f.Add([]byte(`{"refused":"no"}`))
	f.Add([]byte(`{"name":"a","role":"client","addresses":["100.64.0.1/32"],"overlay":["100.64.0.0/11"],"peers":[{"name":"b"}]}`))
	f.Fuzz(func(t *testing.T, data []byte) {
		s, err := DecodeSync(data)
		if err != nil {
			oneLine(t, err)
			return
		}
		if s.Refused == "" && (len(s.Peers) > MaxPeers || len(s.Relays) > MaxRelays || len(s.Addresses) == 0) {
			t.Error("a bound is not kept")
		}
		again, err := DecodeSync(encode(t, s))
		if err != nil || !bytes.Equal(encode(t, again), encode(t, s)) {
			t.Errorf("%s does not survive: %v", encode(t, s), err)
		}
	})
}
