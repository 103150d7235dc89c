package ice

import (
	"net/netip"
	"slices"
	"strings"
	"testing"
)

func TestParseCandidate(t *testing.T) {
	r := rules{tunnel: inTunnel("100.64.0.9", "fd00:2021:1111::9")}
	good := []string{
		"1 1 udp 2130706431 192.0.2.1 7 typ host",
		"1 1 UDP 2130706431 2001:db8::1 65535 typ host",
		"1 1 udp 1 192.0.2.1 7 typ srflx raddr 10.0.0.1 rport 8",
		"1 1 udp 1 192.0.2.1 7 typ relay raddr 10.0.0.1 rport 8",
		"1 1 udp 1 100.64.0.10 7 typ host", "1 1 udp 1 fd00:2021:1111::10 7 typ host", // a carrier's, not the tunnel's
	}
	for _, text := range good {
		if c, err := parseCandidate(text, &r); err != nil || c.Port() == 0 {
			t.Errorf("%s: %v", text, err)
		}
	}
	bad := []string{
		"", " ", "1", "1 1 udp 1 192.0.2.1 7 typ", "1 1 udp 1 192.0.2.1 0 typ host", "1 1 udp 1 192.0.2.1 65536 typ host",
		"1 1 tcp 1 192.0.2.1 7 typ host tcptype passive", "1 1 udp 1 192.0.2.1 7 typ host tcptype active",
		"1 2 udp 1 192.0.2.1 7 typ host", "1 1 udp 1 192.0.2.1 7 typ prflx", "1 1 udp 1 some.local 7 typ host",
		"1 1 udp 1 127.0.0.1 7 typ host", "1 1 udp 1 ::1 7 typ host", "1 1 udp 1 224.0.0.1 7 typ host", "1 1 udp 1 0.0.0.0 7 typ host",
		"1 1 udp 1 255.255.255.255 7 typ host", "1 1 udp 1 fe80::1 7 typ host", "1 1 udp 1 ::ffff:127.0.0.1 7 typ host",
		"1 1 udp 1 100.64.0.9 7 typ host", "1 1 udp 1 fd00:2021:1111::9 7 typ srflx raddr :: rport 9",
		"1 1 udp 1 192.0.2.1 7 typ srflx raddr", "1 1 udp 1 192.0.2.1 7 typ relay tcptype",
		" 1 1 udp 1 192.0.2.1 7 typ host", "1 1 udp 1 192.0.2.1 7 typ host " + strings.Repeat("x", maxCandidateText),
	}
	for _, text := range bad {
		if _, err := parseCandidate(text, &r); err != ErrCandidate {
			t.Errorf("%q: %v", text, err)
		}
	}
}

func TestMappedCandidate(t *testing.T) {
	text, err := mappedCandidate(netip.MustParseAddrPort("192.0.2.1:7"), netip.MustParseAddrPort("10.0.0.1:8"))
	if err != nil {
		t.Fatal(err)
	}
	if !strings.HasSuffix(text, "192.0.2.1 7 typ srflx raddr 10.0.0.1 rport 8") {
		t.Error(text)
	}
	c, err := parseCandidate(text, new(rules))
	if at, ok := candidateAddress(c); err != nil || !ok || at.String() != "192.0.2.1:7" {
		t.Errorf("%v, %v", at, err)
	}
}

// FuzzParseCandidate: no text of a peer panics, and what is taken is where a check may go.
func FuzzParseCandidate(f *testing.F) {
	f.Add("1 1 udp 2130706431 192.0.2.1 7 typ host")
	f.Add("1 1 udp 1 2001:db8::1 7 typ srflx raddr 10.0.0.1 rport 8")
	f.Add(" 1 udp 1 192.0.2.1 7 typ relay raddr")
	r := rules{tunnel: inTunnel("100.64.0.9")}
	f.Fuzz(func(t *testing.T, text string) {
		c, err := parseCandidate(text, &r)
		if err != nil {
			return
		}
		at, ok := candidateAddress(c)
		if !ok || !r.allow(at.Addr()) || at.Port() == 0 {
			t.Fatalf("%q became %v", text, at)
		}
		if again, err := parseCandidate(c.Marshal(), &r); err != nil || !again.Equal(c) {
			t.Fatalf("%q became %q: %v", text, c.Marshal(), err)
		}
	})
}

// inTunnel is a MuxConfig.Tunnel with these addresses.
func inTunnel(addrs ...string) func(netip.Addr) bool {
	return func(a netip.Addr) bool { return slices.Contains(addrs, a.String()) }
}
