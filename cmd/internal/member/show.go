package member

import (
	"errors"

	"github.com/sluice-vpn/sluice/pipeline/uapi"
)

// show lets `wg` look at the interface, where its socket can be made, until the returned function is called. What cannot be is no
// reason to do without a tunnel; nor is the removal of the socket the wish that the node ends, as it is elsewhere.
func (n *node) show() (stop func()) {
	listener, err := uapi.Listen(n.options.Interface)
	if err != nil {
		n.logger.Info("wg cannot show this interface", "error", err)
		return func() {}
	}
	served := make(chan struct{})
	go func() {
		defer close(served)
		err := uapi.Show(n.pipeline, listener, n.logger, "the portal decides what this interface has; use sluice portal node, or the flags of sluice "+string(n.options.Role))
		if errors.Is(err, uapi.ErrGone) {
			err = errors.New("its socket was removed; it is made again at the next start")
		}
		if err != nil {
			n.logger.Info("wg cannot show this interface", "error", err)
		}
	}()
	return func() { listener.Close(); <-served }
}
