package member

import (
	"context"
	"errors"

	"github.com/sluice-vpn/sluice/cmd/internal/status"
	"github.com/sluice-vpn/sluice/tun/host"
)

// Release ends that the machine fails closed: through the node that runs with the options' socket, else itself. It needs Interface, Socket,
// Table and Mark of the options, or their defaults.
func Release(ctx context.Context, o Options) error {
	o = o.withDefaults()
	err := status.NewNode(o.Socket).Release(ctx)
	if errors.Is(err, status.ErrNotRunning) {
		return host.Release(host.RoutingConfig{Interface: o.Interface, Table: o.Table, Mark: o.Mark})
	}
	return err
}
