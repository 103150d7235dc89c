package main

import (
	"bytes"
	"encoding/json"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/bench/speedtest"
)

// envMain makes the test binary be the program, in the test's children: the speed test starts itself again, twice.
const envMain = "SLUICE_TEST_MAIN"

func init() {
	if os.Getenv(envMain) != "" {
		main()
	}
}

// speedtestProcess prepares `sluice speedtest` as a process of its own.
func speedtestProcess(t *testing.T, args ...string) (cmd *exec.Cmd, out, errs *bytes.Buffer) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	out, errs = &bytes.Buffer{}, &bytes.Buffer{}
	cmd = exec.Command(self, append([]string{"speedtest"}, args...)...)
	// A program under the race detector waits for a second at its end, unless told not to.
	cmd.Env = append(os.Environ(), envMain+"=1", "GORACE=atexit_sleep_ms=0 "+os.Getenv("GORACE"))
	cmd.Stdout, cmd.Stderr = out, errs
	return cmd, out, errs
}

// skipWithoutLab skips where the machine does not allow what the speed test needs; it says so itself.
func skipWithoutLab(t *testing.T, errs string) {
	t.Helper()
	for _, reason := range []string{"run as root", "may not make namespaces", "/dev/net/tun"} {
		if strings.Contains(errs, reason) {
			t.Skipf("the speed test cannot run here: %s", errs)
		}
	}
}

// The load also goes between a client and a gateway, over the path that ICE finds; over the relay the nodes frame ChannelData.
func TestSpeedtestTopologies(t *testing.T) {
	for topology, relayed := range map[string]bool{speedtest.TopologyNAT: false, speedtest.TopologyRelay: true} {
		cmd, out, errs := speedtestProcess(t, "-topology", topology, "-duration", "200ms", "-cases", "tcp-1,rtt-idle", "-json")
		if err := cmd.Run(); err != nil {
			skipWithoutLab(t, errs.String())
			t.Fatalf("%s: %v: %s", topology, err, errs)
		}
		var report speedtest.Report
		if err := json.Unmarshal(out.Bytes(), &report); err != nil {
			t.Fatal(err)
		}
		if report.Settings.Topology != topology || len(report.Results) != 2 {
			t.Fatalf("%s: %+v", topology, report.Settings)
		}
		for _, r := range report.Results {
			if r.BytesReceived+r.PacketsReceived == 0 {
				t.Errorf("%s: %s carried nothing", topology, r.Case)
			}
			var framed uint64
			for _, c := range r.Counters {
				framed += c["channel_sent"]
			}
			if (framed > 0) != relayed {
				t.Errorf("%s: %s sent %d packets as ChannelData", topology, r.Case, framed)
			}
		}
	}
	cmd, _, errs := speedtestProcess(t, "-topology", "nat", "-against", "wireguard-go")
	if err := cmd.Run(); err == nil || !strings.Contains(errs.String(), "leave out -against") {
		t.Errorf("-against with a topology: %v: %s", err, errs)
	}
}

func TestSpeedtestEndToEnd(t *testing.T) {
	page := filepath.Join(t.TempDir(), "report.html")
	cmd, out, errs := speedtestProcess(t, "-duration", "150ms", "-cases", "tcp-1,udp-1200,rtt-idle", "-json", "-html", page)
	if err := cmd.Run(); err != nil {
		skipWithoutLab(t, errs.String())
		t.Fatalf("%v: %s", err, errs)
	}
	var report speedtest.Report
	d := json.NewDecoder(out)
	if err := d.Decode(&report); err != nil || d.More() {
		t.Fatalf("stdout is not one JSON object: %v", err)
	}
	if len(report.Results) != 9 {
		t.Fatalf("%d results, want 3 cases of sluice, bare and null", len(report.Results))
	}
	for _, r := range report.Results {
		if r.Case == "tcp-1" && (r.GbitPerS <= 0 || r.BytesReceived != r.BytesSent) ||
			r.Case == "udp-1200" && r.PacketsReceived == 0 || r.Case == "rtt-idle" && r.RTTMeanS <= 0 {
			t.Errorf("nothing measured: %+v", r)
		}
		if r.Impl != speedtest.ImplBare && (len(r.Counters) != 2 || r.SegmentsPerSend < 1) {
			t.Errorf("%s, %s: counters of %d nodes, %v segments a run", r.Case, r.Impl, len(r.Counters), r.SegmentsPerSend)
		}
	}
	if b, err := os.ReadFile(page); err != nil || !bytes.Contains(b, []byte("<svg")) {
		t.Errorf("no chart in the page: %v", err)
	}
}

// TestSpeedtestAccounts: each UDP packet that is sent is received or in a named counter of a node, within 0.1 %.
func TestSpeedtestAccounts(t *testing.T) {
	cmd, out, errs := speedtestProcess(t, "-duration", "400ms", "-cases", "udp-100,udp-1200", "-limits", "none", "-json")
	if err := cmd.Run(); err != nil {
		skipWithoutLab(t, errs.String())
		t.Fatalf("%v: %s", err, errs)
	}
	var report speedtest.Report
	if err := json.Unmarshal(out.Bytes(), &report); err != nil {
		t.Fatal(err)
	}
	if len(report.Results) != 2 || report.Sluice.Version == "" {
		t.Fatalf("%d results of %+v, want 2 of a version", len(report.Results), report.Sluice)
	}
	for _, r := range report.Results {
		if r.UnaccountedPackets == nil {
			t.Errorf("%s: packets are not accounted for", r.Case)
			continue
		}
		t.Logf("%s: %d sent, %d received, %d unaccounted, drops %v", r.Case, r.PacketsSent, r.PacketsReceived, *r.UnaccountedPackets, r.Drops)
		if left := *r.UnaccountedPackets; r.PacketsSent == 0 || max(left, -left)*1000 > int64(r.PacketsSent) {
			t.Errorf("%s: of %d packets sent %d were received, and %d are neither that nor in %v; want 0.1 %% at most",
				r.Case, r.PacketsSent, r.PacketsReceived, left, r.Drops)
		}
	}
}

// running counts the processes of this test binary that are nodes.
func running(t *testing.T) (n int) {
	t.Helper()
	self, err := os.Executable()
	if err != nil {
		t.Fatal(err)
	}
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		if b, err := os.ReadFile(f); err == nil && bytes.HasPrefix(b, []byte(self+"\x00node\x00")) {
			n++
		}
	}
	return n
}

func TestSpeedtestLeavesNothing(t *testing.T) {
	page := filepath.Join(t.TempDir(), "report.html")
	for _, c := range []struct {
		signal syscall.Signal
		code   int
	}{{syscall.SIGINT, exitInterrupted}, {syscall.SIGTERM, exitInterrupted}, {syscall.SIGKILL, -1}} {
		cmd, _, errs := speedtestProcess(t, "-duration", "1h", "-cases", "tcp-4", "-html", page)
		if err := cmd.Start(); err != nil {
			t.Fatal(err)
		}
		ended := make(chan struct{})
		go func() { _ = cmd.Wait(); close(ended) }()
		await := func(what string, ok func() bool) {
			for deadline := time.Now().Add(20 * time.Second); !ok(); time.Sleep(5 * time.Millisecond) {
				if time.Now().After(deadline) {
					_ = cmd.Process.Kill()
					t.Fatalf("%v: %s: not after 20 s", c.signal, what)
				}
			}
		}
		await("two nodes run", func() bool {
			select {
			case <-ended:
				skipWithoutLab(t, errs.String())
				t.Fatalf("ended at once: %s", errs)
			default:
			}
			return running(t) == 2
		})
		if err := cmd.Process.Signal(c.signal); err != nil {
			t.Fatal(err)
		}
		await("it ends", func() bool {
			select {
			case <-ended:
				return true
			default:
				return false
			}
		})
		if got := cmd.ProcessState.ExitCode(); got != c.code {
			t.Errorf("%v: exit status %d, want %d: %s", c.signal, got, c.code, errs)
		}
		if c.code > 0 && !strings.Contains(errs.String(), "interrupted; nothing is left behind") {
			t.Errorf("%v: it said %q", c.signal, errs)
		}
		if _, err := os.Stat(page); c.code > 0 && err == nil {
			t.Errorf("%v: an empty report is left", c.signal)
		}
		await("no node is left", func() bool { return running(t) == 0 })
	}
}

// The nodes are recorded while they work, and the text is one that the Firefox Profiler reads, with our functions' names.
func TestSpeedtestPerf(t *testing.T) {
	if _, err := exec.LookPath("perf"); err != nil {
		t.Skip("there is no perf program here (Debian: linux-perf)")
	}
	dir := t.TempDir()
	args := []string{"speedtest", "-duration", "1s", "-cases", "tcp-1", "-limits", "none", "-perf", "-out", dir}
	cmd, _, errs := speedtestProcess(t, args[1:]...)
	if err := cmd.Run(); err == nil || !strings.Contains(errs.String(), "go build") {
		skipWithoutLab(t, errs.String())
		t.Errorf("a binary without symbols: %v, %q, want an error that says how to build one", err, errs)
	}
	program := filepath.Join(dir, "sluice")
	if out, err := exec.Command("go", "build", "-o", program, ".").CombinedOutput(); err != nil {
		t.Fatalf("go build: %v: %s", err, out)
	}
	errs.Reset()
	cmd = exec.Command(program, args...)
	cmd.Stderr = errs
	if err := cmd.Run(); err != nil {
		skipWithoutLab(t, errs.String())
		t.Fatalf("%v: %s", err, errs)
	}
	texts, _ := filepath.Glob(filepath.Join(dir, "*.perf.txt"))
	if len(texts) != 2 {
		t.Fatalf("%d texts, want one for each node: %s", len(texts), errs)
	}
	for _, name := range texts {
		f, err := os.Open(name)
		if err != nil {
			t.Fatal(err)
		}
		p, err := speedtest.ReadPerfScript(f)
		f.Close()
		// The assembly of golang.org/x/crypto, which is what processors without AVX-512 run, keeps no frame pointer: what called it is lost,
		// and some of what stands there instead has no name. An ordinary user's samples are of little else.
		if err != nil || p.Samples < 20 || len(p.Strange) > 0 || p.Named < p.Frames*3/4 {
			t.Errorf("%s: %v, %v, strange lines %q", name, err, p, p.Strange)
		}
		if n := p.Functions["github.com/sluice-vpn/sluice/pipeline.(*shard).loop"]; n < p.Samples/10 {
			t.Errorf("%s: the shard's loop is in %d of %d samples", name, n, p.Samples)
		}
	}
}
