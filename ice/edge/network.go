package edge

import "net/netip"

// This file is what the edge does when the network is not what it was.

// networkChanged has every connection look for another path beside the one in use.
func (e *Edge) networkChanged(why string) {
	e.log.Info("the network has changed: looking for other paths", "why", why, "connections", len(e.attempts))
	e.prober.Reset()
	e.relays.Probe()
	for _, a := range e.attempts {
		a.handle.WantAgent()
	}
}

// relayLost is called by the relays' goroutine.
func (e *Edge) relayLost(server netip.AddrPort) {
	e.tasks.Go(func() {
		e.post(func() {
			e.log.Warn("the relay does not answer any more", "server", server)
			for _, a := range e.attempts {
				if a.path != nil && a.path.Channel != 0 && a.path.Dst == server {
					a.handle.WantAgent()
				}
			}
		})
	})
}
