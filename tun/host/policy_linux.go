package host

import (
	"cmp"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"

	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// Priorities of the policy rules, see RoutingConfig.
const (
	singlePriority   = rulePriority
	networksPriority = rulePriority + 1
	restPriority     = rulePriority + 2
	failPriority     = rulePriority + 3
)

// syncRules makes the rules what the table needs, whoever has put routes into it.
func (r *Routing) syncRules() error {
	r.failing = r.cfg.FailClosed
	errs := r.syncFamily(netlink.FAMILY_V4)
	if _, err := os.Stat(settings + "ipv6"); err == nil {
		errs = errors.Join(errs, r.syncFamily(netlink.FAMILY_V6))
	}
	return errs
}

func (r *Routing) syncFamily(family int) error {
	routes, err := tableRoutes(family, r.cfg.Table)
	if err != nil {
		return wrap(err, "list routes of table %d", r.cfg.Table)
	}
	have, err := policyRules(family)
	if err != nil {
		return wrap(err, "list rules")
	}
	if have, err = r.bury(family, have); err != nil {
		return err
	}
	if err := r.follow(have); err != nil {
		return err
	}
	want, err := r.wantedRules(family, routes, have)
	if err != nil {
		return err
	}
	for _, rule := range want {
		if !slices.Contains(have, rule) {
			err = errors.Join(err, r.changeRule(rule, AddRule))
		}
	}
	for _, rule := range have {
		if (rule.Table == r.cfg.Table || rule.Priority == networksPriority) && !slices.Contains(want, rule) {
			err = errors.Join(err, r.changeRule(rule, DeleteRule))
		}
	}
	return err
}

// bury deletes rules that killed programs have left, which lead to a table of theirs that is empty, and returns the others.
func (r *Routing) bury(family int, rules []Rule) (living []Rule, err error) {
	for _, rule := range rules {
		if rule.Invert && !rule.Unreachable && rule.Table != r.cfg.Table {
			routes, e := tableRoutes(family, rule.Table)
			if e == nil && len(routes) == 0 {
				e = DeleteRule(rule)
			}
			if err = errors.Join(err, e); e == nil && len(routes) == 0 {
				continue
			}
		}
		living = append(living, rule)
	}
	return living, err
}

// follow has the machine fail closed as long as it did before.
func (r *Routing) follow(have []Rule) error {
	for _, rule := range have {
		if rule.Priority != failPriority {
			continue
		}
		if rule.Mark != r.cfg.Mark {
			return fmt.Errorf("host: nothing leaves this machine without the mark %d since a client with -fail-closed has run:"+
				" sluice client -release ends that", rule.Mark)
		}
		r.failing = true
	}
	return nil
}

// FailsClosed tells whether the machine fails closed, because the configuration or a process before says so.
func (r *Routing) FailsClosed() bool { return r.failing }

// Release ends that the machine fails closed, whoever has begun it.
func (r *Routing) Release() error {
	r.cfg.FailClosed, r.failing = false, false
	var errs error
	for _, family := range []int{netlink.FAMILY_V4, netlink.FAMILY_V6} {
		have, err := policyRules(family)
		for _, rule := range have {
			if rule.Priority == failPriority {
				err = errors.Join(err, DeleteRule(rule))
			}
		}
		errs = errors.Join(errs, wrap(err, "let packets out past the tunnel"))
	}
	routes, err := r.routes()
	r.syncMark(r.marking(routes))
	return errors.Join(errs, err, r.syncRules())
}

// Release ends that the machine fails closed when no process has a Routing of the configuration.
func Release(cfg RoutingConfig) error { return (&Routing{cfg: cfg.withDefaults()}).Release() }

// changeRule counts rules of our table only: those for networks follow the machine's addresses.
func (r *Routing) changeRule(rule Rule, change func(Rule) error) error {
	if err := change(rule); err != nil || rule.Priority == networksPriority {
		return err
	}
	return r.change(nil)
}

// wantedRules are the rules for the routes of our table. Those for networks are everybody's who shares the priorities.
func (r *Routing) wantedRules(family int, routes []tableRoute, have []Rule) ([]Rule, error) {
	rule := Rule{IPv6: family == netlink.FAMILY_V6, Mark: r.cfg.Mark, Invert: true, Table: r.cfg.Table}
	var want []Rule
	if slices.ContainsFunc(routes, func(t tableRoute) bool { return t.prefix.IsSingleIP() }) {
		single := rule
		single.Priority, single.MinBits = singlePriority, 32
		if rule.IPv6 {
			single.MinBits = 128
		}
		want = append(want, single)
	}
	others := slices.ContainsFunc(have, func(h Rule) bool { return h.Priority == restPriority && h.Table != r.cfg.Table })
	list, err := Networks(r.cfg.Interface)
	if err != nil {
		return nil, err
	}
	for _, p := range r.kept(list, routes) {
		overlaps := func(t tableRoute) bool { return !t.prefix.IsSingleIP() && t.prefix.Overlaps(p) }
		if p.Addr().Is6() == rule.IPv6 && !isDefault(p) && (others || r.failing || slices.ContainsFunc(routes, overlaps)) {
			want = append(want, Rule{IPv6: rule.IPv6, Priority: networksPriority, To: p.Masked(), Table: unix.RT_TABLE_MAIN, MinBits: 1})
		}
	}
	if r.failing {
		want = append(want, Rule{IPv6: rule.IPv6, Priority: failPriority, Mark: r.cfg.Mark, Invert: true, Unreachable: true})
	}
	if slices.ContainsFunc(routes, func(t tableRoute) bool { return !t.prefix.IsSingleIP() }) {
		rule.Priority = restPriority
		want = append(want, rule)
	}
	return want, nil
}

// kept are the networks that main leads to: those that were asked for, and of the links' the local ones without what a route of our
// table leads to.
func (r *Routing) kept(networks []Network, routes []tableRoute) []netip.Prefix {
	kept := slices.Clone(r.cfg.Keep)
	for _, n := range networks {
		if !LocalNetwork(n.Prefix) {
			continue
		}
		parts := []netip.Prefix{n.Prefix}
		for _, t := range routes {
			if t.prefix.IsSingleIP() { // has a rule before
				continue
			}
			var rest []netip.Prefix
			for _, p := range parts {
				switch {
				case !p.Overlaps(t.prefix) || t.prefix.Bits() < n.Prefix.Bits():
					rest = append(rest, p)
				case p.Bits() < t.prefix.Bits():
					rest = append(rest, besides(p, t.prefix)...)
				}
			}
			parts = rest
		}
		kept = append(kept, parts...)
	}
	slices.SortFunc(kept, netip.Prefix.Compare) // two links may have the same
	return slices.Compact(kept)
}

// policyRules are the rules that stand at our priorities.
func policyRules(family int) ([]Rule, error) {
	list, err := retry(func() ([]netlink.Rule, error) { return netlink.RuleList(family) })
	var rules []Rule
	for i := range list {
		have := &list[i]
		if have.Priority < singlePriority || have.Priority > failPriority {
			continue
		}
		rule := Rule{
			IPv6: family == netlink.FAMILY_V6, Priority: have.Priority, Mark: have.Mark, Invert: have.Invert, Table: have.Table,
			MinBits:     have.SuppressPrefixlen + 1, // -1: there is none
			Unreachable: have.Table == unix.RT_TABLE_UNSPEC,
		}
		if have.Dst != nil {
			rule.To, _ = prefixOf(have.Dst)
		}
		rules = append(rules, rule)
	}
	return rules, err
}

// Networks lists those that the machine has an address in, but for the interface except: in order, each once.
func Networks(except string) ([]Network, error) {
	names := map[int]string{}
	links, err := retry(netlink.LinkList)
	if err != nil {
		return nil, wrap(err, "list interfaces")
	}
	for _, l := range links {
		names[l.Attrs().Index] = l.Attrs().Name
	}
	list, err := retry(func() ([]netlink.Addr, error) { return netlink.AddrList(nil, netlink.FAMILY_ALL) })
	var all []Network
	for _, a := range list {
		p, ok := prefixOf(a.IPNet)
		if a.Peer != nil {
			p, ok = prefixOf(a.Peer)
		}
		// A single address is the machine's own.
		if name := names[a.LinkIndex]; ok && name != except && !p.Addr().IsLoopback() && (a.Peer != nil || !p.IsSingleIP()) {
			all = append(all, Network{p.Masked(), name})
		}
	}
	slices.SortFunc(all, func(a, b Network) int {
		return cmp.Or(a.Prefix.Compare(b.Prefix), cmp.Compare(a.Interface, b.Interface))
	})
	return slices.Compact(all), wrap(err, "list addresses")
}
