package speedtest

import (
	"bytes"
	"context"
	"encoding/binary"
	"errors"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/bench/lab"
)

// needProgram finds a WireGuard program of the system to measure.
func needProgram(t *testing.T) Program {
	t.Helper()
	lab.NeedTUN(t)
	path, err := exec.LookPath("wireguard-go")
	if err != nil {
		t.Skip("needs the program wireguard-go in PATH (Debian: wireguard-go)")
	}
	return Program{Name: "wireguard-go", Path: path}
}

// nodesLeft lists the processes whose command line names a device of the test bed.
func nodesLeft(t *testing.T) (left []string) {
	t.Helper()
	files, err := filepath.Glob("/proc/[0-9]*/cmdline")
	if err != nil {
		t.Fatal(err)
	}
	for _, f := range files {
		b, err := os.ReadFile(f)
		if err == nil && (bytes.Contains(b, []byte("\x00speeda")) || bytes.Contains(b, []byte("\x00speedb"))) {
			left = append(left, f)
		}
	}
	return left
}

func TestAllCases(t *testing.T) {
	program := needProgram(t)
	var progress bytes.Buffer
	c := Config{Duration: 100 * time.Millisecond, WarmUp: 50 * time.Millisecond, Limits: []string{ImplBare}, Progress: &progress}
	report, err := Run(context.Background(), c, []Program{program})
	if err != nil {
		t.Fatal(err)
	}
	if len(report.Results) != 16 || strings.Count(progress.String(), "\n") != 16 {
		t.Fatalf("%d results and %d lines of progress, want 16: 8 cases of 2", len(report.Results), strings.Count(progress.String(), "\n"))
	}
	for _, r := range report.Results {
		checkResult(t, r)
	}
	if m := report.Machine; m.CPUs < 1 || m.Kernel == "" || m.SocketReceiveBuffer == 0 {
		t.Errorf("machine %+v", m)
	}
	if left := nodesLeft(t); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
	var b bytes.Buffer
	if err := errors.Join(report.WriteJSON(&b), report.WriteTable(&b), report.WriteHTML(&b)); err != nil {
		t.Error(err)
	}
}

// TestIperf: iperf3's traffic is counted as ours is.
func TestIperf(t *testing.T) {
	lab.Need(t)
	if _, err := exec.LookPath("iperf3"); err != nil {
		t.Skip("SKIPPED: iperf3 is not installed")
	}
	c := Config{Load: LoadIperf, Duration: 500 * time.Millisecond, WarmUp: 300 * time.Millisecond, Limits: []string{ImplBare}}
	report, err := Run(context.Background(), c, nil)
	if err != nil {
		t.Fatal(err)
	}
	for _, r := range report.Results {
		one := Cases()[caseIndex(r.Case)]
		if r.GbitPerS <= 0 || r.BytesReceived == 0 || r.BytesSent == 0 {
			t.Errorf("%s: got %+v, want traffic", r.Case, r)
		}
		if one.backward > 0 && (r.ForwardGbit <= 0 || r.BackwardGbit <= 0) {
			t.Errorf("%s: %g and %g Gbit/s, want both directions", r.Case, r.ForwardGbit, r.BackwardGbit)
		}
		if one.kind == loadUDP && (r.KPPS <= 0 || r.PacketsReceived > r.PacketsSent) {
			t.Errorf("%s: %g kpps, %d of %d packets, want some, and no more than were sent", r.Case, r.KPPS, r.PacketsReceived, r.PacketsSent)
		}
	}
	if len(report.Results) != 6 {
		t.Errorf("%d results, want 6", len(report.Results))
	}
}

// checkResult checks what must hold however slow the machine is.
func checkResult(t *testing.T, r Result) {
	t.Helper()
	c := Cases()[caseIndex(r.Case)]
	fail := func(what string) {
		t.Errorf("%s, %s: %s: %+v", r.Case, r.Impl, what, r)
	}
	if r.Round != 1 || r.Seconds < 0.1 || len(r.Samples) == 0 {
		fail("round, length or samples")
	}
	if c.forward > 0 && (r.BytesReceived == 0 || r.BytesReceived != r.BytesSent) {
		fail("TCP delivers everything that was sent, in the end")
	}
	if c.kind != loadTCP && (r.PacketsSent == 0 || r.PacketsReceived == 0 || r.PacketsReceived > r.PacketsSent ||
		r.LossPercent < 0 || r.LossPercent >= 100) {
		fail("packets")
	}
	if c.kind == loadUDP && r.BytesReceived != r.PacketsReceived*uint64(c.size) {
		fail("size of UDP packets")
	}
	if c.kind == loadRTT && (r.RTTMeanS <= 0 || r.RTTP50S > r.RTTP99S || r.RTTP99S > r.RTTMaxS) {
		fail("round-trip times")
	}
	tunnel := r.Impl != ImplBare
	if tunnel != (len(r.NodeCPUSeconds) == 2) || tunnel != (len(r.PeakMiB) == 2 && r.PeakMiB[0] > 0 && r.PeakMiB[1] > 0) {
		fail("CPU time or memory of the nodes")
	}
}

func TestRunStopsWithItsContext(t *testing.T) {
	program := needProgram(t)
	ctx, cancel := context.WithCancel(context.Background())
	time.AfterFunc(200*time.Millisecond, cancel)
	_, err := Run(ctx, Config{Duration: time.Hour, Cases: []string{"tcp-4"}}, []Program{program})
	if !errors.Is(err, context.Canceled) {
		t.Errorf("ended with %v, want context.Canceled", err)
	}
	if left := nodesLeft(t); len(left) > 0 {
		t.Errorf("processes are left: %v", left)
	}
}

func TestProgramThatFails(t *testing.T) {
	needProgram(t)
	script := func(text string) Program {
		path := filepath.Join(t.TempDir(), "prog")
		if err := os.WriteFile(path, []byte("#!/bin/sh\n"+text), 0o755); err != nil {
			t.Fatal(err)
		}
		return Program{Name: "prog", Path: path}
	}
	for name, c := range map[string]struct {
		program Program
		want    string
	}{
		"ends at once": {script("echo first >&2; echo it is broken >&2; exit 3"), "node a ended (exit status 3) before its UAPI socket"},
		"says why":     {script("echo it is broken >&2; exit 3"), "it said: it is broken"},
		"dies later":   {script(`wireguard-go -f "$2" & sleep 1; kill $!; wait`), " ended (exit status"},
		"no program":   {Program{Name: "prog", Path: "/no/such"}, "no such file"},
	} {
		_, err := Run(context.Background(), Config{Duration: time.Hour, Cases: []string{"udp-100"}}, []Program{c.program})
		if err == nil || !strings.Contains(err.Error(), c.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%s: %v, want one line with %q", name, err, c.want)
		}
		if left := nodesLeft(t); len(left) > 0 {
			t.Errorf("%s: processes are left: %v", name, left)
		}
	}
}

func TestSegmentedCable(t *testing.T) {
	lab.Need(t)
	bed, err := newTestbed(TopologyDirect, true)
	if err != nil {
		t.Fatal(err)
	}
	defer bed.close()
	for _, ns := range bed.ends {
		if on, err := ns.Offload("outer0", lab.UDPSegmentation); err != nil || on {
			t.Errorf("UDP segmentation of %s: %v %v, want off", ns.Name(), on, err)
		}
	}
}

func TestParseProc(t *testing.T) {
	m, err := parseMachineTimes([]byte("cpu  100 10 200 5000 7 3 50 60 0 0\ncpu0 1 1 1 1 1 1 1 1 0 0\n"))
	if err != nil || m.busy != 3.63 || m.stolen != 0.6 {
		t.Errorf("machine %+v, %v; want 100+10+200+3+50 ticks", m, err)
	}
	cpu, err := parseCPU([]byte("12 (a) b (c) S 1 1 1 0 -1 4194560 1 2 3 4 250 50 7 8 20 0 9"))
	if err != nil || cpu != 3 {
		t.Errorf("process %v, %v; want 3 s", cpu, err)
	}
	peak, err := parsePeak([]byte("Name:\tx\nVmPeak:\t9 kB\nVmHWM:\t    2048 kB\n"))
	if err != nil || peak != 2 {
		t.Errorf("peak %v, %v; want 2 MiB", peak, err)
	}
	for _, bad := range []string{"", "cpu 1 2", "cpu a b c d e f g h", "12 (x) S", "12 x", "VmHWM: kB", "VmHWM: x kB"} {
		_, err1 := parseMachineTimes([]byte(bad))
		_, err2 := parseCPU([]byte(bad))
		_, err3 := parsePeak([]byte(bad))
		if err1 == nil || err2 == nil || err3 == nil {
			t.Errorf("%q was understood", bad)
		}
	}
}

func TestParseDiag(t *testing.T) {
	reply := make([]byte, inetDiagReplySize+8+40)
	binary.BigEndian.PutUint16(reply[4:], 51820)
	at := reply[inetDiagReplySize:]
	binary.NativeEndian.PutUint16(at, 6) // an attribute before, padded to 8
	binary.NativeEndian.PutUint16(at[2:], 1)
	binary.NativeEndian.PutUint16(at[8:], 40)
	binary.NativeEndian.PutUint16(at[10:], inetDiagSKMemory)
	binary.NativeEndian.PutUint32(at[12+4*skMemoryRcvbuf:], 1000)
	binary.NativeEndian.PutUint32(at[12+4*skMemorySndbuf:], 2000)
	if r, s := parseDiag(reply, 51820); r != 1000 || s != 2000 {
		t.Errorf("buffers %d and %d", r, s)
	}
	if r, s := parseDiag(reply, 1); r != 0 || s != 0 {
		t.Errorf("another port: %d and %d", r, s)
	}
	for n := range reply {
		if r, s := parseDiag(reply[:n], 51820); r != 0 || s != 0 {
			t.Errorf("cut at %d: %d and %d", n, r, s)
		}
	}
}

func TestSumCounters(t *testing.T) {
	nodes := []map[string]uint64{{"udp_send_runs": 2, "send_runs": 1, "resend_runs": 50}, {"udp_send_runs": 4}}
	if got := sumCounters(nodes, "send_runs"); got != 7 {
		t.Errorf("sum %v, want 7", got)
	}
}
