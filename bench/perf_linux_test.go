package bench

import (
	"bytes"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-vpn/sluice/bench/speedtest"
	"github.com/sluice-vpn/sluice/tun"
)

// TestPerfRecord records a test binary and a micro-benchmark as PERF.md tells a user to, and reads perf script's text as the
// Firefox Profiler does: samples begin with a line of their own, frames are indented below it, our symbols have names.
// The work is counted, not timed: on a busy machine little of it is done in a given time.
func TestPerfRecord(t *testing.T) {
	if _, err := exec.LookPath("perf"); err != nil {
		t.Skip("there is no perf program here (Debian: linux-perf)")
	}
	binary := filepath.Join(t.TempDir(), "bench.test") // what go test itself runs has no symbols
	if out, err := exec.Command("go", "test", "-c", "-o", binary, ".").CombinedOutput(); err != nil {
		t.Fatalf("go test -c: %v: %s", err, out)
	}
	for name, args := range map[string][]string{
		"test binary":     {"-test.run", "TestSlowTest", "-test.v"},
		"micro-benchmark": {"-test.run", "^$", "-test.bench", "BenchmarkLadder/3-segment", "-test.benchtime", "5000000x"},
	} {
		data := filepath.Join(t.TempDir(), "perf.data")
		record := exec.Command("perf", append([]string{"record", "-g", "--freq", "997", "-o", data, "--", binary}, args...)...)
		record.Env = append(os.Environ(), slowTest+"=1")
		if out, err := record.CombinedOutput(); err != nil {
			if strings.Contains(string(out), "perf_event_paranoid") {
				t.Skipf("perf may not record here: %s", out)
			}
			t.Fatalf("%s: %v: %s", name, err, out)
		}
		text, err := exec.Command("perf", "script", "-F", "+pid", "-i", data).Output()
		if err != nil {
			t.Fatalf("%s: perf script: %v", name, err)
		}
		p, err := speedtest.ReadPerfScript(bytes.NewReader(text))
		if err != nil {
			t.Fatal(err)
		}
		if p.Samples < 50 || len(p.Strange) > 0 || p.Named < p.Frames*4/5 {
			t.Errorf("%s: %v, strange lines %q", name, p, p.Strange)
		}
		if cut := p.Functions["github.com/sluice-vpn/sluice/tun.(*Segmenter).Cut"]; cut < p.Samples/2 {
			t.Errorf("%s: Segmenter.Cut is in %d of %d samples", name, cut, p.Samples)
		}
	}
}

// slowTest makes TestSlowTest take its time, to be recorded.
const slowTest = "SLUICE_TEST_SLOW"

// TestSlowTest cuts superpackets; recorded by TestPerfRecord it does so often enough to be seen.
func TestSlowTest(t *testing.T) {
	rounds := 1
	if os.Getenv(slowTest) != "" {
		rounds = 100000
	}
	var s tun.Segmenter
	p := superpacket()
	dst := make([]byte, mtu)
	for range rounds {
		if err := s.Init(&p); err != nil || s.Count() != segments {
			t.Fatal(err, s.Count())
		}
		for k := range segments {
			if n := s.Cut(k, dst); n != mtu {
				t.Fatalf("segment %d has %d bytes", k, n)
			}
		}
	}
}
