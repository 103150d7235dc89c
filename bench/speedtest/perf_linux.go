package speedtest

import (
	"debug/elf"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"golang.org/x/sys/unix"
)

// perfFrequency is samples a second and CPU; a prime, so that it does not beat with timers.
const perfFrequency = 997

// checkPerf says what to do if there is no perf, or nothing that it could name functions by: go run and go test leave the
// symbol table out of what they build.
func checkPerf() error {
	if _, err := exec.LookPath("perf"); err != nil {
		return errors.New("-perf needs the perf program; install it (Debian: linux-perf, Ubuntu: linux-tools-generic, Fedora: perf)")
	}
	self, err := elf.Open("/proc/self/exe")
	if err != nil {
		return fmt.Errorf("reading our own symbols: %w", err)
	}
	defer self.Close()
	if self.Section(".symtab") == nil {
		return errors.New("-perf needs a program with symbols, and go run makes one without: go build -o sluice ./cmd/sluice, then ./sluice speedtest -perf")
	}
	return nil
}

// recording is a perf record of one process.
type recording struct {
	data, text string // files
	cmd        *exec.Cmd
	said       *tail
	ended      chan struct{} // closed when perf has ended
}

// record starts perf on a process. The files are named base.perf.data and base.perf.txt.
func record(pid int, base string) (*recording, error) {
	if err := os.MkdirAll(filepath.Dir(base), 0o755); err != nil {
		return nil, err
	}
	_ = os.Remove(base + ".perf.data") // perf would keep an older one beside it, and begun take it for its own
	r := &recording{data: base + ".perf.data", text: base + ".perf.txt", said: &tail{}, ended: make(chan struct{})}
	r.cmd = exec.Command("perf", "record", "-g", "--freq", strconv.Itoa(perfFrequency), "-o", r.data, "--pid", strconv.Itoa(pid))
	r.cmd.Stdout, r.cmd.Stderr = r.said, r.said
	r.cmd.SysProcAttr = &unix.SysProcAttr{Setpgid: true} // Ctrl-C is ours
	if err := r.cmd.Start(); err != nil {
		return nil, fmt.Errorf("perf: %w", err)
	}
	go func() { _ = r.cmd.Wait(); close(r.ended) }() // perf ends by a signal
	return r, nil
}

// perfStart is how long perf may take to begin.
const perfStart = 10 * time.Second

// begun waits until perf records, which on a busy machine may be after all is over. It writes the file's header just before.
func (r *recording) begun() {
	for late := time.Now().Add(perfStart); time.Now().Before(late); {
		if st, err := os.Stat(r.data); err == nil && st.Size() > 0 {
			return
		}
		select {
		case <-r.ended: // finish says why
			return
		case <-time.After(5 * time.Millisecond):
		}
	}
}

// finish ends the recording and writes the text for the Firefox Profiler.
func (r *recording) finish() error {
	_ = r.cmd.Process.Signal(unix.SIGINT)
	late := time.AfterFunc(30*time.Second, func() { _ = r.cmd.Process.Kill() })
	<-r.ended
	late.Stop()
	if st, err := os.Stat(r.data); err != nil || st.Size() == 0 {
		return fmt.Errorf("perf recorded nothing: %s; without root, allow it: sudo sysctl -w kernel.perf_event_paranoid=1", r.said.lastLine())
	}
	out, err := os.Create(r.text)
	if err != nil {
		return err
	}
	defer out.Close()
	said := &tail{}
	script := exec.Command("perf", "script", "-F", "+pid", "-i", r.data) // the importer sorts threads by process
	script.Stdout, script.Stderr = out, said
	if err := script.Run(); err != nil {
		return fmt.Errorf("perf script: %w: %s", err, said.lastLine())
	}
	return out.Close()
}

// abandon ends a recording whose result nobody wants.
func (r *recording) abandon() {
	_ = r.cmd.Process.Kill()
	<-r.ended
}
