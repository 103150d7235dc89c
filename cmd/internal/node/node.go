// Package node runs one WireGuard interface in userspace, as `wg` and `wg-quick` expect it of such a program
// (wireguard.com/xplatform): it makes the TUN device, the configuration socket and the pipeline between them, and lives until
// a signal, the deletion of the interface or the removal of the socket ends it.
//
// By default the program goes to the background: it starts itself once more, and the first run ends when the second says
// that everything is in place, or why it is not. So a script that goes on after status 0 finds the interface and its socket.
//
// The environment has the switches that other userspace programs have, and some of our own; see package environment.
package node

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"os"
	"os/signal"

	"github.com/sluice-vpn/sluice/cmd/internal/environment"
	"github.com/sluice-vpn/sluice/cmd/internal/version"
	"github.com/sluice-vpn/sluice/pipeline"
	"github.com/sluice-vpn/sluice/pipeline/uapi"
	"github.com/sluice-vpn/sluice/tun"
)

// defaultMTU leaves room for the outer headers on an Ethernet path: 1500 - 40 (IPv6) - 8 (UDP) - 32 (WireGuard).
const defaultMTU = 1420

// Options say what to run. Name is required.
type Options struct {
	// Name of the interface to make.
	Name string
	// Foreground: do not go to the background.
	Foreground bool
	// AllowNull lets SLUICE_NULL=1 replace the cipher by a copy, to measure what encryption costs. Nothing is secret then.
	AllowNull bool
	// Profile, if not nil, is called in the process that serves, before it starts; its result when it has ended.
	Profile func() (stop func(), err error)
}

// ErrReported: the error has been told to the waiting first run, which prints it.
var ErrReported = errors.New("node: reported to the parent")

// Run makes the interface. In the foreground it returns when the interface is gone, nil after a signal, after the deletion of
// the interface and after the removal of its socket. To go to the background it returns nil when the interface is served
// by another process. Errors are one line that says what is wrong.
func Run(o Options) error {
	s := environment.Read(os.Getenv)
	if s.Err != nil {
		return s.Err
	}
	if !o.Foreground && !s.Foreground && canDetach {
		return detach(s)
	}
	ready := openReadiness()
	err := serve(o, s, ready)
	if err != nil && ready.fail(err) {
		return ErrReported
	}
	return err
}

// serve holds the interface from its making to its end.
func serve(o Options, s environment.Settings, ready *readiness) (err error) {
	logger := s.Logger(os.Stderr)
	environment.Harden()
	if o.Profile != nil {
		stop, err := o.Profile()
		if err != nil {
			return err
		}
		defer stop()
	}
	ctx, stop := signal.NotifyContext(context.Background(), environment.EndSignalsOfTerminal()...)
	defer stop()

	dev, err := tun.Open(tun.Options{Name: o.Name, MTU: defaultMTU, MaxMTU: pipeline.MaxMTU, Queues: s.Queues, FD: s.TunFD, NoOffload: s.NoGSO})
	if err != nil {
		return err
	}
	config, err := listenUAPI(dev.Name(), s)
	if err != nil {
		return errors.Join(err, dev.Close())
	}
	cfg := s.Pipeline(dev, logger)
	if o.AllowNull && s.Null {
		logger.Warn("INSECURE: packets are neither encrypted nor authenticated (SLUICE_NULL), for measurements only")
		cfg.NewCipher = newNullCipher
	}
	p, err := pipeline.New(cfg)
	if err != nil {
		return errors.Join(err, config.Close(), dev.Close())
	}
	return live(ctx, &interfaceParts{name: dev.Name(), pipeline: p, config: config}, s, logger, ready)
}

func listenUAPI(name string, s environment.Settings) (net.Listener, error) {
	if s.UAPIFD > 0 {
		return uapi.Adopt(uintptr(s.UAPIFD))
	}
	return uapi.Listen(name)
}

// interfaceParts are owned by live, which ends them.
type interfaceParts struct {
	name     string
	pipeline *pipeline.Pipeline
	config   net.Listener
}

// live runs the parts until one of them ends or ctx does, then ends the others.
func live(ctx context.Context, parts *interfaceParts, s environment.Settings, logger *slog.Logger, ready *readiness) error {
	ctx, cancel := context.WithCancel(ctx)
	defer cancel()
	p := parts.pipeline
	ran, served := make(chan error, 1), make(chan error, 1)
	go func() { ran <- p.Run(ctx) }()
	go func() { served <- uapi.Serve(p, parts.config, logger) }()
	stopStats := environment.OnStatsSignal(func() { s.WriteStats(p, logger) })
	defer stopStats()

	if s, err := p.Status(); err == nil {
		s.Wipe() // the control goroutine answers: all is in place
		logger.Info("interface is ready", "name", parts.name, "version", version.String())
		ready.succeed()
	}
	var err error
	why := "the interface was deleted"
	select {
	case err = <-ran:
		if ctx.Err() != nil {
			why = "signal"
		}
		parts.config.Close()
		<-served
	case err = <-served:
		if errors.Is(err, uapi.ErrGone) {
			why, err = "the configuration socket was removed", nil
		}
		cancel()
		err = errors.Join(err, <-ran)
	}
	s.WriteStats(p, logger)
	if err != nil {
		logger.Error("interface failed", "name", parts.name, "error", err)
		return fmt.Errorf("%s: %w", parts.name, err)
	}
	logger.Info("interface has ended", "name", parts.name, "why", why)
	return nil
}
