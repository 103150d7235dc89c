package node

import (
	"errors"

	"github.com/sluice-vpn/sluice/cmd/internal/environment"
)

// A Windows program goes to the background as a service, not by itself.
const canDetach = false

func detach(environment.Settings) error { return errors.ErrUnsupported }

type readiness struct{}

func openReadiness() *readiness { return nil }

func (*readiness) succeed() {}

func (*readiness) fail(error) bool { return false }
