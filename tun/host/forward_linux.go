package host

import (
	"bytes"
	"errors"
	"fmt"
	"os"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// tablePrefix begins the names of our tables; forwardChain is in those of gateways.
const (
	tablePrefix  = "sluice-"
	forwardChain = "forward"
)

// Chains without a hook, which say in a gateway's table that a setting was off before. The note outlives a killed process.
const (
	noteIPv4 = "ipv4-was-off"
	noteIPv6 = "ipv6-was-off"
)

// Forwarding is what StartForwarding set up. Its methods act in the namespace of the calling thread: the one where it was
// started. They belong to one goroutine.
type Forwarding struct {
	forward Forward
	table   *nftables.Table
	conn    *nftables.Conn
	// notes are those of the settings that were off before.
	notes map[string]bool
	// before are the tables that filtered or translated forwarded packets already when we began.
	before map[string]bool
	// advertised are the interfaces whose accept_ra was changed.
	advertised []string
}

// StartForwarding obeys f. On an error nothing has changed.
func StartForwarding(f Forward) (*Forwarding, error) {
	conn, err := nftables.New()
	if err != nil {
		return nil, wrap(err, "forward")
	}
	fw := &Forwarding{
		forward: f, conn: conn, notes: map[string]bool{},
		table: &nftables.Table{Name: tablePrefix + f.Interface, Family: nftables.TableFamilyINet},
	}
	if err := fw.start(); err != nil {
		return nil, errors.Join(err, fw.Close())
	}
	return fw, nil
}

func (fw *Forwarding) start() error {
	chains, err := fw.chains()
	if err != nil {
		return err
	}
	fw.before = fw.forwarders(chains)
	for _, s := range forwardingSettings {
		value, err := readSetting(s.path)
		if err != nil {
			continue // the family is switched off
		}
		fw.notes[s.note] = value == "0" || fw.noted(chains, s.note)
	}
	if err := fw.makeTable(); err != nil {
		return err
	}
	_, err = fw.switchOn()
	return err
}

func (fw *Forwarding) makeTable() error {
	fw.writeTable()
	return fw.flush("make table " + fw.table.Name)
}

// SwitchedOn lists the settings that were off before, as sysctl names them.
func (fw *Forwarding) SwitchedOn() []string {
	var list []string
	for _, s := range forwardingSettings {
		if fw.notes[s.note] {
			list = append(list, "net."+strings.ReplaceAll(s.path, "/", "."))
		}
	}
	return list
}

// Mend sets up again what others have taken away: who loads a firewall anew deletes all tables first, and who applies
// sysctl.d may switch forwarding off. It tells whether there was something to do.
func (fw *Forwarding) Mend() (mended bool, err error) {
	chains, err := fw.chains()
	if err != nil {
		return false, err
	}
	if !fw.present(chains) {
		if err := fw.makeTable(); err != nil {
			return false, err
		}
		mended = true
	}
	changed, err := fw.switchOn()
	return mended || changed, err
}

// forwardingSettings are the switches, and the note that one was off.
var forwardingSettings = []struct{ path, note string }{
	{"ipv4/ip_forward", noteIPv4},
	{"ipv6/conf/all/forwarding", noteIPv6},
}

func (fw *Forwarding) switchOn() (changed bool, err error) {
	// A host that forwards IPv6 ignores router advertisements and forgets the default route that it learned from them, unless
	// accept_ra is 2 (net/ipv6/addrconf.c, addrconf_fixup_forwarding).
	for _, path := range interfaceSettings("ipv6", "accept_ra") {
		if on, err := changeSetting(path, "1", "2"); err == nil && on {
			fw.advertised = append(fw.advertised, path)
		}
	}
	for _, s := range forwardingSettings {
		on, err := changeSetting(s.path, "0", "1")
		if err != nil && !errors.Is(err, os.ErrNotExist) {
			return changed, err
		}
		changed = changed || on
	}
	return changed, nil
}

// Close takes back what was set up. Forwarding is switched off only if it was off before, is on still, and nobody else seems
// to forward: another gateway of ours inherits the duty, and a new table of somebody else's on the forward hook (a
// container runtime's) leaves it on. The safe mistake is to leave it on.
func (fw *Forwarding) Close() error {
	chains, err := fw.chains()
	if err != nil {
		return err
	}
	var off []string
	for _, s := range forwardingSettings {
		if !fw.noted(chains, s.note) {
			continue
		}
		if heir := fw.otherGateway(chains); heir != nil {
			fw.conn.AddChain(&nftables.Chain{Name: s.note, Table: heir})
			continue
		}
		if fw.onlyOld(chains) {
			off = append(off, s.path)
		}
	}
	for _, path := range off { // first, so that nothing leaves with the tunnel's addresses
		if _, e := changeSetting(path, "1", "0"); e != nil && !errors.Is(e, os.ErrNotExist) {
			err = errors.Join(err, e)
		}
	}
	if fw.present(chains) {
		fw.conn.DelTable(fw.table)
	}
	err = errors.Join(err, fw.flush("delete table "+fw.table.Name))
	if len(off) > 0 || len(fw.advertised) > 0 && !fw.stillForwards6() {
		for _, path := range fw.advertised {
			changeSetting(path, "2", "1") // the interface may be gone
		}
		fw.advertised = nil
	}
	return err
}

func (fw *Forwarding) stillForwards6() bool {
	value, err := readSetting("ipv6/conf/all/forwarding")
	return err == nil && value != "0"
}

// Obstacles lists the chains of others that drop forwarded packets by default, as a container runtime's and some firewalls'
// do, unless a rule of theirs names our interface. They must be told to accept what comes and goes by it. Those of the legacy
// iptables are not seen.
func (fw *Forwarding) Obstacles() ([]Obstacle, error) {
	chains, err := fw.chains()
	if err != nil {
		return nil, err
	}
	var list []Obstacle
	for _, c := range chains {
		drops := c.Policy != nil && *c.Policy == nftables.ChainPolicyDrop
		if hooked(c, nftables.ChainHookForward) && drops && !ours(c.Table) && !fw.named(chains, c.Table) {
			list = append(list, Obstacle{Family: familyName(c.Table.Family), Table: c.Table.Name, Chain: c.Name})
		}
	}
	return list, nil
}

// maxSearched is in how many chains of a table our interface's name is searched for: each costs a question to the kernel, and
// those that orchestrate containers make thousands.
const maxSearched = 100

// named tells whether a rule of the table compares something with our interface's name.
func (fw *Forwarding) named(chains []*nftables.Chain, table *nftables.Table) bool {
	searched := 0
	for _, c := range chains {
		if c.Table.Name != table.Name || c.Table.Family != table.Family {
			continue
		}
		if searched++; searched > maxSearched {
			return false
		}
		rules, err := fw.conn.GetRules(c.Table, c)
		if err != nil {
			continue // it is said once more than needed
		}
		for _, r := range rules {
			for _, e := range r.Exprs {
				cmp, ok := e.(*expr.Cmp)
				if ok && cmp.Op == expr.CmpOpEq && string(bytes.TrimRight(cmp.Data, "\x00")) == fw.forward.Interface {
					return true
				}
			}
		}
	}
	return false
}

func familyName(f nftables.TableFamily) string {
	switch f {
	case nftables.TableFamilyIPv4:
		return "ip"
	case nftables.TableFamilyIPv6:
		return "ip6"
	case nftables.TableFamilyINet:
		return "inet"
	}
	return fmt.Sprint("family ", f)
}

func (fw *Forwarding) chains() ([]*nftables.Chain, error) {
	chains, err := fw.conn.ListChains()
	return chains, wrapNFT(err, "list nftables")
}

func (fw *Forwarding) flush(operation string) error { return wrapNFT(fw.conn.Flush(), operation) }

// wrapNFT is wrap, and says what to do where the kernel has no nftables.
func wrapNFT(err error, operation string) error {
	for _, missing := range []error{unix.EOPNOTSUPP, unix.EPROTONOSUPPORT, unix.ENOENT} {
		if errors.Is(err, missing) {
			return fmt.Errorf("host: %s: the kernel lacks a part of nftables; load nf_tables and nft_masq (modprobe): %w", operation, err)
		}
	}
	return wrap(err, "%s", operation)
}

func hooked(c *nftables.Chain, hook *nftables.ChainHook) bool {
	return c.Hooknum != nil && *c.Hooknum == *hook
}

func ours(t *nftables.Table) bool {
	return t.Family == nftables.TableFamilyINet && strings.HasPrefix(t.Name, tablePrefix)
}

func (fw *Forwarding) mine(c *nftables.Chain) bool {
	return ours(c.Table) && c.Table.Name == fw.table.Name
}

func (fw *Forwarding) present(chains []*nftables.Chain) bool {
	for _, c := range chains {
		if fw.mine(c) {
			return true
		}
	}
	return false
}

func (fw *Forwarding) noted(chains []*nftables.Chain, note string) bool {
	for _, c := range chains {
		if fw.mine(c) && c.Name == note {
			return true
		}
	}
	return false
}

// otherGateway is the table of another gateway of ours, nil if there is none.
func (fw *Forwarding) otherGateway(chains []*nftables.Chain) *nftables.Table {
	for _, c := range chains {
		if ours(c.Table) && !fw.mine(c) && hooked(c, nftables.ChainHookForward) && c.Name == forwardChain {
			return c.Table
		}
	}
	return nil
}

// forwarders are the tables of others that have a say in what is forwarded.
func (fw *Forwarding) forwarders(chains []*nftables.Chain) map[string]bool {
	tables := map[string]bool{}
	for _, c := range chains {
		if hooked(c, nftables.ChainHookForward) && !ours(c.Table) {
			tables[familyName(c.Table.Family)+" "+c.Table.Name] = true
		}
	}
	return tables
}

func (fw *Forwarding) onlyOld(chains []*nftables.Chain) bool {
	for table := range fw.forwarders(chains) {
		if !fw.before[table] {
			return false
		}
	}
	return true
}
