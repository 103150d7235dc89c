package host

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
	"strings"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// This file has answers find their way past the tunnel: those to our own packets, and ours to who came by another interface.

const (
	markSuffix    = "-mark"
	validMark     = "ipv4/conf/all/src_valid_mark"
	noteValidMark = "valid-mark-was-off" // a chain without a hook, as those of Forwarding
)

// Unmarked tells why answers are not marked, nil if they are or need not be.
func (r *Routing) Unmarked() error { return r.unmarked }

// marking tells whether answers to somebody else than a peer could find the routes into the tunnel. Where they could not, the table would
// only cost: it is asked about each packet of the machine, and has each connection tracked.
func (r *Routing) marking(routes []netip.Prefix) bool {
	return r.failing || slices.ContainsFunc(routes, func(p netip.Prefix) bool {
		return !p.IsSingleIP() || !containsAddr(r.overlay, p.Addr())
	})
}

// syncMark makes the table and the setting what is needed, and takes those of killed programs away. Where it cannot, most
// things work all the same.
func (r *Routing) syncMark(wanted bool) {
	r.marks.conn = newTables()
	r.marks.table = &nftables.Table{Name: tablePrefix + r.cfg.Interface + markSuffix, Family: nftables.TableFamilyINet}
	err := r.syncMarkTable(r.marks.conn, wanted)
	r.unmarked = nil
	if wanted {
		r.unmarked = err
	}
}

func (r *Routing) syncMarkTable(conn *nftables.Conn, wanted bool) error {
	chains, err := conn.ListChains()
	if err != nil {
		return wrapNFT(err, "list nftables")
	}
	table := r.marks.table
	present, noted, inherited, heir := false, false, false, (*nftables.Table)(nil)
	for _, c := range chains {
		name, ok := marked(c.Table)
		switch {
		case !ok:
		case c.Table.Name == table.Name:
			present, noted = true, noted || c.Name == noteValidMark
		case !exists(name):
			inherited = inherited || c.Name == noteValidMark
			if hooked(c, nftables.ChainHookPrerouting) { // each table has one
				conn.DelTable(c.Table)
			}
		default:
			heir = c.Table
		}
	}
	if !wanted {
		return r.unmark(conn, table, present, noted || inherited, heir)
	}
	value, readErr := readSetting(validMark)
	off := inherited || readErr == nil && value == "0"
	link, err := netlink.LinkByName(r.cfg.Interface)
	if err != nil {
		return wrap(err, "mark answers")
	}
	m := markTable{conn: conn, table: table, mark: r.cfg.Mark, tunnel: link.Attrs(), addresses: r.addresses}
	if off && !noted || !slices.Equal(r.markedFor, r.addresses) || !r.marks.intact() {
		err = r.marks.replace(func() error { m.write(off || noted); return nil })
	}
	if err := errors.Join(err, conn.Flush()); err != nil {
		return wrapNFT(err, "mark answers")
	}
	r.markedFor = slices.Clone(r.addresses)
	if _, err := changeSetting(validMark, "0", "1"); err != nil && strictFilter() {
		return fmt.Errorf("rp_filter is strict (1), so that the kernel may drop answers of portal, relays and peers: %w", err)
	}
	return nil
}

// unmark deletes the table, and the setting unless another program of ours needs it, which then inherits the note.
func (r *Routing) unmark(conn *nftables.Conn, table *nftables.Table, present, off bool, heir *nftables.Table) (err error) {
	switch {
	case off && heir != nil:
		conn.AddChain(&nftables.Chain{Name: noteValidMark, Table: heir})
	case off:
		_, err = changeSetting(validMark, "1", "0")
	}
	if present {
		conn.DelTable(table)
	}
	return errors.Join(err, wrapNFT(conn.Flush(), "delete table "+table.Name))
}

// marked tells which interface a table of this file is for.
func marked(t *nftables.Table) (name string, ok bool) {
	return strings.CutSuffix(strings.TrimPrefix(t.Name, tablePrefix), markSuffix)
}

// exists tells whether there is an interface of the name. When in doubt there is.
func exists(name string) bool {
	_, err := netlink.LinkByName(name)
	var missing netlink.LinkNotFoundError
	return !errors.As(err, &missing)
}

// strictFilter: the greater of an interface's rp_filter and that of all counts, 1 is strict (ip-sysctl.rst).
func strictFilter() bool {
	all, _ := readSetting("ipv4/conf/all/rp_filter")
	for _, name := range interfacesWith("ipv4", "rp_filter") {
		if value, _ := readSetting("ipv4/conf/" + name + "/rp_filter"); max(all, value) == "1" {
			return true
		}
	}
	return false
}

// markTable writes the table.
type markTable struct {
	conn      *nftables.Conn
	table     *nftables.Table
	mark      uint32
	tunnel    *netlink.LinkAttrs
	addresses []netip.Prefix
}

// write queues what is in the table:
//
//	postrouting   what leaves with our mark gives it to its connection
//	prerouting    answers get their connection's mark, also for a strict reverse path filter, which then looks in main. A
//	              connection from elsewhere whose answers would leave by another interface than it comes from is marked; so are
//	              its packets for this machine and for what lies behind another interface than the tunnel. The tunnel's own
//	              addresses are reached through the tunnel only
//	output        this machine's answers get their connection's mark, and are routed anew
func (m *markTable) write(note bool) {
	if note {
		m.conn.AddChain(&nftables.Chain{Name: noteValidMark, Table: m.table})
	}
	isMark := func(load expr.Any) []expr.Any {
		return []expr.Any{load, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: markBytes(m.mark)}}
	}
	metaIsMark := isMark(&expr.Meta{Key: expr.MetaKeyMARK, Register: 1})
	ctIsMark := isMark(&expr.Ct{Key: expr.CtKeyMARK, Register: 1})
	value := &expr.Immediate{Register: 1, Data: markBytes(m.mark)}
	setMeta := []expr.Any{value, &expr.Meta{Key: expr.MetaKeyMARK, Register: 1, SourceRegister: true}}
	setCt := []expr.Any{value, &expr.Ct{Key: expr.CtKeyMARK, Register: 1, SourceRegister: true}}

	m.rule(m.chain("postrouting", nftables.ChainTypeFilter, nftables.ChainHookPostrouting), metaIsMark, setCt)
	m.rule(m.chain("output", nftables.ChainTypeRoute, nftables.ChainHookOutput), ctIsMark, matchDirection(ctReply), setMeta)

	in := m.chain("prerouting", nftables.ChainTypeFilter, nftables.ChainHookPrerouting)
	accept := []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	m.rule(in, matchInterface(expr.MetaKeyIIFNAME, expr.CmpOpEq, m.tunnel.Name), accept)
	for _, a := range m.addresses {
		m.rule(in, matchDestination(netip.PrefixFrom(a.Addr(), a.Addr().BitLen())), accept)
	}
	m.rule(in, ctIsMark, matchDirection(ctReply), setMeta, accept)
	unmarked := []expr.Any{&expr.Ct{Key: expr.CtKeyMARK, Register: 1}, compare(expr.CmpOpEq, 0)}
	// The look-up is what the kernel's own reverse path filter does: no result if the source is not reached by this interface.
	elsewhere := []expr.Any{&expr.Fib{Register: 1, ResultOIF: true, FlagSADDR: true, FlagIIF: true}, compare(expr.CmpOpEq, 0)}
	m.rule(in, unmarked, matchDirection(ctOriginal), elsewhere, setCt)
	local := []expr.Any{&expr.Fib{Register: 1, ResultADDRTYPE: true, FlagDADDR: true}, compare(expr.CmpOpEq, unix.RTN_LOCAL)}
	m.rule(in, ctIsMark, local, setMeta, accept)
	beside := []expr.Any{
		&expr.Fib{Register: 1, ResultOIF: true, FlagDADDR: true}, compare(expr.CmpOpNeq, 0), compare(expr.CmpOpNeq, uint32(m.tunnel.Index)),
	}
	m.rule(in, ctIsMark, beside, setMeta)
}

func (m *markTable) chain(name string, kind nftables.ChainType, hook *nftables.ChainHook) *nftables.Chain {
	accept := nftables.ChainPolicyAccept
	return m.conn.AddChain(&nftables.Chain{
		Name: name, Table: m.table, Type: kind, Policy: &accept, Hooknum: hook, Priority: nftables.ChainPriorityMangle,
	})
}

func (m *markTable) rule(c *nftables.Chain, parts ...[]expr.Any) {
	m.conn.AddRule(&nftables.Rule{Table: m.table, Chain: c, Exprs: slices.Concat(parts...)})
}

func compare(op expr.CmpOp, value uint32) *expr.Cmp {
	return &expr.Cmp{Op: op, Register: 1, Data: binaryutil.NativeEndian.PutUint32(value)}
}

// Directions of a connection (linux/netfilter/nf_conntrack_tuple_common.h).
const ctOriginal, ctReply = 0, 1

// matchDirection is `ct direction`.
func matchDirection(direction byte) []expr.Any {
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeyDIRECTION, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{direction}},
	}
}
