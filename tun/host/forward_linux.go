package host

import (
	"errors"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/google/nftables"
	"golang.org/x/sys/unix"
)

// tablePrefix begins the names of our tables; forwardChain is in those of gateways.
const (
	tablePrefix  = "sluice-"
	forwardChain = "forward"
	enteredChain = "entered" // these two count, see Obstacles
	leftChain    = "left"
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
	// traffic is what was counted when some was new, losing whether some of that got lost.
	traffic traffic
	losing  bool
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
		fw.notes[s.note] = value == "0" && fw.forward.wants(s.ipv6) || fw.noted(chains, s.note)
	}
	fw.bury(chains)
	if err := fw.makeTable(); err != nil {
		return err
	}
	_, err = fw.switchOn()
	return err
}

func (fw *Forwarding) makeTable() error {
	fw.traffic, fw.losing = traffic{}, false
	fw.writeTable()
	return fw.flush("make table " + fw.table.Name)
}

// SetAddresses tells what the interface's addresses are now.
func (fw *Forwarding) SetAddresses(list []netip.Prefix) error {
	if slices.Equal(list, fw.forward.Addresses) {
		return nil
	}
	fw.forward.Addresses = slices.Clone(list)
	return fw.makeTable()
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
	for _, s := range forwardingSettings {
		fw.notes[s.note] = fw.notes[s.note] || fw.noted(chains, s.note)
	}
	buried := fw.bury(chains)
	if mended = !fw.present(chains); mended || buried {
		if err := fw.makeTable(); err != nil {
			return false, err
		}
	}
	changed, err := fw.switchOn()
	return mended || changed, err
}

// forwardingSettings are the switches, and the note that one was off.
var forwardingSettings = []struct {
	path, note string
	ipv6       bool
}{
	{"ipv4/ip_forward", noteIPv4, false},
	{"ipv6/conf/all/forwarding", noteIPv6, true},
}

func (fw *Forwarding) switchOn() (changed bool, err error) {
	var advertising []string
	if fw.forward.wants(true) {
		advertising = interfaceSettings("ipv6", "accept_ra")
	}
	// A host that forwards IPv6 ignores router advertisements and forgets the default route that it learned from them, unless
	// accept_ra is 2 (net/ipv6/addrconf.c, addrconf_fixup_forwarding).
	for _, path := range advertising {
		if on, err := changeSetting(path, "1", "2"); err == nil && on {
			fw.advertised = append(fw.advertised, path)
		}
	}
	for _, s := range forwardingSettings {
		if !fw.forward.wants(s.ipv6) {
			continue
		}
		on, err := changeSetting(s.path, "0", "1")
		if err != nil && !errors.Is(err, os.ErrNotExist) && fw.forward.offers(s.ipv6) {
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
	fw.bury(chains)
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

// noted tells whether our table has the note, or one whose program was killed.
func (fw *Forwarding) noted(chains []*nftables.Chain, note string) bool {
	for _, c := range chains {
		if ours(c.Table) && c.Name == note && (fw.mine(c) || fw.dead(c)) {
			return true
		}
	}
	return false
}

// dead tells whether the chain is in the table of a gateway that was killed: its interface is gone.
func (fw *Forwarding) dead(c *nftables.Chain) bool {
	return ours(c.Table) && !fw.mine(c) && !exists(strings.TrimPrefix(c.Table.Name, tablePrefix))
}

// bury queues the deletion of the tables of gateways that were killed.
func (fw *Forwarding) bury(chains []*nftables.Chain) (found bool) {
	for _, c := range chains {
		if hooked(c, nftables.ChainHookForward) && c.Name == forwardChain && fw.dead(c) {
			fw.conn.DelTable(c.Table)
			found = true
		}
	}
	return found
}

// otherGateway is the table of another gateway of ours, nil if there is none.
func (fw *Forwarding) otherGateway(chains []*nftables.Chain) *nftables.Table {
	for _, c := range chains {
		if ours(c.Table) && !fw.mine(c) && hooked(c, nftables.ChainHookForward) && c.Name == forwardChain && !fw.dead(c) {
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
