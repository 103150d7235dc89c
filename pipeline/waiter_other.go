//go:build !linux

package pipeline

import (
	"errors"

	"github.com/sluice-vpn/sluice/tun"
)

// newWaiter returns the waiter that fits the edges.
func newWaiter(q tun.Queue) (waiter, error) {
	if q.FD() >= 0 {
		return nil, errors.New("pipeline: edges with descriptors need Linux")
	}
	return newChannelWaiter(q), nil
}
