package node

import (
	"errors"
	"os"
	"syscall"
)

// A Windows program goes to the background as a service, not by itself.
const canDetach = false

var endSignals = []os.Signal{os.Interrupt, syscall.SIGTERM}

func hardenProcess() {}

func onStatsSignal(func()) (stop func()) { return func() {} }

func detach(settings) error { return errors.ErrUnsupported }

type readiness struct{}

func openReadiness() *readiness { return nil }

func (*readiness) succeed() {}

func (*readiness) fail(error) bool { return false }
