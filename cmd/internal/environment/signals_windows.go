package environment

import (
	"os"
	"syscall"
)

// EndSignals end an interface in good order.
var EndSignals = []os.Signal{os.Interrupt, syscall.SIGTERM}

// EndSignalsOfTerminal are the same here.
func EndSignalsOfTerminal() []os.Signal { return EndSignals }

// Harden does nothing here.
func Harden() {}

// OnStatsSignal does nothing here.
func OnStatsSignal(func()) (stop func()) { return func() {} }
