package ice

import (
	"fmt"
	"slices"
	"strings"
	"sync"
	"unsafe"

	"golang.org/x/sys/windows"
	"golang.zx2c4.com/wireguard/windows/tunnel/winipcfg"
)

// notices is the bell of Windows: what it tells of interfaces, addresses and routes, and that the machine has woken, when all of them may be
// others and mappings of NATs are gone.
type notices struct {
	rung      chan struct{} // one slot
	closed    chan struct{}
	once      sync.Once
	callbacks []winipcfg.ChangeCallback
	wakes     uintptr // of PowerRegisterSuspendResumeNotification; 0: none
	mu        sync.Mutex
	woken     uint64 // how often; makes a waking a change although all is as before
}

func newBell() (bell, error) {
	n := &notices{rung: make(chan struct{}, 1), closed: make(chan struct{})}
	links, err := winipcfg.RegisterInterfaceChangeCallback(func(winipcfg.MibNotificationType, *winipcfg.MibIPInterfaceRow) { n.notice() })
	if err != nil {
		return nil, fmt.Errorf("ice: watch interfaces: %w", err)
	}
	n.callbacks = append(n.callbacks, links)
	addresses, err := winipcfg.RegisterUnicastAddressChangeCallback(func(winipcfg.MibNotificationType, *winipcfg.MibUnicastIPAddressRow) { n.notice() })
	if err != nil {
		n.close()
		return nil, fmt.Errorf("ice: watch addresses: %w", err)
	}
	n.callbacks = append(n.callbacks, addresses)
	routes, err := winipcfg.RegisterRouteChangeCallback(func(winipcfg.MibNotificationType, *winipcfg.MibIPforwardRow2) { n.notice() })
	if err != nil {
		n.close()
		return nil, fmt.Errorf("ice: watch routes: %w", err)
	}
	n.callbacks = append(n.callbacks, routes)
	n.watchPower()
	return n, nil
}

var (
	powrprof        = windows.NewLazySystemDLL("powrprof.dll")
	registerPower   = powrprof.NewProc("PowerRegisterSuspendResumeNotification")
	unregisterPower = powrprof.NewProc("PowerUnregisterSuspendResumeNotification")
)

// Of WinUser.h.
const (
	deviceNotifyCallback = 2  // DEVICE_NOTIFY_CALLBACK
	powerResumeAutomatic = 18 // PBT_APMRESUMEAUTOMATIC: comes at every waking
)

// powerCallback is one for the program's life; it tells those that listen.
var powerCallback = sync.OnceValue(func() uintptr {
	return windows.NewCallback(func(_ uintptr, kind uint32, _ uintptr) uintptr {
		if kind == powerResumeAutomatic {
			listeners.Range(func(key, _ any) bool {
				key.(*notices).wake()
				return true
			})
		}
		return 0
	})
})

// listeners are the notices that hear of wakings.
var listeners sync.Map

// watchPower subscribes to wakings; without them, what has changed meanwhile is told by the other notices.
func (n *notices) watchPower() {
	if registerPower.Find() != nil || unregisterPower.Find() != nil {
		return
	}
	listeners.Store(n, nil)
	parameters := struct{ callback, context uintptr }{callback: powerCallback()} // DEVICE_NOTIFY_SUBSCRIBE_PARAMETERS
	if status, _, _ := registerPower.Call(deviceNotifyCallback, uintptr(unsafe.Pointer(&parameters)), uintptr(unsafe.Pointer(&n.wakes))); status != 0 {
		n.wakes = 0
	}
}

func (n *notices) wake() {
	n.mu.Lock()
	n.woken++
	n.mu.Unlock()
	n.notice()
}

func (n *notices) notice() {
	select {
	case n.rung <- struct{}{}:
	default:
	}
}

func (n *notices) ring() bool {
	select {
	case <-n.rung:
		return true
	case <-n.closed:
		return false
	}
}

// routes lists router, interface and metric of the default routes, and counts wakings. What cannot be read is left out.
func (n *notices) routes() string {
	rows, _ := winipcfg.GetIPForwardTable2(windows.AF_UNSPEC)
	var list []string
	for i := range rows {
		if p := rows[i].DestinationPrefix.Prefix(); p.IsValid() && p.Bits() == 0 {
			list = append(list, fmt.Sprint(p, rows[i].NextHop.Addr(), rows[i].InterfaceLUID, rows[i].Metric))
		}
	}
	slices.Sort(list)
	n.mu.Lock()
	defer n.mu.Unlock()
	return fmt.Sprint(strings.Join(list, "\n"), n.woken)
}

func (n *notices) close() {
	n.once.Do(func() {
		close(n.closed)
		listeners.Delete(n)
		if n.wakes != 0 {
			_, _, _ = unregisterPower.Call(n.wakes)
		}
		for _, c := range n.callbacks {
			_ = c.Unregister() // nobody hears what would still come
		}
	})
}
