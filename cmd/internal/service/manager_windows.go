package service

import (
	"context"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"time"

	"golang.org/x/sys/windows"
	"golang.org/x/sys/windows/svc"
	"golang.org/x/sys/windows/svc/mgr"

	"github.com/sluice-vpn/sluice/ice/secretfile"
)

// Name is the client's in the service manager.
const Name = "SluiceClient"

// Folder has what the service keeps, in State and Logs; none but the system and the administrators may look.
func Folder(getenv func(string) string) string { return filepath.Join(getenv("ProgramData"), "sluice") }

// stopLimit is how long an end in order may take.
const stopLimit = 30 * time.Second

// Run runs a program under the service manager, which is told that it runs at once: what it needs of the network it waits for by itself. Its
// error is one that the manager's recovery mends by another start.
func Run(ctx context.Context, program func(context.Context) error) error {
	s := &running{ctx: ctx, program: program}
	if err := svc.Run(Name, s); err != nil {
		return fmt.Errorf("service: %w", err)
	}
	return s.err
}

// running is a program with its manager.
type running struct {
	ctx     context.Context
	program func(context.Context) error
	err     error
}

// Execute obeys svc.Handler.
func (s *running) Execute(_ []string, requests <-chan svc.ChangeRequest, states chan<- svc.Status) (specific bool, code uint32) {
	ctx, end := context.WithCancel(s.ctx)
	defer end()
	ended := make(chan error, 1)
	go func() { ended <- s.program(ctx) }()
	now := svc.Status{State: svc.Running, Accepts: svc.AcceptStop | svc.AcceptShutdown}
	states <- now
	for {
		select {
		case s.err = <-ended:
			states <- svc.Status{State: svc.StopPending}
			if s.err != nil {
				return true, 1
			}
			return false, 0
		case r := <-requests:
			switch r.Cmd {
			case svc.Stop, svc.Shutdown:
				now = svc.Status{State: svc.StopPending, WaitHint: uint32(stopLimit.Milliseconds())}
				end()
			}
			states <- now
		}
	}
}

// Install has the client run as a service from every start of the machine on, with what more it is given, as the system's account. It is
// started anew when it fails: after 1 s, 5 s and then each minute.
func Install(getenv func(string) string, more []string) (err error) {
	program, err := os.Executable()
	if err != nil {
		return fmt.Errorf("service: %w", err)
	}
	if err := private(program); err != nil {
		return err
	}
	folder := Folder(getenv)
	state, logs := filepath.Join(folder, "state"), filepath.Join(folder, "data", "logs")
	for _, f := range []string{folder, state} {
		if err := secretfile.MakeFolder(f); err != nil {
			return advised(err)
		}
	}
	m, err := mgr.Connect()
	if err != nil {
		return advised(err)
	}
	defer m.Disconnect()
	s, err := m.CreateService(Name, program, mgr.Config{
		StartType: mgr.StartAutomatic, DisplayName: "Sluice client", Dependencies: []string{"Nsi", "Tcpip"},
		Description: "Reaches networks behind gateways by WireGuard tunnels (sluice client).",
	}, slices.Concat([]string{"service", "run", "-state", state, "-log-dir", logs}, more)...)
	if errors.Is(err, windows.ERROR_SERVICE_EXISTS) {
		return errors.New("the service is installed already; sluice service remove takes it away")
	}
	if err != nil {
		return advised(err)
	}
	defer s.Close()
	again := func(after time.Duration) mgr.RecoveryAction {
		return mgr.RecoveryAction{Type: mgr.ServiceRestart, Delay: after}
	}
	err = s.SetRecoveryActions([]mgr.RecoveryAction{again(time.Second), again(5 * time.Second), again(time.Minute)}, 600)
	if err == nil {
		err = s.SetRecoveryActionsOnNonCrashFailures(true)
	}
	if err != nil && !errors.Is(err, windows.ERROR_INVALID_LEVEL) { // which wine says
		return fmt.Errorf("the service is installed, but is not started anew when it fails: %w", err)
	}
	return nil
}

// private tells of a program that others may change: the service would run with all rights what they put there.
func private(program string) error {
	f, err := os.Open(program)
	if err != nil {
		return fmt.Errorf("service: %w", err)
	}
	defer f.Close()
	others, _, err := secretfile.OthersWrite(f)
	if err == nil && others {
		return fmt.Errorf("others may change %s, which the service would run with all rights; put it where only administrators write,"+
			` such as %%ProgramFiles%%\sluice, and install it from there`, program)
	}
	return err
}

// Remove stops the service and takes it away; what it has kept stays.
func Remove() error {
	return on(func(s *mgr.Service) error {
		if err := stop(s); err != nil {
			return err
		}
		return s.Delete()
	})
}

// Start starts the service.
func Start() error {
	return on(func(s *mgr.Service) error {
		err := s.Start()
		if errors.Is(err, windows.ERROR_SERVICE_ALREADY_RUNNING) {
			return nil
		}
		return err
	})
}

// Stop stops the service, and waits until it has ended in order.
func Stop() error { return on(stop) }

func stop(s *mgr.Service) error {
	state, err := s.Control(svc.Stop)
	if errors.Is(err, windows.ERROR_SERVICE_NOT_ACTIVE) {
		return nil
	}
	for end := time.Now().Add(stopLimit); err == nil && state.State != svc.Stopped; state, err = s.Query() {
		if time.Now().After(end) {
			return fmt.Errorf("the service has not ended within %v; its log says what it waits for: sluice logs", stopLimit)
		}
		time.Sleep(100 * time.Millisecond) // the manager tells nobody
	}
	return err
}

// on finds the service.
func on(what func(*mgr.Service) error) error {
	m, err := mgr.Connect()
	if err != nil {
		return advised(err)
	}
	defer m.Disconnect()
	s, err := m.OpenService(Name)
	if errors.Is(err, windows.ERROR_SERVICE_DOES_NOT_EXIST) {
		return errors.New("the service is not installed; sluice service install does that")
	}
	if err != nil {
		return advised(err)
	}
	defer s.Close()
	return advised(what(s))
}

// advised says what to do about missing rights.
func advised(err error) error {
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("service: not permitted; run this as an administrator: %w", err)
	}
	if err != nil {
		return fmt.Errorf("service: %w", err)
	}
	return nil
}
