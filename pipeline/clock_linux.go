package pipeline

import (
	"os"
	"time"

	"golang.org/x/sys/unix"
)

// systemClock is CLOCK_BOOTTIME, which counts suspend: a session is as old as the peer thinks it is.
func systemClock() time.Duration {
	var ts unix.Timespec
	if unix.ClockGettime(unix.CLOCK_BOOTTIME, &ts) != nil {
		return monotonicClock()
	}
	return time.Duration(ts.Nano())
}

// bootAlarm is an alarm on a timerfd of CLOCK_BOOTTIME: what fell due in suspend is due at once on waking.
type bootAlarm struct {
	file *os.File
	fd   int
	c    chan struct{}
}

// newSystemAlarm returns the alarm that goes with systemClock.
func newSystemAlarm() alarm {
	fd, err := unix.TimerfdCreate(unix.CLOCK_BOOTTIME, unix.TFD_NONBLOCK|unix.TFD_CLOEXEC)
	if err != nil {
		return newTimerAlarm()
	}
	a := &bootAlarm{file: os.NewFile(uintptr(fd), "timerfd"), fd: fd, c: make(chan struct{}, 1)}
	go a.watch()
	return a
}

func (a *bootAlarm) watch() {
	var count [8]byte
	for {
		if _, err := a.file.Read(count[:]); err != nil {
			return
		}
		select {
		case a.c <- struct{}{}:
		default:
		}
	}
}

func (a *bootAlarm) set(_, at time.Duration) {
	spec := unix.ItimerSpec{Value: unix.NsecToTimespec(int64(at))}
	_ = unix.TimerfdSettime(a.fd, unix.TFD_TIMER_ABSTIME, &spec, nil) // fails for a time before boot only
}

func (a *bootAlarm) due() <-chan struct{} { return a.c }
func (a *bootAlarm) stop()                { _ = a.file.Close() }
