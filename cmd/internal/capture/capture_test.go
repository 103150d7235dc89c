package capture

import (
	"bytes"
	"errors"
	"fmt"
	"io"
	"net/netip"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"testing/iotest"
	"time"

	"github.com/google/gopacket/pcapgo"

	"github.com/sluice-vpn/sluice/pipeline"
)

// udp4 and the like are packets without payload: from 10.0.0.1:1000 (fd00::1) to 10.0.0.2:53 (fd00::2).
var (
	udp4  = []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 3, 232, 0, 53, 0, 8, 0, 0}
	tcp4  = append([]byte{0x45, 0, 0, 40, 0, 0, 0, 0, 64, 6, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 3, 232, 0, 53}, make([]byte, 16)...)
	icmp4 = []byte{0x45, 0, 0, 28, 0, 0, 0, 0, 64, 1, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 8, 0, 0, 0, 0, 0, 0, 0}
	late4 = []byte{0x45, 0, 0, 28, 0, 0, 0, 1, 64, 17, 0, 0, 10, 0, 0, 1, 10, 0, 0, 2, 3, 232, 0, 53, 0, 8, 0, 0} // a later fragment
	udp6  = append(append(append([]byte{0x60, 0, 0, 0, 0, 8, 17, 64, 0xfd}, append(make([]byte, 14), 1)...), append([]byte{0xfd}, append(make([]byte, 14), 2)...)...), 3, 232, 0, 53, 0, 8, 0, 0)
	icmp6 = append(append(append([]byte{0x60, 0, 0, 0, 0, 8, 58, 64, 0xfd}, append(make([]byte, 14), 1)...), append([]byte{0xfd}, append(make([]byte, 14), 2)...)...), 128, 0, 0, 0, 0, 0, 0, 0)
)

func TestFilter(t *testing.T) {
	packets := []struct {
		name string
		b    []byte
	}{{"udp4", udp4}, {"tcp4", tcp4}, {"icmp4", icmp4}, {"late4", late4}, {"udp6", udp6}, {"icmp6", icmp6}, {"nothing", nil}, {"cut", udp4[:20]}, {"noise", []byte{0x90, 1}}}
	for filter, want := range map[string]string{
		"tcp": "tcp4", "udp": "udp4 late4 udp6", "icmp": "icmp4 icmp6", "ip": "udp4 tcp4 icmp4 late4", "ip6": "udp6 icmp6",
		"host 10.0.0.1": "udp4 tcp4 icmp4 late4", "src host 10.0.0.1": "udp4 tcp4 icmp4 late4", "dst host 10.0.0.1": "", "host ::ffff:10.0.0.2": "udp4 tcp4 icmp4 late4",
		"dst host fd00::2": "udp6 icmp6", "net fd00::/16": "udp6 icmp6", "src net 10.0.0.2/32": "", "net 0.0.0.0/0": "udp4 tcp4 icmp4 late4",
		"port 53": "udp4 tcp4 udp6", "src port 53": "", "dst port 53 and tcp": "tcp4", "tcp port 53": "tcp4", "udp dst port 53": "udp4 udp6", "tcp src port 53": "",
		"not udp": "tcp4 icmp4 icmp6", "! tcp && ip": "udp4 icmp4 late4", "tcp or icmp and ip6": "tcp4 icmp6", "(tcp or icmp) and ip6": "icmp6",
		"not (tcp or udp) and ip": "icmp4", "not not tcp": "tcp4", "udp or tcp || icmp": "udp4 tcp4 icmp4 late4 udp6 icmp6",
	} {
		f, err := ParseFilter(filter)
		if err != nil {
			t.Errorf("%q: %v", filter, err)
			continue
		}
		var got []string
		for _, p := range packets {
			if f.Match(p.b) {
				got = append(got, p.name)
			}
		}
		if strings.Join(got, " ") != want {
			t.Errorf("%q takes %q, want %q", filter, got, want)
		}
	}
	if f, err := ParseFilter(" "); f != nil || err != nil {
		t.Errorf("an empty filter: %v, %v, want nil", f, err)
	}
	for filter, want := range map[string]string{
		"tpc": `"tpc" is not known`, "tcp udp": `"udp" stands where`, "host": `"" is no address`, "host a": `"a" is no address`, "host fe80::1%eth0": "is no address",
		"net 10.0.0.0": "is no prefix", "port http": `"http" is no port`, "port 65536": "is no port", "src tcp": "followed by host, net or port", "tcp and": "it ends where",
		"(tcp": "a ) is missing", "tcp)": `")" stands where`, "not": "it ends where", strings.Repeat("(", 33) + "tcp": "nested more than 32", strings.Repeat("a", 1025): "1025 bytes",
		strings.Repeat("not ", 40) + "tcp": "nested more than 32",
	} {
		if _, err := ParseFilter(filter); err == nil || !strings.Contains(err.Error(), want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: error %v, want %q", filter, err, want)
		}
	}
}

func FuzzFilter(f *testing.F) {
	for _, text := range []string{"tcp port 443 and not (host 10.0.0.1 or src net fd00::/8)", "! ! icmp || ip6 && udp dst port 1"} {
		f.Add(text, udp4)
		f.Add(text, udp6)
	}
	f.Fuzz(func(t *testing.T, text string, packet []byte) {
		filter, err := ParseFilter(text)
		if err != nil || filter == nil {
			return
		}
		got := filter.Match(packet)
		inverse, err := ParseFilter("not (" + text + ")")
		if err != nil {
			return // too deep or too long
		}
		if ip := pipelineTakes(packet); got && !ip || ip && inverse.Match(packet) == got {
			t.Errorf("%q and its inverse agree about %x", text, packet)
		}
	})
}

// pipelineTakes tells whether a packet is IP at all.
func pipelineTakes(b []byte) bool {
	f, _ := ParseFilter("ip or ip6")
	return f.Match(b)
}

// sample has a record of each kind.
var sample = []pipeline.Captured{
	{At: time.Unix(1700000000, 123456789), Peer: "gate", Data: udp4, Length: len(udp4)},
	{At: time.Unix(1700000001, 0), Peer: "gate", Data: tcp4[:30], Length: 60000, Segments: 44, SegmentSize: 1376},
	{At: time.Unix(1700000002, 0), Inbound: true, Peer: "gate", Data: icmp6, Length: len(icmp6), Drop: "source_not_allowed"},
	{At: time.Unix(1700000003, 0), Data: udp4, Length: len(udp4), Drop: "no_route"},
	{At: time.Unix(1700000004, 0), Outer: true, Peer: "gate", Src: netip.MustParseAddrPort("192.0.2.1:51820"), Dst: netip.MustParseAddrPort("192.0.2.2:3478"),
		Channel: 0x4001, Data: []byte{0x40, 1, 0, 4, 1, 2, 3, 4}, Length: 8},
	{At: time.Unix(1700000005, 0), Outer: true, Inbound: true, Src: netip.MustParseAddrPort("[2001:db8::1]:7"), Dst: netip.AddrPortFrom(netip.Addr{}, 51820),
		Data: []byte("x"), Length: 1, Drop: "stray"},
	{At: time.Unix(1700000006, 0), Outer: true, Dst: netip.MustParseAddrPort("192.0.2.2:1"), Data: []byte("xyz"), Length: 3, Refused: true},
}

var comments = []string{
	"out to gate", "out to gate, superpacket of 44 packets of 1376 bytes", "in from gate, dropped: source_not_allowed", "out to no peer, dropped: no_route",
	"out to gate, by a relay, channel 0x4001", "in, dropped: stray", "out, not sent: the kernel has refused it",
}

func sampleFile(t *testing.T) []byte {
	t.Helper()
	var b bytes.Buffer
	w, err := NewWriter(&b, "sluice0", Options{Outer: true, Filter: "tcp"})
	for i := range sample {
		err = errors.Join(err, w.Write(&sample[i]))
	}
	if err := errors.Join(err, w.End(5), w.Flush()); err != nil {
		t.Fatal(err)
	}
	return b.Bytes()
}

// What the library reads is what was written, also with options that it does not write.
func TestWriter(t *testing.T) {
	r, err := pcapgo.NewNgReader(bytes.NewReader(sampleFile(t)), pcapgo.NgReaderOptions{WantMixedLinkType: true})
	if err != nil {
		t.Fatal(err)
	}
	for i, want := range sample {
		data, ci, err := r.ReadPacketData()
		if err != nil {
			t.Fatalf("packet %d: %v", i, err)
		}
		if at := map[bool]int{true: outerInterface}[want.Outer]; ci.InterfaceIndex != at || !bytes.HasSuffix(data, want.Data) || !ci.Timestamp.Equal(want.At) {
			t.Errorf("packet %d: interface %d, at %v, %x, want %d, %v, %x", i, ci.InterfaceIndex, ci.Timestamp, data, at, want.At, want.Data)
		}
		if !want.Outer && ci.Length != want.Length {
			t.Errorf("packet %d: length %d, want %d", i, ci.Length, want.Length)
		}
	}
	if _, _, err := r.ReadPacketData(); err != io.EOF {
		t.Errorf("behind the last packet: %v, want io.EOF", err)
	}
}

// The library reads what is written of whatever packet: bytes, lengths, times and interfaces, and the file is made of whole blocks.
func FuzzWriter(f *testing.F) {
	for i, c := range sample {
		f.Add(c.Data, c.Length, c.At.UnixNano(), c.Peer, c.Drop, uint8(i))
	}
	f.Fuzz(func(t *testing.T, data []byte, length int, at int64, peer, drop string, flags uint8) {
		if len(data) > 1<<16 || len(peer)+len(drop) > 1<<10 || at < 0 {
			return // no pipeline gives that
		}
		length = len(data) + length&0xffff
		c := pipeline.Captured{At: time.Unix(0, at), Inbound: flags&1 > 0, Outer: flags&2 > 0, Peer: peer, Drop: drop, Data: data, Length: length}
		var b bytes.Buffer
		w, err := NewWriter(&b, "sluice0", Options{Outer: flags&4 > 0 || c.Outer, Filter: drop})
		if err := errors.Join(err, w.Write(&c), w.Write(&c), w.End(uint64(flags)), w.Flush()); err != nil {
			t.Fatal(err)
		}
		var whole bytes.Buffer
		if n, err := Copy(&whole, bytes.NewReader(b.Bytes())); err != nil || int(n) != b.Len() {
			t.Fatalf("%d of %d bytes are blocks: %v", n, b.Len(), err)
		}
		r, err := pcapgo.NewNgReader(&b, pcapgo.NgReaderOptions{WantMixedLinkType: true})
		if err != nil {
			t.Fatal(err)
		}
		for range 2 {
			got, ci, err := r.ReadPacketData()
			if err != nil || !bytes.HasSuffix(got, data) || !ci.Timestamp.Equal(c.At) || (ci.InterfaceIndex == outerInterface) != c.Outer ||
				!c.Outer && (ci.Length != length || len(got) != len(data)) {
				t.Fatalf("read %x, %+v, %v, want %x of %d bytes at %v", got, ci, err, data, length, c.At)
			}
		}
		if _, _, err := r.ReadPacketData(); err != io.EOF {
			t.Fatalf("behind the last packet: %v, want io.EOF", err)
		}
		s, err := r.Interface(plainInterface)
		if want := uint64(flags); err != nil || s.Name != "sluice0" || s.Filter != drop || s.Statistics.PacketsDropped != want {
			t.Fatalf("the interface: %+v, %v, want %d dropped", s, err, want)
		}
	})
}

// Wireshark reads comments, directions, lengths and addresses.
func TestTshark(t *testing.T) {
	if _, err := exec.LookPath("tshark"); err != nil {
		t.Skip("SKIPPED: tshark is not installed")
	}
	file := filepath.Join(t.TempDir(), "sample.pcapng")
	if err := os.WriteFile(file, sampleFile(t), 0o600); err != nil {
		t.Fatal(err)
	}
	cmd := exec.Command("tshark", "-r", file, "-T", "fields", "-E", "separator=|", "-e", "frame.interface_name", "-e", "frame.packet_flags_direction",
		"-e", "frame.len", "-e", "frame.cap_len", "-e", "ip.src", "-e", "ipv6.src", "-e", "ip.dst", "-e", "udp.dstport", "-e", "frame.comment")
	cmd.Env = append(os.Environ(), "HOME="+t.TempDir())
	out, err := cmd.Output()
	if err != nil {
		t.Fatal(err)
	}
	want := []string{
		"sluice0|0x00000002|28|28|10.0.0.1||10.0.0.2|53|", "sluice0|0x00000002|60000|30|10.0.0.1||10.0.0.2||", "sluice0|0x00000001|48|48||fd00::1|||",
		"sluice0|0x00000002|28|28|10.0.0.1||10.0.0.2|53|", "sluice0-outer|0x00000002|36|36|192.0.2.1||192.0.2.2|3478|",
		"sluice0-outer|0x00000001|49|49||2001:db8::1||51820|", "sluice0-outer|0x00000002|31|31|0.0.0.0||192.0.2.2|1|",
	}
	for i := range want {
		want[i] += comments[i]
	}
	if got := strings.TrimSpace(string(out)); got != strings.Join(want, "\n") {
		t.Errorf("tshark reads\n%s\nwant\n%s", got, strings.Join(want, "\n"))
	}
}

// file is one on a disk with that much room.
type file struct {
	bytes.Buffer
	room int
}

func (f *file) Write(b []byte) (int, error) {
	if len(b) <= f.room-f.Len() {
		return f.Buffer.Write(b)
	}
	n, _ := f.Buffer.Write(b[:f.room-f.Len()])
	return n, syscall.ENOSPC
}

func (f *file) Truncate(size int64) error { f.Buffer.Truncate(int(size)); return nil }

// Wherever the disk is full or the stream ends, what is in the file are whole blocks, as many as there is room for.
func TestCopy(t *testing.T) {
	all := sampleFile(t)
	ends := []int{}
	for at := 0; at < len(all); {
		at += int(all[at+4]) + int(all[at+5])<<8
		ends = append(ends, at)
	}
	whole := func(n int) (end int) {
		for _, e := range ends {
			if e <= n {
				end = e
			}
		}
		return end
	}
	for n := range len(all) + 1 {
		for name, r := range map[string]io.Reader{"at once": bytes.NewReader(all), "byte by byte": iotest.OneByteReader(bytes.NewReader(all))} {
			f := &file{room: n}
			got, err := Copy(f, r)
			if full := n < len(all); errors.Is(err, syscall.ENOSPC) != full || f.Len() != whole(n) || got != int64(whole(n)) || !bytes.Equal(f.Bytes(), all[:f.Len()]) {
				t.Fatalf("%s, a disk of %d bytes: %v, %d of %d bytes are there, want %d", name, n, err, f.Len(), got, whole(n))
			}
		}
		f := &file{room: len(all)}
		if got, err := Copy(f, bytes.NewReader(all[:n])); err != nil || f.Len() != whole(n) || got != int64(whole(n)) {
			t.Fatalf("a stream of %d bytes: %v, %d of %d bytes are there, want %d", n, err, f.Len(), got, whole(n))
		}
	}
	if _, err := Copy(&file{room: 1000}, strings.NewReader("HTTP/1.1 200 OK\r\n")); err == nil || !strings.Contains(err.Error(), "no capture") {
		t.Errorf("something else: %v", err)
	}
}

func TestComment(t *testing.T) {
	for i := range sample {
		if got := Comment(&sample[i]); got != comments[i] {
			t.Errorf("%s, want %s", fmt.Sprintf("%q", got), comments[i])
		}
	}
}
