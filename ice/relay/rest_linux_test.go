package relay

import (
	"syscall"
	"testing"
	"time"
)

// cpu is the CPU time of the test binary so far.
func cpu(t testing.TB) time.Duration {
	t.Helper()
	var u syscall.Rusage
	if err := syscall.Getrusage(syscall.RUSAGE_SELF, &u); err != nil {
		t.Fatal(err)
	}
	return time.Duration(u.Utime.Nano() + u.Stime.Nano())
}

// rests waits until the program uses next to no CPU: a loop that spins would use a whole core for ever. It is CPU time that is
// looked at, which a busy machine does not stretch; how long it took is logged.
func rests(t testing.TB) {
	t.Helper()
	begin := time.Now()
	eventually(t, "the CPU to come to rest", func() bool {
		before := cpu(t)
		time.Sleep(100 * time.Millisecond)
		return cpu(t)-before < 10*time.Millisecond
	})
	t.Logf("at rest after %v", time.Since(begin))
}
