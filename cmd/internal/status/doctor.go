package status

import (
	"fmt"
	"io"
	"strings"

	"github.com/sluice-vpn/sluice/cmd/internal/doctor"
)

// Finding is one thing that the doctor has to say, and what to do.
type Finding struct {
	Check string `json:"check"`
	Level string `json:"level"` // ok, note or problem
	Text  string `json:"text"`
	Do    string `json:"do,omitempty"`
}

// Levels of findings.
const (
	LevelOK      = "ok"
	LevelNote    = "note"
	LevelProblem = "problem"
)

// Findings judges what the doctor has found.
func Findings(f *doctor.Facts) (list []Finding) {
	say := func(check, level, do, format string, a ...any) {
		list = append(list, Finding{check, level, fmt.Sprintf(format, a...), do})
	}
	if f.OS != "linux" {
		say("system", LevelNote, "", "on %s nothing is examined yet", f.OS)
		return list
	}
	judgeRights(f, say)
	judgeOffloads(f, say)
	judgeBuffers(&f.UDP, say)
	for i := range f.Links {
		judgeLink(&f.Links[i], say)
	}
	if len(f.Links) == 0 {
		say("network", LevelNote, "", "there is no default route, so no network device was examined")
	}
	return list
}

type sayFinding func(check, level, do, format string, a ...any)

func judgeRights(f *doctor.Facts, say sayFinding) {
	switch {
	case f.Admin && f.Subuser:
		say("rights", LevelNote, "", "CAP_NET_ADMIN, but only in a user namespace: limits of the whole machine hold")
	case f.Admin:
		say("rights", LevelOK, "", "CAP_NET_ADMIN")
	default:
		say("rights", LevelProblem, "run as root, or give the service CAP_NET_ADMIN", "no CAP_NET_ADMIN: no tunnel can be made, and less is seen here")
	}
	switch t := &f.TUN; {
	case t.Made:
		say("tun", LevelOK, "", "a TUN device can be made; its queue holds %d packets", t.QueueLength)
	case t.NoDriver:
		say("tun", LevelProblem, "modprobe tun; in a container give it /dev/net/tun", "no TUN driver: %s", t.Error)
	case t.Permission && !f.Admin:
		say("tun", LevelNote, "run sluice doctor as root to know", "whether a TUN device can be made is not known")
	default:
		say("tun", LevelProblem, "see the error", "no TUN device can be made: %s", t.Error)
	}
	switch {
	case f.Filter:
		say("nftables", LevelOK, "", "the kernel has nftables")
	case !f.Admin:
		say("nftables", LevelNote, "run sluice doctor as root to know", "not known")
	default:
		say("nftables", LevelProblem, "load nf_tables (modprobe nf_tables nft_masq)",
			"not usable, so that a gateway cannot forward, and a client lets connections in: %s", f.FilterError)
	}
}

// judgeOffloads tells what the kernel grants, and since which version it could: IFF_VNET_HDR and TUNSETOFFLOAD are of Linux 2.6.27
// (include/uapi/linux/if_tun.h as of then), USO at TUN devices is of 6.2 (TUN_F_USO4), UDP_SEGMENT of 4.18, UDP_GRO of 5.0 (udp(7)).
func judgeOffloads(f *doctor.Facts, say sayFinding) {
	offload := func(check string, on bool, since, what string) {
		if on {
			say(check, LevelOK, "", "%s: granted", what)
			return
		}
		say(check, LevelNote, "a newer kernel has it (this is "+f.Kernel+"); without it tunnels need more CPU", "%s: not granted; Linux %s and later can", what, since)
	}
	if t := &f.TUN; t.Made {
		offload("tun-tso", t.Superpackets && t.TSO, "2.6.27", "TCP segmentation at the TUN device (TSO)")
		offload("tun-uso", t.USO, "6.2", "UDP segmentation at the TUN device (USO)")
	}
	if f.UDP.Error != "" {
		say("udp", LevelProblem, "see the error", "no UDP socket can be opened: %s", f.UDP.Error)
		return
	}
	switch {
	case f.CorruptsSegments: // pipeline/udp/kernel.go has the source
		say("udp-segment", LevelProblem, "update the kernel to 7.1.5 or later", "Linux 7.0 to 7.1.4 damages packets sent with UDP_SEGMENT (this is %s), so it is"+
			" not used, and sending needs more CPU", f.Kernel)
	default:
		offload("udp-segment", f.UDP.Segment, "4.18", "UDP segmentation when sending (UDP_SEGMENT)")
	}
	switch {
	case f.CorruptsGRO:
		say("udp-gro", LevelNote, "update the kernel to 5.12 or later", "UDP_GRO of Linux before 5.12 has faults (this is %s), so it is not used", f.Kernel)
	default:
		offload("udp-gro", f.UDP.GRO, "5.0", "UDP coalescing when receiving (UDP_GRO)")
	}
}

func judgeBuffers(u *doctor.UDP, say sayFinding) {
	switch {
	case u.Error != "":
	case u.ReceiveBuffer >= doctor.WantedBuffer && u.Force:
		say("receive-buffer", LevelOK, "", "%s; this user may pass net.core.rmem_max (%s)", size(uint64(u.ReceiveBuffer)), size(uint64(u.ReceiveMost)))
	case u.ReceiveBuffer >= doctor.WantedBuffer:
		say("receive-buffer", LevelOK, "", "%s, which net.core.rmem_max (%s) allows; this user may not pass it", size(uint64(u.ReceiveBuffer)), size(uint64(u.ReceiveMost)))
	default:
		say("receive-buffer", LevelNote, "sluice tune -apply, as root of the machine, or run the node with CAP_NET_ADMIN there",
			"%s of %s wanted: net.core.rmem_max is %s, and this user may not pass it; bursts are lost in front of the socket",
			size(uint64(u.ReceiveBuffer)), size(doctor.WantedBuffer), size(uint64(u.ReceiveMost)))
	}
}

func judgeLink(l *doctor.Link, say sayFinding) {
	text := fmt.Sprintf("MTU %d, queue of %d packets, %d receive queue", l.MTU, l.QueueLength, l.ReceiveQueues)
	if l.ReceiveQueues != 1 {
		text += "s"
	}
	if l.Driver != "" {
		text += ", driver " + l.Driver
	}
	say(l.Name, LevelOK, "", "%s", text)
	if l.UDPSegment != nil && !*l.UDPSegment {
		say(l.Name, LevelNote, "ethtool -K "+l.Name+" tx-udp-segmentation on, if the device can", "no UDP segmentation: the kernel cuts what is sent, which needs more CPU")
	}
	if l.GRO != nil && !*l.GRO {
		say(l.Name, LevelNote, "ethtool -K "+l.Name+" gro on", "generic receive offload is off: packets come up one by one")
	}
	if l.HashPorts != nil && !*l.HashPorts && l.ReceiveQueues > 1 {
		say(l.Name, LevelNote, "ethtool -N "+l.Name+" rx-flow-hash udp4 sdfn, if the device can",
			"UDP flows between the same two addresses share one of the receive queues: ports are not hashed")
	}
}

// WriteFindings shows findings to a person, each with what to do below it.
func (v View) WriteFindings(out io.Writer, list []Finding) error {
	if v.Width == 0 {
		v.Width = Columns
	}
	var b strings.Builder
	for _, f := range list {
		lines := Wrap(clean(f.Text), fmt.Sprintf("%-8s %-15s ", f.Level, clean(f.Check)), strings.Repeat(" ", 25), v.Width)
		if f.Do != "" {
			lines = append(lines, Wrap(clean(f.Do), strings.Repeat(" ", 25)+"-> ", strings.Repeat(" ", 28), v.Width)...)
		}
		b.WriteString(strings.Join(lines, "\n") + "\n")
	}
	_, err := io.WriteString(out, b.String())
	return err
}
