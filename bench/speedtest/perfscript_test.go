package speedtest

import (
	"strings"
	"testing"
)

// The lines are as perf 6.1 prints them, with and without -F +pid.
func TestReadPerfScript(t *testing.T) {
	text := `# captured on    : Sun Nov 22 11:00:00 2026
sluice  4711/4713   100.000100:    1003009 cpu-clock:pppH: 
	          4be064 github.com/sluice-vpn/sluice/pipeline.(*outbound).run+0x44 (/usr/bin/sluice)
	          47a3c1 runtime.goexit.abi0+0x1 (/usr/bin/sluice)

a name with 3 words 4714 [001] 100.000200:    1003009 cpu-clock:pppH: 
	ffffffff81a00000 entry_SYSCALL_64_after_hwframe+0x72 ([kernel.kallsyms])
	          4be064 github.com/sluice-vpn/sluice/pipeline.(*outbound).run+0x50 (/usr/bin/sluice)
	          000001 [unknown] ([unknown])

no sample at all
sluice 4711/4713 [000] 100.000300: 1 cycles:

`
	p, err := ReadPerfScript(strings.NewReader(text))
	if err != nil {
		t.Fatal(err)
	}
	if p.Samples != 2 || p.Frames != 5 || p.Named != 4 || len(p.Strange) != 1 {
		t.Errorf("%v, strange %q", p, p.Strange)
	}
	if p.Threads["sluice 4711/4713"] != 1 || p.Threads["a name with 3 words 4714"] != 1 {
		t.Errorf("threads %v", p.Threads)
	}
	if n := p.Functions["github.com/sluice-vpn/sluice/pipeline.(*outbound).run"]; n != 2 {
		t.Errorf("the function is in %d samples, want 2", n)
	}
}
