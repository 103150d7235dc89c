package host

import (
	"net"
	"net/netip"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// This file is what is in a gateway's nftables table.

// writeTable queues the replacement of our table, to be made in one step.
func (fw *Forwarding) writeTable() {
	fw.conn.AddTable(fw.table) // so that there is one to delete
	fw.conn.DelTable(fw.table)
	fw.conn.AddTable(fw.table)
	for _, s := range forwardingSettings {
		if fw.notes[s.note] {
			fw.conn.AddChain(&nftables.Chain{Name: s.note, Table: fw.table})
		}
	}
	accept := nftables.ChainPolicyAccept
	forward := fw.conn.AddChain(&nftables.Chain{
		Name: forwardChain, Table: fw.table, Type: nftables.ChainTypeFilter, Policy: &accept,
		Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityFilter,
	})
	in := matchInterface(expr.MetaKeyIIFNAME, expr.CmpOpEq, fw.forward.Interface)
	out := matchInterface(expr.MetaKeyOIFNAME, expr.CmpOpEq, fw.forward.Interface)
	fw.rule(forward, in, clampMSS())
	fw.rule(forward, out, clampMSS())
	fw.rule(forward, in, matchAnswers(), verdict(expr.VerdictAccept))
	for _, p := range fw.forward.Routes {
		fw.rule(forward, in, matchDestination(p.Masked()), verdict(expr.VerdictAccept))
	}
	fw.rule(forward, in, verdict(expr.VerdictDrop))
	fw.rule(forward, out, verdict(expr.VerdictAccept))
	if fw.forward.NoMasquerade {
		return
	}
	postrouting := fw.conn.AddChain(&nftables.Chain{
		Name: "postrouting", Table: fw.table, Type: nftables.ChainTypeNAT, Policy: &accept,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	fw.rule(postrouting, in, matchInterface(expr.MetaKeyOIFNAME, expr.CmpOpNeq, fw.forward.Interface),
		[]expr.Any{&expr.Counter{}, &expr.Masq{}})
}

func (fw *Forwarding) rule(c *nftables.Chain, parts ...[]expr.Any) {
	r := &nftables.Rule{Table: fw.table, Chain: c}
	for _, part := range parts {
		r.Exprs = append(r.Exprs, part...)
	}
	fw.conn.AddRule(r)
}

// matchInterface compares a name that is padded to IFNAMSIZ with zeros.
func matchInterface(key expr.MetaKey, op expr.CmpOp, name string) []expr.Any {
	padded := make([]byte, unix.IFNAMSIZ)
	copy(padded, name)
	return []expr.Any{
		&expr.Meta{Key: key, Register: 1},
		&expr.Cmp{Op: op, Register: 1, Data: padded},
	}
}

// matchDestination is `ip daddr PREFIX` or `ip6 daddr PREFIX`.
func matchDestination(p netip.Prefix) []expr.Any {
	family, offset := byte(unix.NFPROTO_IPV4), uint32(16) // RFC 791, section 3.1
	if p.Addr().Is6() {
		family, offset = unix.NFPROTO_IPV6, 24 // RFC 8200, section 3
	}
	address := p.Addr().AsSlice()
	size := len(address)
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset, Len: uint32(size)},
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: uint32(size), Mask: net.CIDRMask(p.Bits(), 8*size), Xor: make([]byte, size),
		},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: address},
	}
}

// matchAnswers is `ct state established,related`.
func matchAnswers() []expr.Any {
	states := binaryutil.NativeEndian.PutUint32(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)
	return []expr.Any{
		&expr.Ct{Key: expr.CtKeySTATE, Register: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 4, Mask: states, Xor: make([]byte, 4)},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: make([]byte, 4)},
	}
}

// verdict counts what it is passed on.
func verdict(kind expr.VerdictKind) []expr.Any {
	return []expr.Any{&expr.Counter{}, &expr.Verdict{Kind: kind}}
}

// TCP, RFC 9293, section 3.1: the flags are the byte at 13; the option that carries the maximum segment size has kind 2.
const (
	tcpFlagsOffset = 13
	tcpSYN, tcpRST = 0x02, 0x04
	tcpOptionMSS   = 2
)

// clampMSS is `tcp flags & (syn|rst) == syn tcp option maxseg size set rt mtu`. It only ever makes the size smaller.
func clampMSS() []expr.Any {
	return []expr.Any{
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{syscall.IPPROTO_TCP}},
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseTransportHeader, Offset: tcpFlagsOffset, Len: 1},
		&expr.Bitwise{SourceRegister: 1, DestRegister: 1, Len: 1, Mask: []byte{tcpSYN | tcpRST}, Xor: []byte{0}},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{tcpSYN}},
		&expr.Rt{Key: expr.RtTCPMSS, Register: 1},
		&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 2, Size: 2},
		&expr.Exthdr{SourceRegister: 1, Type: tcpOptionMSS, Offset: 2, Len: 2, Op: expr.ExthdrOpTcpopt},
	}
}

// markBytes is a mark as nftables compares it.
func markBytes(mark uint32) []byte { return binaryutil.NativeEndian.PutUint32(mark) }
