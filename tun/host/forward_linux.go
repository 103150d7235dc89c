package host

import (
	"errors"
	"fmt"
	"maps"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"github.com/google/nftables"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// tablePrefix begins the names of our tables; forwardChain is in those of gateways.
const (
	tablePrefix  = "sluice-"
	forwardChain = "forward"
	enteredChain = "entered" // these two count, see Obstacles
	leftChain    = "left"
	// strangersChain drops what neither comes nor goes by a tunnel of ours, where it must.
	strangersChain = "strangers"
)

// Chains without a hook, which say in a gateway's table that a setting was off before. The note outlives a killed process.
const (
	noteIPv4 = "ipv4-was-off"
	noteIPv6 = "ipv6-was-off"
	// noteAdvertised begins the note that accept_ra was 1 of the interface with the index that follows: its name may change. There are
	// such notes only beside noteIPv6.
	noteAdvertised = "accept-ra-was-1-"
)

// Forwarding is what StartForwarding set up. Its methods act in the namespace of the calling thread: the one where it was
// started. They belong to one goroutine.
type Forwarding struct {
	forward Forward
	ownTable
	// offered and reach are sets of table.
	offered, reach []*nftables.Set
	around         surroundings // as the table was written
	// unended: connections may go on that the table would not let begin. ended is when they were looked for, which took endingTook.
	unended    bool
	ended      time.Time
	endingTook time.Duration
	// notes are those of the settings that were other before.
	notes map[string]bool
	// before are the tables that filtered or translated forwarded packets already when we began.
	before map[string]bool
	// traffic is what was counted when some was new; losing whether some of it got lost, lost when, and known whether a chain was
	// found that may be why.
	traffic       traffic
	losing, known bool
	lost          time.Time
	met           bool // see Strangers
}

// surroundings are what a table depends on besides Forward.
type surroundings struct {
	tunnels                []string // the interfaces of other gateways of ours
	bridges                []string // those between whose ports others may pass
	strangers4, strangers6 bool     // the families in which strangers are kept out
}

func (s surroundings) equal(o surroundings) bool {
	return slices.Equal(s.tunnels, o.tunnels) && slices.Equal(s.bridges, o.bridges) && s.strangers4 == o.strangers4 && s.strangers6 == o.strangers6
}

// apart tells whether the machine is no router for strangers in a family.
func (s surroundings) apart(ipv6 bool) bool { return ipv6 && s.strangers6 || !ipv6 && s.strangers4 }

// StartForwarding obeys f. On an error nothing has changed.
func StartForwarding(f Forward) (*Forwarding, error) {
	fw := newForwarding(f)
	chains, err := fw.chains()
	if err != nil {
		return nil, err
	}
	if fw.taken(chains) || fw.owned() {
		return nil, fw.errTaken()
	}
	if err := fw.start(chains); err != nil {
		return nil, errors.Join(err, fw.Close())
	}
	return fw, nil
}

// ClearForwarding takes back what gateways have set up that were killed, for a node that forwards nothing: their interface is gone,
// or it is the node's by now. Whether somebody else wants forwarding since cannot be told, so it stays on where others filter it.
func ClearForwarding(name string) error {
	return newForwarding(Forward{Interface: name}).Close()
}

func newForwarding(f Forward) *Forwarding {
	table := &nftables.Table{Name: tablePrefix + f.Interface, Family: nftables.TableFamilyINet}
	return &Forwarding{forward: f.clone(), ownTable: ownTable{conn: newTables(), table: table}, notes: map[string]bool{}}
}

func (fw *Forwarding) start(chains []*nftables.Chain) error {
	fw.before = fw.forwarders(chains)
	fw.noteSettings()
	fw.readNotes(chains)
	fw.noteAdvertising()
	fw.bury(chains)
	fw.look(chains)
	return fw.makeAll()
}

// look tells whether the surroundings are others than before.
func (fw *Forwarding) look(chains []*nftables.Chain) (changed bool) {
	now := surroundings{tunnels: fw.otherTunnels(chains), strangers4: fw.notes[noteIPv4], strangers6: fw.notes[noteIPv6]}
	if now.strangers4 || now.strangers6 {
		now.bridges = bridges()
	}
	before := fw.around
	fw.around = now
	return !before.equal(now)
}

// bridges are the machine's, in order. br_netfilter has IP's hooks asked about what they pass from port to port, which is not routed.
func bridges() (names []string) {
	links, _ := retry(netlink.LinkList)
	for _, l := range links {
		if l.Type() == "bridge" {
			names = append(names, l.Attrs().Name)
		}
	}
	slices.Sort(names)
	return names
}

// makeAll makes the table, and then forwards.
func (fw *Forwarding) makeAll() error {
	if err := fw.makeTable(); err != nil {
		return err
	}
	_, err := fw.switchOn()
	return err
}

// noteSettings notes which of the switches that are to be on are off.
func (fw *Forwarding) noteSettings() {
	for _, s := range forwardingSettings {
		if value, err := readSetting(s.path); err == nil && value == "0" && fw.forward.offers(s.ipv6) { // else the family is switched off
			fw.notes[s.note] = true
		}
	}
}

// readNotes takes over the notes of our table, and of those whose program was killed.
func (fw *Forwarding) readNotes(chains []*nftables.Chain) {
	for _, c := range chains {
		if isNote(c.Name) && (fw.mine(c) || fw.dead(c)) {
			fw.notes[c.Name] = true
		}
	}
}

func isNote(chain string) bool {
	return chain == noteIPv4 || chain == noteIPv6 || advertised(chain) != ""
}

// noteAdvertising notes the interfaces that take router advertisements, and tells whether there are new ones. A host that
// forwards IPv6 ignores advertisements, and forgets the default route that it has learned from them, unless accept_ra is 2
// (net/ipv6/addrconf.c, addrconf_fixup_forwarding); one that has forwarded before us is as its owner wants it.
func (fw *Forwarding) noteAdvertising() (found bool) {
	if !fw.notes[noteIPv6] {
		return false
	}
	maps.DeleteFunc(fw.notes, func(note string, _ bool) bool {
		return strings.HasPrefix(note, noteAdvertised) && advertised(note) == "" // the interface is gone
	})
	for _, name := range interfacesWith("ipv6", "accept_ra") {
		link, err := netlink.LinkByName(name)
		if err != nil {
			continue // it went away
		}
		note := noteAdvertised + strconv.Itoa(link.Attrs().Index)
		if value, err := readSetting(acceptRA(name)); err == nil && value == "1" {
			found = found || !fw.notes[note]
			fw.notes[note] = true
		}
	}
	return found
}

func acceptRA(name string) string { return "ipv6/conf/" + name + "/accept_ra" }

// advertised is the path of the setting that a note is about, "" if it is about another one or the interface is gone.
func advertised(note string) string {
	digits, ok := strings.CutPrefix(note, noteAdvertised)
	index, err := strconv.Atoi(digits)
	if !ok || err != nil {
		return ""
	}
	link, err := netlink.LinkByIndex(index)
	if err != nil {
		return ""
	}
	return acceptRA(link.Attrs().Name)
}

func (fw *Forwarding) makeTable() error {
	fw.traffic, fw.losing, fw.known = traffic{}, false, false
	fw.unended = true
	return wrapNFT(fw.replace(fw.writeTable), "make table "+fw.table.Name)
}

// Set obeys another Forward. The interface stays the same.
func (fw *Forwarding) Set(f Forward) error {
	if fw.forward.equal(f) {
		return nil
	}
	fw.countStrangers()
	fw.forward = f.clone()
	fw.noteSettings()
	fw.noteAdvertising()
	fw.around.strangers4, fw.around.strangers6 = fw.notes[noteIPv4], fw.notes[noteIPv6]
	return fw.makeAll()
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

// Mend sets up again what others have taken away or changed: who loads a firewall anew deletes all tables first, and who applies
// sysctl.d may switch forwarding off. It tells whether there was something to do. Connections that began meanwhile, and those
// that Set does not allow any more, are ended.
func (fw *Forwarding) Mend() (mended bool, err error) {
	chains, err := fw.chains()
	if err != nil {
		return false, err
	}
	fw.readNotes(chains)
	buried, advertising, changed := fw.bury(chains), fw.noteAdvertising(), fw.look(chains)
	mended = !fw.intact()
	switch {
	case mended || buried || changed:
		fw.countStrangers()
		err = fw.makeTable()
	case advertising || !fw.noted(chains):
		fw.writeNotes()
		err = fw.flush("note settings")
	}
	if err != nil {
		return false, err
	}
	switched, err := fw.switchOn()
	if begin := time.Now(); fw.unended && begin.Sub(fw.ended) >= endingRest*fw.endingTook {
		found, e := fw.endFlows()
		fw.unended, err = found, errors.Join(err, e) // once more if there were some
		fw.ended = time.Now()
		fw.endingTook = fw.ended.Sub(begin)
	}
	return mended || switched, err
}

// endingRest bounds the part of a processor that it takes to look through all connections again and again.
const endingRest = 9

// Unended tells whether Mend is to be called once more soon, since connections may go on that have to end.
func (fw *Forwarding) Unended() bool { return fw.unended }

// noted tells whether all notes are in the table.
func (fw *Forwarding) noted(chains []*nftables.Chain) bool {
	missing := maps.Clone(fw.notes)
	for _, c := range chains {
		if fw.mine(c) {
			delete(missing, c.Name)
		}
	}
	return len(missing) == 0
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
	for note := range fw.notes { // first, or a default route is lost
		if path := advertised(note); path != "" {
			_, _ = changeSetting(path, "1", "2") // the interface may be gone
		}
	}
	for _, s := range forwardingSettings {
		if !fw.forward.offers(s.ipv6) {
			continue
		}
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
	fw.readNotes(chains)
	if heir := fw.otherGateway(chains); heir != nil {
		for note := range fw.notes {
			fw.conn.AddChain(&nftables.Chain{Name: note, Table: heir})
		}
	} else if fw.onlyOld(chains) { // before the table goes, so that nothing leaves with the tunnel's addresses
		err = fw.switchOff()
	}
	if fw.present(chains) && !fw.taken(chains) {
		fw.conn.DelTable(fw.table)
	}
	fw.bury(chains)
	return errors.Join(err, fw.flush("delete table "+fw.table.Name))
}

// switchOff makes the settings what they were.
func (fw *Forwarding) switchOff() (err error) {
	for _, s := range forwardingSettings {
		if fw.notes[s.note] {
			if _, e := changeSetting(s.path, "1", "0"); e != nil && !errors.Is(e, os.ErrNotExist) {
				err = errors.Join(err, e)
			}
		}
	}
	for note := range fw.notes {
		if path := advertised(note); path != "" {
			_, _ = changeSetting(path, "2", "1") // the interface may be gone
		}
	}
	return err
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

// taken tells whether there is a table of our name that is not one of ours, which have a chain on the forward hook or a note.
func (fw *Forwarding) taken(chains []*nftables.Chain) bool {
	return fw.present(chains) && !slices.ContainsFunc(chains, func(c *nftables.Chain) bool {
		return fw.mine(c) && (isNote(c.Name) || c.Name == forwardChain && hooked(c, nftables.ChainHookForward))
	})
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
		if fw.others(c) {
			return c.Table
		}
	}
	return nil
}

// otherTunnels are the interfaces of other gateways of ours, in order.
func (fw *Forwarding) otherTunnels(chains []*nftables.Chain) (names []string) {
	for _, c := range chains {
		if fw.others(c) {
			names = append(names, strings.TrimPrefix(c.Table.Name, tablePrefix))
		}
	}
	slices.Sort(names)
	return names
}

// others tells whether the chain is the one that stands for another gateway of ours, which lives.
func (fw *Forwarding) others(c *nftables.Chain) bool {
	return ours(c.Table) && !fw.mine(c) && hooked(c, nftables.ChainHookForward) && c.Name == forwardChain && !fw.dead(c)
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
