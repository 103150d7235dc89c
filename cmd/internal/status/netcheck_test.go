package status

import (
	"net/netip"
	"strings"
	"testing"

	"github.com/sluice-vpn/sluice/ice/netcheck"
)

func TestNetcheck(t *testing.T) {
	at := netip.MustParseAddrPort
	good := netcheck.Report{
		UDP: netcheck.Works,
		IPv4: netcheck.Family{Address: netip.MustParseAddr("192.168.1.20"), Via: "wlan0", UDP: netcheck.Works, Mapping: netcheck.EndpointIndependent,
			MappingEvidence: netcheck.OtherAddress, Filtering: netcheck.AddressAndPortDependent, FilteringEvidence: netcheck.OtherAddress, PortKept: true},
		IPv6: netcheck.Family{Address: netip.MustParseAddr("2001:db8:1111:2222:3333:4444:5555:6666"), Via: "wlan0", UDP: netcheck.Untested},
		Servers: []netcheck.ServerReport{
			{Name: "portal", Server: at("203.0.113.7:3478"), Answered: true, RTTS: 0.0124, Mapped: at("198.51.100.30:41641")},
			{Name: strings.Repeat("a-long-name-", 5) + "abc", Server: at("[2001:db8:1111:2222:3333:4444:5555:6666]:34780")},
		},
		Portals: []netcheck.PortalReport{{Portal: "203.0.113.7:4430", TCP: netcheck.Works, TLS: netcheck.Works, ConnectS: 0.013}},
	}
	blocked := netcheck.Report{
		UDP: netcheck.Blocked, IPv4: netcheck.Family{Address: netip.MustParseAddr("10.9.0.20"), Via: "eth0", UDP: netcheck.Blocked},
		Servers: []netcheck.ServerReport{{Name: "portal", Server: at("203.0.113.7:3478")}},
		Portals: []netcheck.PortalReport{
			{Portal: "203.0.113.7:4430", TCP: netcheck.Blocked, Port443: netcheck.Refused},
			{Portal: "portal.example.org:443", TCP: netcheck.Works, TLS: netcheck.Failed, OtherCertificate: true, ConnectS: 0.2},
		},
		Proxy: map[string]string{"HTTPS_PROXY": "http://proxy.example.org:3128"},
	}
	symmetric := good
	symmetric.IPv4.Mapping, symmetric.IPv4.MappingEvidence, symmetric.IPv4.PortKept = netcheck.Dependent, netcheck.OtherServers, false
	symmetric.IPv4.Filtering, symmetric.IPv6 = netcheck.Unknown, netcheck.Family{}
	lone := good
	lone.IPv4.Mapping, lone.IPv4.MappingEvidence, lone.IPv4.Filtering = netcheck.Unknown, netcheck.OneServer, netcheck.Unknown
	lone.Servers = lone.Servers[:1]
	open := good
	open.IPv4.Mapping, open.IPv4.Filtering = netcheck.NoNAT, netcheck.Unknown
	for name, tt := range map[string]struct {
		report   netcheck.Report
		problems int
	}{
		"netcheck-good": {good, 0}, "netcheck-blocked": {blocked, 2}, "netcheck-symmetric": {symmetric, 0}, "netcheck-lone": {lone, 0}, "netcheck-open": {open, 0},
		"netcheck-nothing": {netcheck.Report{UDP: netcheck.Untested}, 0},
	} {
		var b strings.Builder
		if err := (View{}).WriteNetcheck(&b, &tt.report); err != nil {
			t.Fatal(err)
		}
		golden(t, name, b.String(), Columns)
		if list := NetcheckProblems(&tt.report); len(list) != tt.problems {
			t.Errorf("%s: problems %q, want %d", name, list, tt.problems)
		}
		if strings.Contains(b.String(), "PROBLEM") != (tt.problems > 0) {
			t.Errorf("%s: %d problems, in words\n%s", name, tt.problems, b.String())
		}
	}
	for _, b := range []netcheck.Behavior{netcheck.NoNAT, netcheck.EndpointIndependent, netcheck.NotPortDependent, netcheck.AddressDependent,
		netcheck.AddressAndPortDependent, netcheck.Dependent} {
		if mappings[b] == "" {
			t.Errorf("nothing says what the mapping %s means", b)
		}
	}
}
