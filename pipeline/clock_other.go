//go:build !linux

package pipeline

import "time"

func systemClock() time.Duration { return monotonicClock() }
func newSystemAlarm() alarm      { return newTimerAlarm() }
