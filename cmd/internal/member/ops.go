package member

import (
	"context"
	"errors"

	"github.com/sluice-vpn/sluice/cmd/internal/ops"
	"github.com/sluice-vpn/sluice/cmd/internal/version"
	"github.com/sluice-vpn/sluice/pipeline/count"
)

// opsConfig is what the program tells its operator by HTTP.
func (p *presence) opsConfig() ops.Config {
	return ops.Config{
		Role: string(p.options.Role), Version: version.Describe(), Logger: p.logger,
		Counters: func() []count.Counter {
			if n := p.node.Load(); n != nil {
				return n.Counters()
			}
			return []count.Counter{goroutines()}
		},
		Ready: func(ctx context.Context) []ops.Check {
			if n := p.node.Load(); n != nil {
				return n.ready(ctx)
			}
			return []ops.Check{{Name: "signed in", Err: errors.New("signed out: " + p.state.Load().Why)}}
		},
	}
}

// ready lists what the node needs, in the order in which it comes about. Without the portal tunnels that are up stay so, but no other
// comes about, so it is not ready either.
func (n *node) ready(ctx context.Context) []ops.Check {
	up, bound, err := n.serving(ctx)
	list := []ops.Check{{Name: "tun", Err: err}, {Name: "socket", Err: err}}
	if err == nil && !up {
		list[0].Err = errors.New("interface " + n.options.Interface + " is down")
	}
	if err == nil && !bound {
		list[1].Err = errors.New("no UDP socket is open")
	}
	portal, signedIn, err := n.edge.Portal(ctx)
	if err != nil {
		portal, signedIn = err, err
	}
	list = append(list, ops.Check{Name: "portal", Err: portal}, ops.Check{Name: "signed in", Err: signedIn})
	host := ops.Check{Name: "host"}
	if r := n.machine.remarks.Load(); r != nil && r.problem != "" {
		host.Err = errors.New(r.problem)
	}
	return append(list, host)
}

// serving asks the pipeline, which may be too busy to answer before ctx ends.
func (n *node) serving(ctx context.Context) (up, bound bool, err error) {
	done := make(chan struct{})
	go func() {
		defer close(done)
		up, bound, err = n.pipeline.Serving()
	}()
	select {
	case <-done:
		return up, bound, err
	case <-ctx.Done():
		return false, false, errors.New("the control goroutine does not answer")
	}
}
