package host

import (
	"errors"

	"golang.zx2c4.com/wireguard/windows/tunnel/winipcfg"
)

// Watcher tells when something that [Routing] has set up may have been changed: interfaces, addresses and routes.
type Watcher struct {
	changes   chan struct{} // one slot
	callbacks []winipcfg.ChangeCallback
}

// NewWatcher starts to watch; there is one table.
func NewWatcher(int) (*Watcher, error) {
	w := &Watcher{changes: make(chan struct{}, 1)}
	links, err := winipcfg.RegisterInterfaceChangeCallback(func(winipcfg.MibNotificationType, *winipcfg.MibIPInterfaceRow) { w.ring() })
	if err != nil {
		return nil, wrap(err, "watch interfaces")
	}
	w.callbacks = append(w.callbacks, links)
	addresses, err := winipcfg.RegisterUnicastAddressChangeCallback(func(winipcfg.MibNotificationType, *winipcfg.MibUnicastIPAddressRow) { w.ring() })
	if err != nil {
		return nil, errors.Join(wrap(err, "watch addresses"), w.Close())
	}
	w.callbacks = append(w.callbacks, addresses)
	routes, err := winipcfg.RegisterRouteChangeCallback(func(winipcfg.MibNotificationType, *winipcfg.MibIPforwardRow2) { w.ring() })
	if err != nil {
		return nil, errors.Join(wrap(err, "watch routes"), w.Close())
	}
	w.callbacks = append(w.callbacks, routes)
	return w, nil
}

func (w *Watcher) ring() {
	select {
	case w.changes <- struct{}{}:
	default:
	}
}

// Changes delivers a value when something may have changed; changes before it was taken count as one. What this package changes itself
// counts too.
func (w *Watcher) Changes() <-chan struct{} { return w.changes }

// Close ends the Watcher, and waits until it has.
func (w *Watcher) Close() error {
	var err error
	for _, c := range w.callbacks {
		err = errors.Join(err, c.Unregister())
	}
	w.callbacks = nil
	return err
}
