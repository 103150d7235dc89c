package host

import (
	"cmp"
	"errors"
	"fmt"
	"io/fs"
	"net/netip"
	"slices"

	"golang.org/x/sys/windows"
	"golang.zx2c4.com/wireguard/windows/tunnel/winipcfg"
)

// wrap names the operation, and says what to do about missing rights.
func wrap(err error, format string, a ...any) error {
	if err == nil {
		return nil
	}
	operation := fmt.Sprintf(format, a...)
	if errors.Is(err, fs.ErrPermission) {
		return fmt.Errorf("host: %s: run as an administrator: %w", operation, err)
	}
	return fmt.Errorf("host: %s: %w", operation, err)
}

// tunnelMetric is of the interface, and so of its routes: smaller than what Windows gives to any by itself.
const tunnelMetric = 5

// interfaceOf finds an interface by the name that people see, its alias.
func interfaceOf(name string) (winipcfg.LUID, error) {
	rows, err := winipcfg.GetIfTable2Ex(winipcfg.MibIfEntryNormal)
	if err != nil {
		return 0, err
	}
	for i := range rows {
		if rows[i].Alias() == name {
			return rows[i].InterfaceLUID, nil
		}
	}
	return 0, fmt.Errorf("there is no interface %q: %w", name, fs.ErrNotExist)
}

// SetUp has nothing to do: a Wintun interface is up while somebody has it open.
func SetUp(string) error { return nil }

// Routing keeps an interface's addresses and routes. Its methods belong to one goroutine. Windows has one table of routes, without rules and
// marks: what is more specific leads, and the program's own datagrams are kept out of the tunnel by nothing, see RoutingConfig and [Marks].
type Routing struct {
	cfg     RoutingConfig
	changes uint64
	own     []netip.Prefix // routes that Set has made, for Close where the interface stays
}

// NewRouting begins with an interface as it is.
func NewRouting(cfg RoutingConfig) (*Routing, error) {
	if cfg.FailClosed {
		return nil, fmt.Errorf("a machine cannot be kept from leaving the tunnel on Windows yet; start without -fail-closed: %w", ErrUnsupported)
	}
	return &Routing{cfg: cfg.withDefaults()}, nil
}

// Changes counts the addresses and routes that were added or deleted. That it grows when nothing else is asked for than before means that
// somebody has interfered.
func (r *Routing) Changes() uint64 { return r.changes }

// change notes one change, if it was made. What is there already, or gone already, is as it should be.
func (r *Routing) change(err error) error {
	switch {
	case err == nil:
		r.changes++
	case errors.Is(err, windows.ERROR_OBJECT_ALREADY_EXISTS), errors.Is(err, windows.ERROR_NOT_FOUND):
		return nil
	}
	return err
}

// SetOverlay has nothing to do.
func (*Routing) SetOverlay([]netip.Prefix) {}

// SetAddresses makes these, and no others but link-local ones, the interface's addresses, and gives it its metric. IPv6 addresses are left
// out where the interface has no IPv6.
func (r *Routing) SetAddresses(want []netip.Prefix) error {
	luid, err := interfaceOf(r.cfg.Interface)
	if err != nil {
		return wrap(err, "set addresses of %q", r.cfg.Interface)
	}
	for _, family := range families {
		if e := setMetric(luid, family); e != nil && family == windows.AF_INET {
			err = errors.Join(err, e)
		}
	}
	have, e := addressesOf(luid)
	err = errors.Join(err, e)
	for _, p := range have {
		if !slices.Contains(want, p) && !p.Addr().IsLinkLocalUnicast() {
			err = errors.Join(err, r.change(luid.DeleteIPAddress(p)))
		}
	}
	for _, p := range want {
		if !slices.Contains(have, p) && (p.Addr().Is4() || HasIPv6(r.cfg.Interface)) {
			err = errors.Join(err, r.change(luid.AddIPAddress(p)))
		}
	}
	return wrap(err, "set addresses of %q", r.cfg.Interface)
}

var families = [2]winipcfg.AddressFamily{windows.AF_INET, windows.AF_INET6}

var initializeEntry = windows.NewLazySystemDLL("iphlpapi.dll").NewProc("InitializeIpInterfaceEntry")

// ipInterface is what an interface is to a family. Wine before version 9 cannot tell, and winipcfg would panic.
func ipInterface(luid winipcfg.LUID, family winipcfg.AddressFamily) (*winipcfg.MibIPInterfaceRow, error) {
	if err := initializeEntry.Find(); err != nil {
		return nil, err
	}
	return luid.IPInterface(family)
}

// setMetric has the interface's own metric count, and no duplicate address detection: nobody else is on its link.
func setMetric(luid winipcfg.LUID, family winipcfg.AddressFamily) error {
	row, err := ipInterface(luid, family)
	if err != nil {
		return err
	}
	if !row.UseAutomaticMetric && row.Metric == tunnelMetric && row.DadTransmits == 0 {
		return nil
	}
	row.UseAutomaticMetric, row.Metric, row.DadTransmits = false, tunnelMetric, 0
	row.RouterDiscoveryBehavior = winipcfg.RouterDiscoveryDisabled
	return row.Set()
}

func addressesOf(luid winipcfg.LUID) (list []netip.Prefix, err error) {
	rows, err := winipcfg.GetUnicastIPAddressTable(windows.AF_UNSPEC)
	for i := range rows {
		if rows[i].InterfaceLUID == luid {
			list = append(list, netip.PrefixFrom(rows[i].Address.Addr().WithZone("").Unmap(), int(rows[i].OnLinkPrefixLength)))
		}
	}
	return list, err
}

// Set makes these the routes through the interface: new ones are added, and those that it has made before and that are not among them are
// deleted. What can be set is set, also if there is an error. Host bits are cleared.
func (r *Routing) Set(routes []netip.Prefix) error {
	luid, err := interfaceOf(r.cfg.Interface)
	if err != nil {
		return wrap(err, "set routes of %q", r.cfg.Interface)
	}
	have, err := routesOf(luid)
	if err != nil {
		return wrap(err, "list routes")
	}
	var want []netip.Prefix
	for _, p := range routes {
		if p.IsValid() && (p.Addr().Is4() || HasIPv6(r.cfg.Interface)) {
			want = append(want, p.Masked())
		}
	}
	for _, p := range want {
		if !slices.Contains(have, p) {
			err = errors.Join(err, r.change(luid.AddRoute(p, onLink(p), 0)))
		}
	}
	for _, p := range r.own {
		if !slices.Contains(want, p) && slices.Contains(have, p) {
			err = errors.Join(err, r.change(luid.DeleteRoute(p, onLink(p))))
		}
	}
	r.own = want
	return wrap(err, "set routes of %q", r.cfg.Interface)
}

// onLink is the next hop of a route that needs none.
func onLink(p netip.Prefix) netip.Addr {
	if p.Addr().Is4() {
		return netip.IPv4Unspecified()
	}
	return netip.IPv6Unspecified()
}

// routesOf are an interface's routes without a next hop; those that Windows makes of addresses are among them.
func routesOf(luid winipcfg.LUID) (list []netip.Prefix, err error) {
	rows, err := winipcfg.GetIPForwardTable2(windows.AF_UNSPEC)
	for i := range rows {
		if rows[i].InterfaceLUID == luid && rows[i].NextHop.Addr().IsUnspecified() {
			list = append(list, rows[i].DestinationPrefix.Prefix())
		}
	}
	return list, err
}

// Unmarked is nil: there are no marks to be missed.
func (*Routing) Unmarked() error { return nil }

// FailsClosed is false.
func (*Routing) FailsClosed() bool { return false }

// Release has nothing to end.
func (*Routing) Release() error { return ErrUnsupported }

// Close deletes the routes. The interface may be gone.
func (r *Routing) Close() error {
	err := r.Set(nil)
	if errors.Is(err, fs.ErrNotExist) {
		return nil
	}
	return err
}

// HasIPv6 tells whether an interface has IPv6: it can be unbound from one, and from all.
func HasIPv6(name string) bool {
	luid, err := interfaceOf(name)
	if err != nil {
		return false
	}
	_, err = ipInterface(luid, windows.AF_INET6)
	return err == nil
}

// Networks lists the networks that the machine has an address in, but for those on one interface.
func Networks(except string) ([]Network, error) {
	names, err := interfaceNames()
	if err != nil {
		return nil, wrap(err, "list interfaces")
	}
	rows, err := winipcfg.GetUnicastIPAddressTable(windows.AF_UNSPEC)
	var all []Network
	for i := range rows {
		p := netip.PrefixFrom(rows[i].Address.Addr().WithZone("").Unmap(), int(rows[i].OnLinkPrefixLength))
		if name := names[rows[i].InterfaceLUID]; p.IsValid() && name != except && !p.Addr().IsLoopback() && !p.IsSingleIP() {
			all = append(all, Network{p.Masked(), name})
		}
	}
	slices.SortFunc(all, func(a, b Network) int {
		return cmp.Or(a.Prefix.Compare(b.Prefix), cmp.Compare(a.Interface, b.Interface))
	})
	return slices.Compact(all), wrap(err, "list addresses")
}

func interfaceNames() (map[winipcfg.LUID]string, error) {
	rows, err := winipcfg.GetIfTable2Ex(winipcfg.MibIfEntryNormal)
	names := map[winipcfg.LUID]string{}
	for i := range rows {
		names[rows[i].InterfaceLUID] = rows[i].Alias()
	}
	return names, err
}

// Routers lists those that default routes lead to, in order, each once.
func Routers() ([]netip.Addr, error) {
	rows, err := winipcfg.GetIPForwardTable2(windows.AF_UNSPEC)
	var routers []netip.Addr
	for i := range rows {
		hop := rows[i].NextHop.Addr().WithZone("").Unmap()
		if p := rows[i].DestinationPrefix.Prefix(); p.IsValid() && p.Bits() == 0 && hop.IsValid() && !hop.IsUnspecified() {
			routers = append(routers, hop)
		}
	}
	slices.SortFunc(routers, netip.Addr.Compare)
	return slices.Compact(routers), wrap(err, "list default routes")
}

// Lookup finds the route to an address: the longest prefix of the table, and of those the smallest metric together with the
// interface's. A mark means nothing here.
func Lookup(to netip.Addr, _ uint32) (Found, error) {
	rows, err := winipcfg.GetIPForwardTable2(windows.AF_UNSPEC)
	if err != nil {
		return Found{}, wrap(err, "list routes")
	}
	best, bits, metric := -1, -1, uint32(0)
	for i := range rows {
		p := rows[i].DestinationPrefix.Prefix()
		if !p.IsValid() || !p.Contains(to) {
			continue
		}
		m := rows[i].Metric
		if of, err := ipInterface(rows[i].InterfaceLUID, familyOf(to)); err == nil {
			m += of.Metric
		}
		if p.Bits() > bits || p.Bits() == bits && m < metric {
			best, bits, metric = i, p.Bits(), m
		}
	}
	if best < 0 {
		return Found{Unreachable: true}, nil
	}
	luid := rows[best].InterfaceLUID
	names, err := interfaceNames()
	f := Found{Interface: names[luid]}
	if hop := rows[best].NextHop.Addr().WithZone("").Unmap(); hop.IsValid() && !hop.IsUnspecified() {
		f.Router = hop
	}
	if of, err := ipInterface(luid, familyOf(to)); err == nil {
		f.MTU = int(of.NLMTU)
	}
	return f, wrap(err, "find the interface to %v", to)
}

func familyOf(a netip.Addr) winipcfg.AddressFamily {
	if a.Is4() {
		return windows.AF_INET
	}
	return windows.AF_INET6
}
