//go:build unix

package node

import (
	"errors"
	"fmt"
	"io"
	"os"
	"os/exec"
	"strconv"
	"strings"
	"syscall"

	"golang.org/x/sys/unix"

	"github.com/sluice-vpn/sluice/cmd/internal/environment"
)

const canDetach = true

// readyVariable names the descriptor on which the second run tells the first how it went.
const readyVariable = "SLUICE_READY_FD"

// readyWord is what it writes when all is in place; anything else is the error.
const readyWord = "ready"

// detach runs this program once more, in a session of its own, and waits until it serves.
func detach(s environment.Settings) error {
	self, err := os.Executable()
	if err != nil {
		return err
	}
	report, told, err := os.Pipe()
	if err != nil {
		return err
	}
	defer report.Close()
	child := exec.Command(self, os.Args[1:]...)
	child.Args[0] = os.Args[0]
	child.SysProcAttr = &syscall.SysProcAttr{Setsid: true}
	if s.LogLevel != "" && s.LogLevel != "silent" {
		child.Stdout, child.Stderr = os.Stdout, os.Stderr
	}
	child.Env = append(os.Environ(), "WG_PROCESS_FOREGROUND=1")
	inherit := func(variable string, f *os.File) {
		child.ExtraFiles = append(child.ExtraFiles, f)
		child.Env = append(child.Env, variable+"="+strconv.Itoa(2+len(child.ExtraFiles)))
	}
	inherit(readyVariable, told)
	if s.TunFD > 0 {
		inherit("WG_TUN_FD", os.NewFile(uintptr(s.TunFD), "tun"))
	}
	if s.UAPIFD > 0 {
		inherit("WG_UAPI_FD", os.NewFile(uintptr(s.UAPIFD), "uapi"))
	}
	err = child.Start()
	told.Close()
	if err != nil {
		return fmt.Errorf("cannot go to the background: %w", err)
	}
	return awaitReadiness(report, child.Wait)
}

// awaitReadiness reads what the second run says; it says nothing if it dies.
func awaitReadiness(report io.Reader, wait func() error) error {
	word, err := io.ReadAll(io.LimitReader(report, 4096))
	switch text := strings.TrimSpace(string(word)); {
	case err != nil:
		return err
	case text == readyWord:
		return nil
	case text != "":
		return errors.New(text)
	}
	return fmt.Errorf("the background process ended before it was ready (%v): run it with -f to see why", wait())
}

// readiness is the second run's end of the pipe. The zero value, and nil, tell nobody.
type readiness struct{ f *os.File }

// openReadiness takes the descriptor out of the environment, so that no child of ours takes it for its own.
func openReadiness() *readiness {
	fd, err := strconv.ParseUint(os.Getenv(readyVariable), 10, 31)
	os.Unsetenv(readyVariable)
	if err != nil || fd < 3 {
		return nil
	}
	unix.CloseOnExec(int(fd))
	return &readiness{os.NewFile(uintptr(fd), "readiness")}
}

func (r *readiness) succeed() { r.tell(readyWord) }

// fail reports whether somebody was waiting for the error.
func (r *readiness) fail(err error) bool {
	return r.tell(strings.ReplaceAll(err.Error(), "\n", "; "))
}

// tell works once.
func (r *readiness) tell(word string) bool {
	if r == nil || r.f == nil {
		return false
	}
	_, err := io.WriteString(r.f, word+"\n")
	r.f.Close()
	r.f = nil
	return err == nil
}
