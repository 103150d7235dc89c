package status

import (
	"errors"
	"net"
)

var errRefused = errors.New("refused")

// Listen is not there yet.
func Listen(string) (net.Listener, error) { return nil, errors.ErrUnsupported }
