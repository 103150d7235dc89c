// Package service tells the service manager that has started this program how it is (sd_notify(3)): that it is ready, one line for
// `systemctl status`, that it still works (the watchdog of systemd.service(5)), and that it ends. Without such a manager, where
// NOTIFY_SOCKET names no socket, it does nothing.
package service

import (
	"context"
	"log/slog"
	"os"
	"strings"
	"time"

	"github.com/coreos/go-systemd/v22/daemon"
)

// State is what a program says of itself.
type State struct {
	Line  string // what it does now, or lacks
	Ready bool   // what it is there for can begin; it counts until the program's end
}

// Intervals between two questions. Where there is a watchdog they are at most a third of its time.
const (
	untilReady = 200 * time.Millisecond
	afterwards = 5 * time.Second
)

// Follow tells the manager what ask says, until ctx ends. Only while ask answers the watchdog is fed, so it must go through
// whatever the program cannot work without; its error, or that it takes longer than the watchdog, lets the manager start anew.
func Follow(ctx context.Context, log *slog.Logger, ask func(context.Context) (State, error)) {
	if os.Getenv("NOTIFY_SOCKET") == "" {
		return
	}
	watchdog, err := daemon.SdWatchdogEnabled(false)
	if err != nil {
		log.Warn("the service manager's watchdog is not fed", "error", err)
	}
	follow(ctx, watchdog, ask, func(words string) {
		if _, err := daemon.SdNotify(false, words); err != nil && ctx.Err() == nil {
			log.Debug("the service manager cannot be told", "error", err)
		}
	})
}

// follow is Follow with what tells the manager. watchdog 0: there is none.
func follow(ctx context.Context, watchdog time.Duration, ask func(context.Context) (State, error), tell func(words string)) {
	told, ready := "", false
	for {
		state, err := ask(ctx)
		if ctx.Err() != nil {
			break
		}
		var words []string
		if err == nil {
			if state.Ready && !ready {
				ready = true
				words = append(words, daemon.SdNotifyReady)
			}
			if line := strings.ReplaceAll(state.Line, "\n", "; "); line != told {
				told = line
				words = append(words, "STATUS="+line)
			}
			if watchdog > 0 {
				words = append(words, daemon.SdNotifyWatchdog)
			}
		}
		if len(words) > 0 {
			tell(strings.Join(words, "\n"))
		}
		wait := afterwards
		if !ready {
			wait = untilReady
		}
		if watchdog > 0 {
			wait = min(wait, watchdog/3)
		}
		select {
		case <-ctx.Done():
		case <-time.After(wait):
		}
	}
	tell(daemon.SdNotifyStopping + "\nSTATUS=ending")
}
