package environment

import (
	"os"
	"syscall"
)

// EndSignals end an interface in good order.
var EndSignals = []os.Signal{os.Interrupt, syscall.SIGTERM}

// Harden does nothing here.
func Harden() {}

// OnStatsSignal does nothing here.
func OnStatsSignal(func()) (stop func()) { return func() {} }
