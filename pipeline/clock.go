package pipeline

import "time"

// This file and clock_linux.go are the edge where time is read; everything else is given it.

func wallClock() time.Time { return time.Now() }

// alarm wakes control when a deadline falls due.
type alarm interface {
	// set arms the alarm for the given time on the pipeline's clock, whose reading is now; at 0 disarms it.
	set(now, at time.Duration)
	// due delivers a value after the time set; it may also deliver a stale one.
	due() <-chan struct{}
	stop()
}

// timerAlarm is an alarm on package time, which stands still in suspend.
type timerAlarm struct {
	timer *time.Timer
	c     chan struct{}
}

func newTimerAlarm() alarm {
	a := &timerAlarm{c: make(chan struct{}, 1)}
	a.timer = time.AfterFunc(time.Hour, func() {
		select {
		case a.c <- struct{}{}:
		default:
		}
	})
	a.timer.Stop()
	return a
}

func (a *timerAlarm) set(now, at time.Duration) {
	if at == 0 {
		a.timer.Stop()
		return
	}
	a.timer.Reset(max(0, at-now))
}

func (a *timerAlarm) due() <-chan struct{} { return a.c }
func (a *timerAlarm) stop()                { a.timer.Stop() }

// processStart is the origin of monotonicClock.
var processStart = time.Now()

// monotonicClock is the runtime's clock, for tests and for systems without a better one.
func monotonicClock() time.Duration { return time.Since(processStart) + time.Second }
