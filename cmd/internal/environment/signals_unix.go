//go:build unix

package environment

import (
	"os"
	"os/signal"
	"slices"
	"syscall"

	"golang.org/x/sys/unix"
)

// EndSignals end an interface in good order. SIGQUIT is among them since a terminal sends it, too (Ctrl-\); who wants the stacks
// of all goroutines has SIGABRT.
var EndSignals = []os.Signal{os.Interrupt, syscall.SIGTERM, syscall.SIGQUIT}

// EndSignalsOfTerminal are those and SIGHUP, which says that the terminal has gone, unless who started us has it ignored (nohup).
// Programs for which SIGHUP means something else go on without their terminal.
func EndSignalsOfTerminal() []os.Signal {
	if signal.Ignored(syscall.SIGHUP) {
		return EndSignals
	}
	return append(slices.Clone(EndSignals), syscall.SIGHUP)
}

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
