package status

import (
	"slices"
	"strings"
	"testing"

	"github.com/sluice-vpn/sluice/cmd/internal/doctor"
)

func TestFindings(t *testing.T) {
	on, off := true, false
	good := doctor.Facts{
		OS: "linux", Kernel: "6.18.4", Root: true, Admin: true, Filter: true,
		TUN:   doctor.TUN{Made: true, QueueLength: 500, Superpackets: true, TSO: true, USO: true},
		UDP:   doctor.UDP{Segment: true, GRO: true, ReceiveBuffer: 4 << 20, SendBuffer: 1 << 30, ReceiveMost: 212992, SendMost: 212992, Force: true},
		Links: []doctor.Link{{Name: "eth0", Driver: "virtio_net", MTU: 1500, QueueLength: 1000, ReceiveQueues: 1, UDPSegment: &on, GRO: &on, HashPorts: &off}},
	}
	user := good
	user.Root, user.Admin, user.Filter, user.FilterError = false, false, false, "operation not permitted"
	user.TUN = doctor.TUN{Error: "tun: not permitted", Permission: true}
	user.UDP.Force, user.UDP.ReceiveBuffer, user.UDP.SendBuffer = false, 212992, 212992
	old := good
	old.Kernel, old.Subuser, old.CorruptsGRO, old.UDP.GRO, old.TUN.USO = "5.4.0-200-generic", true, true, false, false
	old.UDP.Force = false
	old.Links = []doctor.Link{{Name: "enp3s0f0np0-long", MTU: 1500, QueueLength: 1000, ReceiveQueues: 8, UDPSegment: &off, GRO: &off, HashPorts: &off}}
	broken := good
	broken.Kernel, broken.CorruptsSegments, broken.UDP.Segment, broken.Links = "7.1.2", true, false, nil
	broken.TUN = doctor.TUN{Error: "tun: no TUN driver: open /dev/net/tun: no such file or directory", NoDriver: true}
	broken.Filter, broken.FilterError = false, "protocol not supported"
	for name, tt := range map[string]struct {
		facts    doctor.Facts
		problems []string
	}{
		"doctor-good": {good, nil}, "doctor-user": {user, []string{"rights"}}, "doctor-old": {old, nil},
		"doctor-broken": {broken, []string{"tun", "nftables", "udp-segment"}}, "doctor-other": {doctor.Facts{OS: "windows"}, nil},
	} {
		list := Findings(&tt.facts)
		var problems []string
		for _, f := range list {
			if f.Level == LevelProblem {
				problems = append(problems, f.Check)
			}
			if f.Level == LevelProblem && f.Do == "" || f.Text == "" {
				t.Errorf("%s: nothing says what to do about %+v", name, f)
			}
		}
		if !slices.Equal(problems, tt.problems) {
			t.Errorf("%s: problems %q, want %q", name, problems, tt.problems)
		}
		var b strings.Builder
		if err := (View{}).WriteFindings(&b, list); err != nil {
			t.Fatal(err)
		}
		golden(t, name, b.String(), Columns)
	}
}
