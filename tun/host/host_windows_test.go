package host

import (
	"net/netip"
	"slices"
	"testing"
)

// TestLooks: what the machine is asked about itself, without a right or an interface of ours.
func TestLooks(t *testing.T) {
	networks, err := Networks("")
	if err != nil {
		t.Fatal(err)
	}
	for _, n := range networks {
		if n.Interface == "" || !n.Prefix.IsValid() || n.Prefix != n.Prefix.Masked() {
			t.Errorf("a network %v on %q", n.Prefix, n.Interface)
		}
		if except, err := Networks(n.Interface); err != nil || slices.ContainsFunc(except, func(o Network) bool { return o.Interface == n.Interface }) {
			t.Errorf("without %s: %v, %v", n.Interface, except, err)
		}
		found, err := Lookup(n.Prefix.Addr().Next(), 0)
		if err != nil || found.Interface == "" && !found.Unreachable {
			t.Errorf("the route into %v: %+v, %v", n.Prefix, found, err)
		}
	}
	routers, err := Routers()
	if err != nil || !slices.IsSortedFunc(routers, netip.Addr.Compare) {
		t.Errorf("routers %v, %v", routers, err)
	}
	t.Logf("networks %v, routers %v", networks, routers)
	if HasIPv6("nobody") {
		t.Error("an interface that is not there has IPv6")
	}
	w, err := NewWatcher(0)
	if err != nil {
		t.Fatal(err)
	}
	if err := w.Close(); err != nil {
		t.Error(err)
	}
}

// TestNoInterface: what is set on an interface that is not there is an error, but for taking back.
func TestNoInterface(t *testing.T) {
	if _, err := NewRouting(RoutingConfig{Interface: "nobody", FailClosed: true}); err == nil {
		t.Error("the machine fails closed")
	}
	r, err := NewRouting(RoutingConfig{Interface: "nobody"})
	if err != nil {
		t.Fatal(err)
	}
	if err := r.SetAddresses([]netip.Prefix{netip.MustParsePrefix("100.64.0.2/32")}); err == nil {
		t.Error("an address was set")
	}
	if err := r.Set([]netip.Prefix{netip.MustParsePrefix("10.0.0.0/8")}); err == nil {
		t.Error("a route was set")
	}
	if err := r.Close(); err != nil || r.Changes() != 0 {
		t.Errorf("%v, %d changes", err, r.Changes())
	}
}
