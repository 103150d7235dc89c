package host

import (
	"encoding/binary"
	"errors"
	"fmt"
	"slices"
	"strings"

	"github.com/google/nftables"
	mdlayher "github.com/mdlayher/netlink"
	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// This file compares a table of ours with what we wrote, whole: what somebody else has deleted or changed of it must not go unseen.

// newTables speaks to nftables. What is one step is sent as a whole: a gateway of many peers has thousands of networks.
func newTables() *nftables.Conn {
	large := func(c *mdlayher.Conn) error { return c.SetWriteBuffer(32 << 20) }
	conn, _ := nftables.New(nftables.WithSockOptions(large)) // only a lasting one can fail
	return conn
}

// ownTable is a table of ours, of family inet.
type ownTable struct {
	conn  *nftables.Conn
	table *nftables.Table
	// written is what the kernel shows of it, empty if that is not known.
	written string
}

// replace makes the table anew, in one step. fill queues what is in it. Nothing else is to be queued but what may be in the same step.
//
// The kernel shows a table in a form of its own, which differs from what it was given. So what is there right afterwards is
// remembered: if the generation of the rules says that nobody else has changed any meanwhile, or twice the same is there.
func (o *ownTable) replace(fill func() error) error {
	o.written = ""
	last := ""
	for range 3 {
		before, err := generation()
		if err != nil {
			return err
		}
		o.conn.AddTable(o.table) // so that there is one to delete
		o.conn.DelTable(o.table)
		o.conn.AddTable(o.table)
		if err := fill(); err != nil {
			o.conn = newTables() // forgets what is queued
			return err
		}
		if err := o.conn.Flush(); errors.Is(err, unix.EPERM) && o.owned() {
			return o.errTaken()
		} else if err != nil {
			return err
		}
		r := tableReader{name: o.table.Name}
		text, err := r.read()
		if err == nil && (!r.torn && r.generation == before+1 || text == last) {
			o.written = text
			break
		}
		last = text
	}
	return nil // if it is not known the table is made once more, later
}

// errTaken says what to do about a table of our name that is somebody else's.
func (o *ownTable) errTaken() error {
	return fmt.Errorf("host: the nftables table inet %s belongs to somebody else: delete it, or choose another name for the interface", o.table.Name)
}

// owned tells whether a program has the table for itself (NFT_TABLE_F_OWNER).
func (o *ownTable) owned() bool {
	r := tableReader{name: o.table.Name}
	table, err := r.ask(unix.NFT_MSG_GETTABLE, 0, r.name)
	return err == nil && len(table) == 1 && find(table[0], nftaTableOwner) != ""
}

// intact tells whether the table is as we wrote it. What is read while others change their tables may be torn, but not by chance into
// what was written.
func (o *ownTable) intact() bool {
	for range 5 {
		r := tableReader{name: o.table.Name}
		text, err := r.read()
		if err == nil && text == o.written && text != "" {
			return true
		}
		if !r.torn {
			break
		}
	}
	return false
}

// tableReader describes a table of family inet.
type tableReader struct {
	name string
	// generation of the rules at the last answer; torn: it was not the same at all, or the kernel says that rules have changed meanwhile.
	generation uint16
	asked      bool
	torn       bool
}

// attribute is one of a netlink message; children of nested ones are in its value (linux/netlink.h).
type attribute struct {
	kind  uint16
	value []byte
}

func attributes(b []byte) ([]attribute, error) {
	list, err := nl.ParseRouteAttr(b)
	all := make([]attribute, len(list))
	for i, a := range list {
		all[i] = attribute{a.Attr.Type &^ (unix.NLA_F_NESTED | unix.NLA_F_NET_BYTEORDER), a.Value}
	}
	return all, err
}

func find(list []attribute, kind uint16) string {
	for _, a := range list {
		if a.kind == kind {
			return strings.TrimRight(string(a.value), "\x00")
		}
	}
	return ""
}

// read describes the table's flags, chains with hooks and policies, rules, sets and their elements, without counters, handles, and the notes of
// this package. It is empty if there is no such table.
func (r *tableReader) read() (string, error) {
	table, err := r.ask(unix.NFT_MSG_GETTABLE, 0, r.name)
	if errors.Is(err, unix.ENOENT) {
		return "", nil
	}
	chains, err := r.dump(err, unix.NFT_MSG_GETCHAIN) // of all tables of the family
	chains = slices.DeleteFunc(chains, func(c []attribute) bool {
		return find(c, unix.NFTA_CHAIN_TABLE) != r.name || isNote(find(c, unix.NFTA_CHAIN_NAME)) || find(c, unix.NFTA_CHAIN_NAME) == noteValidMark
	})
	rules, err := r.dump(err, unix.NFT_MSG_GETRULE, r.name)
	sets, err := r.dump(err, unix.NFT_MSG_GETSET, r.name)
	var b strings.Builder
	describe(&b, "table", table, unix.NFTA_TABLE_USE, nftaTableHandle)
	describe(&b, "chain", chains, unix.NFTA_CHAIN_HANDLE, unix.NFTA_CHAIN_USE, unix.NFTA_CHAIN_COUNTERS)
	for _, rule := range rules {
		if err == nil {
			err = withoutCounters(rule)
		}
	}
	describe(&b, "rule", rules, unix.NFTA_RULE_HANDLE, unix.NFTA_RULE_POSITION)
	describe(&b, "set", sets, nftaSetHandle)
	for _, s := range sets {
		var parts [][]attribute
		parts, err = r.dump(err, unix.NFT_MSG_GETSETELEM, r.name, find(s, unix.NFTA_SET_NAME))
		for _, part := range parts {
			describe(&b, "elements", [][]attribute{part})
		}
	}
	return b.String(), err
}

// Attributes of linux/netfilter/nf_tables.h that the library does not know.
const nftaTableHandle, nftaTableOwner, nftaSetHandle = 4, 7, 16

// describe writes what objects are, but for the attributes that others change.
func describe(b *strings.Builder, what string, objects [][]attribute, without ...uint16) {
	for _, o := range objects {
		b.WriteString(what)
		for _, a := range o {
			if !slices.Contains(without, a.kind) {
				fmt.Fprintf(b, " %d:%q", a.kind, a.value)
			}
		}
		b.WriteByte('\n')
	}
}

// withoutCounters takes the values of counters out of a rule.
func withoutCounters(rule []attribute) error {
	for i, a := range rule {
		if a.kind != unix.NFTA_RULE_EXPRESSIONS {
			continue
		}
		expressions, err := attributes(a.value)
		if err != nil {
			return err
		}
		var rest []byte
		for _, e := range expressions {
			parts, err := attributes(e.value)
			if err != nil {
				return err
			}
			if name := find(parts, unix.NFTA_EXPR_NAME); name == "counter" {
				rest = append(rest, name...)
			} else {
				rest = append(rest, e.value...)
			}
		}
		rule[i].value = rest
	}
	return nil
}

// dump is ask for all objects, unless there is an error already.
func (r *tableReader) dump(before error, kind int, names ...string) ([][]attribute, error) {
	if before != nil {
		return nil, before
	}
	return r.ask(kind, unix.NLM_F_DUMP, names...)
}

// ask reads objects. names are the first attributes of the request: the table's, the set's.
func (r *tableReader) ask(kind, flags int, names ...string) (objects [][]attribute, err error) {
	request := nl.NewNetlinkRequest(unix.NFNL_SUBSYS_NFTABLES<<8|kind, flags)
	request.AddData(&nl.Nfgenmsg{NfgenFamily: unix.NFPROTO_INET})
	for i, name := range names {
		request.AddData(nl.NewRtAttr(i+1, nl.ZeroTerminated(name)))
	}
	messages, err := request.Execute(unix.NETLINK_NETFILTER, 0)
	if errors.Is(err, netlink.ErrDumpInterrupted) {
		r.torn = true
	} else if err != nil {
		return nil, err
	}
	for _, m := range messages {
		if len(m) < nl.SizeofNfgenmsg {
			return nil, errors.New("host: a short message of nftables")
		}
		of := binary.BigEndian.Uint16(m[2:]) // the generation's lower half, struct nfgenmsg of linux/netfilter/nfnetlink.h
		r.torn = r.torn || r.asked && of != r.generation
		r.asked, r.generation = true, of
		object, err := attributes(m[nl.SizeofNfgenmsg:])
		if err != nil {
			return nil, err
		}
		objects = append(objects, object)
	}
	return objects, nil
}

// generation grows by one with each change of the rules. It is the lower half of what the kernel counts.
func generation() (uint16, error) {
	var r tableReader
	_, err := r.ask(unix.NFT_MSG_GETGEN, 0)
	return r.generation, wrapNFT(err, "ask for the generation of nftables")
}
