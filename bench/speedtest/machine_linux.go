package speedtest

import (
	"os"
	"runtime"
	"strconv"
	"strings"

	"golang.org/x/sys/unix"
)

// wantedBuffer is what the load's sockets ask for, bytes. The kernel grants root of the machine all of it, others no more than
// net.core.rmem_max and wmem_max.
const wantedBuffer = 8 << 20

// readMachine describes the machine, with sockets as they are at the endpoint. What cannot be read stays zero.
func readMachine(at endpoint) Machine {
	m := Machine{OS: runtime.GOOS, Arch: runtime.GOARCH, CPUs: runtime.NumCPU(), GoVersion: runtime.Version()}
	var uts unix.Utsname
	if unix.Uname(&uts) == nil {
		m.Kernel = unix.ByteSliceToString(uts.Release[:])
	}
	cpuinfo, _ := os.ReadFile("/proc/cpuinfo")
	m.CPU = fieldOf(string(cpuinfo), "model name")
	if strings.Contains(fieldOf(string(cpuinfo), "flags")+" ", " hypervisor ") {
		m.Host = "virtual machine"
	}
	meminfo, _ := os.ReadFile("/proc/meminfo")
	if kb, _, ok := strings.Cut(fieldOf(string(meminfo), "MemTotal"), " "); ok {
		n, _ := strconv.Atoi(kb)
		m.MemoryMiB = n / 1024
	}
	_ = at.run(func() error {
		fd, err := unix.Socket(unix.AF_INET, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			return err
		}
		defer unix.Close(fd)
		growBuffers(fd)
		m.SocketReceiveBuffer, _ = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF)
		m.SocketSendBuffer, err = unix.GetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF)
		return err
	})
	return m
}

// fieldOf finds the first line "name : value" and returns its value.
func fieldOf(text, name string) string {
	for line := range strings.Lines(text) {
		key, value, ok := strings.Cut(line, ":")
		if ok && strings.TrimSpace(key) == name {
			return strings.TrimSpace(value)
		}
	}
	return ""
}

// growBuffers asks for large socket buffers and takes what it gets.
func growBuffers(fd int) {
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUFFORCE, wantedBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_RCVBUF, wantedBuffer)
	}
	if unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUFFORCE, wantedBuffer) != nil {
		_ = unix.SetsockoptInt(fd, unix.SOL_SOCKET, unix.SO_SNDBUF, wantedBuffer)
	}
}
