package host

import (
	"errors"
	"slices"

	"github.com/google/nftables"
	"github.com/google/nftables/expr"
)

// This file keeps what nobody on this machine has asked for from coming in by the tunnel.

const incomingSuffix = "-in"

// Incoming is an interface's nftables table, `inet sluice-INTERFACE-in`: what comes by the interface passes if it answers, or is an ICMP
// error about what went out (conntrack's related), whether it is for this machine or would be forwarded. All else is dropped, echo requests
// and the begin of connections among them. Its methods belong to one goroutine, and act in the namespace of the calling thread.
type Incoming struct {
	name string // of the interface
	own  ownTable
}

// NewIncoming returns the Incoming of the interface with that name. It makes no table yet.
func NewIncoming(name string) *Incoming {
	return &Incoming{name, ownTable{conn: newTables(), table: &nftables.Table{Name: tablePrefix + name + incomingSuffix, Family: nftables.TableFamilyINet}}}
}

// Refuse makes the table, unless it is there as it was written.
func (in *Incoming) Refuse() error {
	if in.own.intact() {
		return nil
	}
	return wrapNFT(in.own.replace(func() error { in.write(); return nil }), "refuse what comes by "+in.name)
}

func (in *Incoming) write() {
	accept := nftables.ChainPolicyAccept
	c := in.own.conn.AddChain(&nftables.Chain{ // behind conntrack (-200), and before the routing that tells input from forward
		Name: "prerouting", Table: in.own.table, Type: nftables.ChainTypeFilter, Policy: &accept,
		Hooknum: nftables.ChainHookPrerouting, Priority: nftables.ChainPriorityFilter,
	})
	tunnel := matchInterface(expr.MetaKeyIIFNAME, expr.CmpOpEq, in.name)
	in.own.conn.AddRule(&nftables.Rule{Table: in.own.table, Chain: c, Exprs: slices.Concat(tunnel, matchAnswers(), verdict(expr.VerdictAccept))})
	in.own.conn.AddRule(&nftables.Rule{Table: in.own.table, Chain: c, Exprs: slices.Concat(tunnel, []expr.Any{&expr.Counter{}}, verdict(expr.VerdictDrop))})
}

// Close deletes the table, a killed program's as well.
func (in *Incoming) Close() error {
	tables, err := in.own.conn.ListTablesOfFamily(nftables.TableFamilyINet)
	if err == nil && slices.ContainsFunc(tables, func(t *nftables.Table) bool { return t.Name == in.own.table.Name }) {
		in.own.conn.DelTable(in.own.table)
		err = errors.Join(err, in.own.conn.Flush())
	}
	return wrapNFT(err, "let in what comes by the tunnel")
}
