//go:build unix

package environment

import (
	"os"
	"os/signal"
	"syscall"

	"golang.org/x/sys/unix"
)

// EndSignals end an interface in good order.
var EndSignals = []os.Signal{os.Interrupt, syscall.SIGTERM}

// Harden: a core dump would hold keys, and a reader of our standard error that goes away must not end us. Dumpable
// the process stays, since profilers of the same user need that.
func Harden() {
	// Lowering a limit needs no rights; where it fails all the same nothing is lost but this precaution.
	_ = unix.Setrlimit(unix.RLIMIT_CORE, &unix.Rlimit{})
	signal.Ignore(syscall.SIGPIPE)
}

// OnStatsSignal calls f for each SIGUSR1 until stop is called.
func OnStatsSignal(f func()) (stop func()) {
	signals := make(chan os.Signal, 1)
	signal.Notify(signals, syscall.SIGUSR1)
	done, ended := make(chan struct{}), make(chan struct{})
	go func() {
		defer close(ended)
		for {
			select {
			case <-done:
				return
			case <-signals:
				f()
			}
		}
	}()
	return func() {
		signal.Stop(signals)
		close(done)
		<-ended
	}
}
