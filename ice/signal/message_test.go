package signal

import (
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"reflect"
	"strings"
	"testing"
)

const hostCandidate = "1 1 udp 2130706431 192.0.2.1 51820 typ host"

func offer() Message {
	return Message{Kind: Offer, Run: 7, Generation: 3, Agent: 1, PublicKey: [32]byte{1, 2, 3}, Ufrag: "abcd", Pwd: strings.Repeat("p", 22),
		Candidates: []string{hostCandidate}, End: true}
}

func bye() Message {
	return Message{Kind: Bye, Run: 7, Generation: 3, Reason: "handshake_timeout", Counters: map[string]uint64{"mac1_mismatch": 5}}
}

func TestMessageRoundTrip(t *testing.T) {
	answer := offer()
	answer.Kind, answer.Candidates, answer.End = Answer, nil, false
	for _, m := range []Message{offer(), answer, bye()} {
		data, err := m.Encode()
		if err != nil {
			t.Fatal(err)
		}
		got, err := Decode(data)
		if err != nil {
			t.Fatalf("%s: %v", data, err)
		}
		if !reflect.DeepEqual(got, m) {
			t.Errorf("%s: %+v, want %+v", data, got, m)
		}
		for n := range data {
			if _, err := Decode(data[:n]); !errors.Is(err, ErrMessage) {
				t.Errorf("cut at %d: %v", n, err)
			}
		}
	}
}

func TestMessageLimits(t *testing.T) {
	largest := offer()
	largest.Ufrag, largest.Pwd = strings.Repeat("u", MaxCredential), strings.Repeat("p", MaxCredential)
	largest.Candidates = make([]string, MaxCandidates)
	for i := range largest.Candidates {
		largest.Candidates[i] = strings.Repeat("&", MaxCandidate) // JSON needs six bytes for each
	}
	if _, err := largest.Encode(); !errors.Is(err, errTooLong) {
		t.Errorf("an escaped message over the limit: %v", err)
	}
	for i := range largest.Candidates {
		largest.Candidates[i] = strings.Repeat("c", MaxCandidate)
	}
	if _, err := largest.Encode(); err != nil {
		t.Errorf("the largest usual message: %v", err)
	}
	for name, spoil := range map[string]func(m *Message){
		"kind":          func(m *Message) { m.Kind = 0 },
		"kind 4":        func(m *Message) { m.Kind = 4 },
		"run":           func(m *Message) { m.Run = 0 },
		"generation":    func(m *Message) { m.Generation = 0 },
		"far":           func(m *Message) { m.Generation = MaxGeneration + 1 },
		"key":           func(m *Message) { m.PublicKey = [32]byte{} },
		"short ufrag":   func(m *Message) { m.Ufrag = "abc" },
		"long ufrag":    func(m *Message) { m.Ufrag = strings.Repeat("u", MaxCredential+1) },
		"ufrag colon":   func(m *Message) { m.Ufrag = "ab:cd" },
		"short pwd":     func(m *Message) { m.Pwd = strings.Repeat("p", 21) },
		"candidates":    func(m *Message) { m.Candidates = make([]string, MaxCandidates+1) },
		"candidate":     func(m *Message) { m.Candidates = []string{strings.Repeat("c", MaxCandidate+1)} },
		"control":       func(m *Message) { m.Candidates = []string{"a\x1b[2Jb"} },
		"not ASCII":     func(m *Message) { m.Candidates = []string{"ä"} },
		"reason":        func(m *Message) { m.Reason = "x" },
		"counters":      func(m *Message) { m.Counters = map[string]uint64{"x": 1} },
		"bye with key":  func(m *Message) { *m = bye(); m.PublicKey[0] = 1 },
		"bye with end":  func(m *Message) { *m = bye(); m.End = true },
		"no reason":     func(m *Message) { *m = bye(); m.Reason = "" },
		"long reason":   func(m *Message) { *m = bye(); m.Reason = strings.Repeat("r", MaxReason+1) },
		"reason spaces": func(m *Message) { *m = bye(); m.Reason = "time out" },
		"counter name":  func(m *Message) { *m = bye(); m.Counters = map[string]uint64{"a\n": 1} },
		"many counters": func(m *Message) {
			*m = bye()
			m.Counters = map[string]uint64{}
			for i := range MaxCounters + 1 {
				m.Counters[fmt.Sprint("c", i)] = 1
			}
		},
	} {
		m := offer()
		spoil(&m)
		if _, err := m.Encode(); !errors.Is(err, ErrMessage) {
			t.Errorf("%s: Encode: %v", name, err)
		}
	}
}

func TestDecodeStrict(t *testing.T) {
	m := offer()
	data, err := m.Encode()
	if err != nil {
		t.Fatal(err)
	}
	good := string(data)
	change := func(old, new string) string {
		if !strings.Contains(good, old) {
			t.Fatalf("no %q in %s", old, good)
		}
		return strings.Replace(good, old, new, 1)
	}
	for name, bad := range map[string]string{
		"empty":         "",
		"null":          "null",
		"array":         "[]",
		"empty object":  "{}",
		"two objects":   good + good,
		"junk behind":   good + "x",
		"unknown key":   change(`{`, `{"from":"gateway",`),
		"repeated key":  change(`{`, `{"gen":1,`),
		"other case":    change(`"gen"`, `"Gen"`),
		"negative":      change(`"gen":3`, `"gen":-3`),
		"fraction":      change(`"gen":3`, `"gen":3.5`),
		"too large":     change(`"gen":3`, `"gen":18446744073709551616`),
		"string number": change(`"gen":3`, `"gen":"3"`),
		"null number":   change(`"gen":3`, `"gen":null`),
		"other type":    change(`"offer"`, `"Offer"`),
		"type number":   change(`"offer"`, `1`),
		"empty type":    change(`"offer"`, `""`),
		"short key":     change(`"public_key":"AQID`, `"public_key":"`),
		"line end":      change(`"public_key":"AQIDAA`, `"public_key":"AQIDA\n`),
		"invalid UTF-8": change(`"abcd"`, "\"ab\xffcd\""),
		"escaped ESC":   change(`typ host`, `typ \u001b`),
		"nested":        change(`"end":true`, `"end":{"a":[[[[]]]]}`),
		"too long":      good + strings.Repeat(" ", MaxMessage),
	} {
		if _, err := Decode([]byte(bad)); !errors.Is(err, ErrMessage) {
			t.Errorf("%s: %v for %q", name, err, bad)
		}
	}
	if _, err := Decode([]byte(" " + good + "\r\n\t ")); err != nil {
		t.Errorf("white space: %v", err)
	}
}

// FuzzDecode: what Decode takes, Encode takes too and Decode reads back the same.
func FuzzDecode(f *testing.F) {
	for _, m := range []Message{offer(), bye()} {
		data, err := m.Encode()
		if err != nil {
			f.Fatal(err)
		}
		f.Add(data)
	}
	var filter Filter
	f.Fuzz(func(t *testing.T, data []byte) {
		m, err := Decode(data)
		if err != nil {
			if !errors.Is(err, ErrMessage) || !reflect.DeepEqual(m, Message{}) {
				t.Fatalf("%+v, %v", m, err)
			}
			return
		}
		if !json.Valid(data) {
			t.Fatal("not JSON")
		}
		// What is not pure JSON syntax may grow: HTML characters are escaped.
		if again, err := m.Encode(); err == nil {
			if second, err := Decode(again); err != nil || !sameMessage(second, m) {
				t.Fatalf("%+v is not %+v: %v", second, m, err)
			}
		} else if !errors.Is(err, errTooLong) {
			t.Fatal(err)
		}
		before := len(m.Candidates)
		kept, dropped := filter.Keep(m.Candidates)
		if len(kept)+dropped != before {
			t.Fatal("candidates were lost")
		}
		for _, c := range kept {
			if addr, ok := candidateAddress(c); !ok || !filter.Allowed(addr) {
				t.Fatalf("%q was kept", c)
			}
		}
	})
}

// sameMessage compares without telling nil from empty.
func sameMessage(a, b Message) bool {
	for _, m := range []*Message{&a, &b} {
		if len(m.Candidates) == 0 {
			m.Candidates = nil
		}
		if len(m.Counters) == 0 {
			m.Counters = nil
		}
	}
	return reflect.DeepEqual(a, b)
}

func TestFilter(t *testing.T) {
	var filter Filter
	with := func(addr string) string { return strings.Replace(hostCandidate, "192.0.2.1", addr, 1) }
	for c, want := range map[string]bool{
		hostCandidate:                             true,
		with("10.0.0.1"):                          true,
		with("2001:db8::1"):                       true,
		with("fd00::1"):                           true,
		with("100.96.0.1"):                        true,
		with("169.254.1.1"):                       true,
		with("::ffff:192.0.2.1"):                  true,
		with("127.0.0.1"):                         false,
		with("127.9.9.9"):                         false,
		with("::1"):                               false,
		with("::ffff:127.0.0.1"):                  false,
		with("0.0.0.0"):                           false,
		with("0.1.2.3"):                           false,
		with("::"):                                false,
		with("224.0.0.1"):                         false,
		with("ff02::1"):                           false,
		with("255.255.255.255"):                   false,
		with("fe80::1"):                           false,
		with("fe80::1%eth0"):                      false,
		with("100.64.0.1"):                        true,
		with("::ffff:100.64.0.1"):                 true,
		with("fd00:2021:1111::5"):                 true,
		with("name.local"):                        false,
		with("010.0.0.1"):                         false,
		"candidate:" + hostCandidate:              false,
		hostCandidate + " generation 0":           false,
		hostCandidate + " ":                       false,
		"1 2 udp 1 192.0.2.1 1 typ host":          false,
		"1 1 tcp 1 192.0.2.1 1 typ host":          false,
		"1 1 UDP 1 192.0.2.1 1 typ host":          true,
		"1 1 udp 0 192.0.2.1 1 typ host":          false,
		"1 1 udp 4294967295 192.0.2.1 1 typ host": false,
		"1 1 udp 1 192.0.2.1 0 typ host":          false,
		"1 1 udp 1 192.0.2.1 65536 typ host":      false,
		"1 1 udp 1 192.0.2.1 1 typ other":         false,
		"1 1 udp 1 192.0.2.1 1 typ srflx raddr 10.0.0.1 rport 5":  true,
		"-5 1 udp 1 192.0.2.1 1 typ relay raddr 0.0.0.0 rport 0":  true,
		"1 1 udp 1 192.0.2.1 1 typ prflx raddr x rport 5":         false,
		"1 1 udp 1 192.0.2.1 1 typ prflx rport 5 raddr 10.0.0.1":  false,
		strings.Repeat("f", 33) + " 1 udp 1 192.0.2.1 1 typ host": false,
		"": false,
	} {
		kept, dropped := filter.Keep([]string{c})
		if (len(kept) == 1) != want || len(kept)+dropped != 1 {
			t.Errorf("%q: kept %q, want %v", c, kept, want)
		}
	}
	loopback := Filter{AllowLoopback: true}
	if !loopback.Allowed(netip.MustParseAddr("127.0.0.1")) || loopback.Allowed(netip.Addr{}) {
		t.Error("AllowLoopback")
	}
	kept, dropped := filter.Keep([]string{with("::1"), hostCandidate, "x", with("10.0.0.1")})
	if !reflect.DeepEqual(kept, []string{hostCandidate, with("10.0.0.1")}) || dropped != 2 {
		t.Errorf("%q, %d dropped", kept, dropped)
	}
}

func TestValidName(t *testing.T) {
	for name, want := range map[string]bool{
		"a": true, "gateway-1": true, "0": true, strings.Repeat("x", 63): true,
		"": false, "-a": false, "a-": false, "A": false, "a.b": false, "*": false, ">": false, "a b": false, "a_b": false,
		"ä": false, "a\n": false, strings.Repeat("x", 64): false,
	} {
		if ValidName(name) != want {
			t.Errorf("%q: %v", name, !want)
		}
	}
	if !ValidVerb("keys.report") || ValidVerb("a..b") || ValidVerb("") || ValidVerb("a.>") || ValidVerb("a.b.c.d.e") {
		t.Error("ValidVerb")
	}
}

func TestPermissions(t *testing.T) {
	publish, subscribe, denied := Permissions("a", []string{"b", "a", ">", "b.c", "*"})
	if want := []string{"portal.a.>", "sig.b.a", "_INBOX_b.ack.a.*"}; !reflect.DeepEqual(publish, want) {
		t.Errorf("publish %q, want %q", publish, want)
	}
	if want := []string{"sig.a.>", "_INBOX_a.>"}; !reflect.DeepEqual(subscribe, want) {
		t.Errorf("subscribe %q, want %q", subscribe, want)
	}
	for _, subject := range []string{"$JS.>", "$KV.>", "$SYS.>"} {
		if !strings.Contains(strings.Join(denied, " "), subject) {
			t.Errorf("%s is not denied", subject)
		}
	}
	if publish, subscribe, denied = Permissions("*", []string{"b"}); len(publish)+len(subscribe) != 0 || denied[0] != ">" {
		t.Errorf("an invalid name gets %q, %q, denied %q", publish, subscribe, denied)
	}
}

func TestAckPlace(t *testing.T) {
	for reply, want := range map[string]bool{
		"_INBOX_a.ack.b.1": true, "_INBOX_a.ack.c.1": false, "_INBOX_c.ack.b.1": false, "sig.a.b": false, "$JS.API.INFO": false,
		"_INBOX_a.ack.b.": false, "_INBOX_a.ack.b.1.2": false, "_INBOX_a.ack.b.>": false, "_INBOX_aa.ack.b.1": false,
	} {
		if validAck(reply, "a", "b") != want {
			t.Errorf("%q: %v", reply, !want)
		}
	}
}
