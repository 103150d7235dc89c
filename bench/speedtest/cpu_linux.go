package speedtest

import (
	"bytes"
	"fmt"
	"os"
	"strconv"
)

// ticksPerSecond is USER_HZ, the unit of CPU times in /proc; the kernel's interface fixes it at 100.
const ticksPerSecond = 100

// machineTimes are seconds of the whole machine since boot.
type machineTimes struct {
	busy   float64 // user, nice, system, irq, softirq
	stolen float64 // by the hypervisor
}

func readMachineTimes() (machineTimes, error) {
	b, err := os.ReadFile("/proc/stat")
	if err != nil {
		return machineTimes{}, err
	}
	return parseMachineTimes(b)
}

// parseMachineTimes reads the first line of /proc/stat: cpu user nice system idle iowait irq softirq steal guest guest_nice.
// Guest time is part of user time already.
func parseMachineTimes(b []byte) (machineTimes, error) {
	line, _, _ := bytes.Cut(b, []byte("\n"))
	fields := bytes.Fields(line)
	if len(fields) < 9 || string(fields[0]) != "cpu" {
		return machineTimes{}, fmt.Errorf("/proc/stat: first line %q", line)
	}
	var v [8]float64
	for i := range v {
		n, err := strconv.ParseUint(string(fields[i+1]), 10, 64)
		if err != nil {
			return machineTimes{}, fmt.Errorf("/proc/stat: %w", err)
		}
		v[i] = float64(n) / ticksPerSecond
	}
	return machineTimes{busy: v[0] + v[1] + v[2] + v[5] + v[6], stolen: v[7]}, nil
}

// readCPU is the user and system time of a process, all its threads, seconds.
func readCPU(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/stat", pid))
	if err != nil {
		return 0, err
	}
	return parseCPU(b)
}

// parseCPU reads utime and stime, fields 14 and 15 of /proc/PID/stat. The name in field 2 may hold anything.
func parseCPU(b []byte) (float64, error) {
	end := bytes.LastIndexByte(b, ')')
	if end < 0 {
		return 0, fmt.Errorf("/proc/PID/stat: %q", b)
	}
	fields := bytes.Fields(b[end+1:])
	if len(fields) < 13 {
		return 0, fmt.Errorf("/proc/PID/stat: %q", b)
	}
	user, err := strconv.ParseUint(string(fields[11]), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("/proc/PID/stat: %w", err)
	}
	system, err := strconv.ParseUint(string(fields[12]), 10, 64)
	if err != nil {
		return 0, fmt.Errorf("/proc/PID/stat: %w", err)
	}
	return float64(user+system) / ticksPerSecond, nil
}

// readPeak is VmHWM of a process, MiB.
func readPeak(pid int) (float64, error) {
	b, err := os.ReadFile(fmt.Sprintf("/proc/%d/status", pid))
	if err != nil {
		return 0, err
	}
	return parsePeak(b)
}

// parsePeak finds the line "VmHWM: N kB" of /proc/PID/status.
func parsePeak(b []byte) (float64, error) {
	for line := range bytes.Lines(b) {
		if rest, ok := bytes.CutPrefix(line, []byte("VmHWM:")); ok {
			fields := bytes.Fields(rest)
			if len(fields) == 2 && string(fields[1]) == "kB" {
				n, err := strconv.ParseUint(string(fields[0]), 10, 64)
				return float64(n) / 1024, err
			}
		}
	}
	return 0, fmt.Errorf("/proc/PID/status has no VmHWM")
}
