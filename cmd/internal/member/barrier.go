package member

import (
	"context"
	"errors"
	"log/slog"

	"github.com/sluice-vpn/sluice/pipeline"
	"github.com/sluice-vpn/sluice/tun"
)

// barrier keeps a machine that fails closed as it is to be while no node is signed in: an interface that leads nowhere, and the rules.
type barrier struct {
	dev     tun.Device
	machine *machine
	keeper  *keeper
	end     context.CancelFunc
}

func (p *presence) newBarrier() (*barrier, error) {
	o := p.options
	o.FailClosed = true
	dev, err := tun.Open(tun.Options{Name: o.Interface, MTU: o.MTU, MaxMTU: pipeline.MaxMTU, NoOffload: p.settings.NoGSO})
	if err != nil {
		return nil, err
	}
	b := &barrier{dev: dev, machine: newMachine(o, p.logger)}
	if err := b.machine.begin(); err != nil {
		return nil, errors.Join(err, dev.Close())
	}
	b.keeper = newKeeper(b.machine)
	ctx, end := context.WithCancel(context.Background())
	b.end = end
	go b.keeper.run(ctx)
	return b, nil
}

// close ends what looks after the rules, which stay.
func (b *barrier) close(logger *slog.Logger) {
	b.end()
	<-b.keeper.ended
	if err := errors.Join(b.machine.restore(), b.dev.Close()); err != nil {
		logger.Warn("signing in has left something behind", "error", oneLine(err))
	}
}
