package host

import (
	"errors"
	"net"
	"net/netip"
	"slices"
	"syscall"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"golang.org/x/sys/unix"
)

// This file is what is in a gateway's nftables table.

// writeTable queues what is in our table.
func (fw *Forwarding) writeTable() error {
	fw.writeNotes()
	var err error
	if fw.offered, err = fw.writeSets("offered", fw.forward.Routes); err != nil {
		return err
	}
	if fw.reach, err = fw.writeSets("reach", fw.forward.Reach); err != nil {
		return err
	}
	in := matchInterface(expr.MetaKeyIIFNAME, expr.CmpOpEq, fw.forward.Interface)
	out := matchInterface(expr.MetaKeyOIFNAME, expr.CmpOpEq, fw.forward.Interface)
	fw.writeForward(in, out)
	fw.writeInput()
	fw.writeCounters(in, out)
	fw.writeErrors()
	if fw.forward.NoMasquerade {
		return nil
	}
	accept := nftables.ChainPolicyAccept
	postrouting := fw.conn.AddChain(&nftables.Chain{
		Name: "postrouting", Table: fw.table, Type: nftables.ChainTypeNAT, Policy: &accept,
		Hooknum: nftables.ChainHookPostrouting, Priority: nftables.ChainPriorityNATSource,
	})
	fw.rule(postrouting, in, matchInterface(expr.MetaKeyOIFNAME, expr.CmpOpNeq, fw.forward.Interface),
		[]expr.Any{&expr.Counter{}, &expr.Masq{}})
	return nil
}

// writeForward decides about what is forwarded. Answers come early, since they are most packets, but behind what no state excuses.
func (fw *Forwarding) writeForward(in, out []expr.Any) {
	c := fw.filter(forwardChain, nftables.ChainHookForward, nftables.ChainPriorityFilter)
	fw.betweenTunnels(c, in, out, verdict(expr.VerdictDrop))
	fw.rule(c, in, clampMSS())
	fw.rule(c, out, clampMSS())
	fw.rule(c, matchAnswers(), verdict(expr.VerdictAccept))
	for _, s := range fw.offered {
		fw.rule(c, in, matchSet(s, destination), verdict(expr.VerdictAccept))
	}
	fw.rule(c, in, verdict(expr.VerdictDrop))
	for _, s := range fw.reach {
		fw.rule(c, out, matchSet(s, destination), verdict(expr.VerdictAccept))
	}
	fw.rule(c, out, verdict(expr.VerdictDrop))
	for _, name := range fw.around.tunnels { // their own tables decide
		fw.rule(c, matchInterface(expr.MetaKeyIIFNAME, expr.CmpOpEq, name), verdict(expr.VerdictAccept))
		fw.rule(c, matchInterface(expr.MetaKeyOIFNAME, expr.CmpOpEq, name), verdict(expr.VerdictAccept))
	}
	strangers := fw.conn.AddChain(&nftables.Chain{Name: strangersChain, Table: fw.table})
	for _, name := range fw.around.bridges {
		fw.rule(strangers, matchInterface(expr.MetaKeyIIFNAME, expr.CmpOpEq, name), matchInterface(expr.MetaKeyOIFNAME, expr.CmpOpEq, name),
			[]expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}})
	}
	for _, ipv6 := range []bool{false, true} {
		if fw.around.apart(ipv6) {
			fw.rule(strangers, matchFamily(ipv6), verdict(expr.VerdictDrop))
		}
	}
	fw.rule(c, []expr.Any{&expr.Verdict{Kind: expr.VerdictJump, Chain: strangersChain}})
}

// betweenTunnels passes a verdict on what goes from one of our tunnels to another, or back into the same: networks that are offered
// may contain the tunnel's own, as a default route does.
func (fw *Forwarding) betweenTunnels(c *nftables.Chain, in, out, verdict []expr.Any) {
	fw.rule(c, in, out, verdict)
	for _, name := range fw.around.tunnels {
		fw.rule(c, in, matchInterface(expr.MetaKeyOIFNAME, expr.CmpOpEq, name), verdict)
		fw.rule(c, matchInterface(expr.MetaKeyIIFNAME, expr.CmpOpEq, name), out, verdict)
	}
}

// writeInput decides about what comes to this machine by the tunnel. Its other addresses are no business of peers, but by default it
// answers for each on any interface.
func (fw *Forwarding) writeInput() {
	c := fw.filter("input", nftables.ChainHookInput, nftables.ChainPriorityFilter)
	fw.rule(c, matchInterface(expr.MetaKeyIIFNAME, expr.CmpOpNeq, fw.forward.Interface), []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}})
	fw.rule(c, matchAnswers(), verdict(expr.VerdictAccept))
	for _, p := range fw.forward.Addresses {
		fw.rule(c, matchDestination(netip.PrefixFrom(p.Addr(), p.Addr().BitLen())), verdict(expr.VerdictAccept))
	}
	for _, s := range fw.offered {
		fw.rule(c, matchSet(s, destination), verdict(expr.VerdictAccept))
	}
	fw.rule(c, verdict(expr.VerdictDrop))
}

// writeSets makes a set of prefixes for each family that they are of. A rule for each would be slow, and the kernel's answers to so
// many do not fit into the socket's buffer.
func (fw *Forwarding) writeSets(name string, prefixes []netip.Prefix) (sets []*nftables.Set, err error) {
	for _, s := range []*nftables.Set{{Name: name + "4", KeyType: nftables.TypeIPAddr}, {Name: name + "6", KeyType: nftables.TypeIP6Addr}} {
		s.Table, s.Interval = fw.table, true
		list := intervals(prefixes, s.KeyType == nftables.TypeIP6Addr)
		if len(list) == 0 {
			continue
		}
		err := fw.conn.AddSet(s, nil)
		for part := range slices.Chunk(list, maxElements) {
			err = errors.Join(err, fw.conn.SetAddElements(s, part))
		}
		if err != nil {
			return nil, wrapNFT(err, "list the networks "+name)
		}
		sets = append(sets, s)
	}
	return sets, nil
}

// maxElements is how many elements of a set one message holds; its attributes are of 64 KiB at most (linux/netlink.h, struct nlattr).
const maxElements = 1000

// intervals are a family's prefixes as elements of a set: where one begins, and the first address behind it if there is one.
func intervals(prefixes []netip.Prefix, ipv6 bool) (list []nftables.SetElement) {
	var last netip.Prefix
	for _, p := range slices.SortedFunc(slices.Values(prefixes), netip.Prefix.Compare) { // what contains others comes before them
		if p = p.Masked(); p.Addr().Is6() != ipv6 || last.IsValid() && last.Overlaps(p) {
			continue
		}
		last = p
		list = append(list, nftables.SetElement{Key: p.Addr().AsSlice()})
		end := p.Addr().AsSlice()
		for i := p.Bits(); i < 8*len(end); i++ {
			end[i/8] |= 0x80 >> (i % 8)
		}
		if a, _ := netip.AddrFromSlice(end); a.Next().IsValid() {
			list = append(list, nftables.SetElement{Key: a.Next().AsSlice(), IntervalEnd: true})
		}
	}
	return list
}

func (fw *Forwarding) writeNotes() {
	for note := range fw.notes {
		fw.conn.AddChain(&nftables.Chain{Name: note, Table: fw.table})
	}
}

// filter is a chain on a hook that accepts what no rule of it decides about.
func (fw *Forwarding) filter(name string, hook *nftables.ChainHook, priority *nftables.ChainPriority) *nftables.Chain {
	accept := nftables.ChainPolicyAccept
	return fw.conn.AddChain(&nftables.Chain{
		Name: name, Table: fw.table, Type: nftables.ChainTypeFilter, Policy: &accept, Hooknum: hook, Priority: priority,
	})
}

// writeCounters counts what the chain forward lets on, but for new connections to the tunnel, which a firewall may well not want. The
// chains are before and behind all others.
func (fw *Forwarding) writeCounters(in, out []expr.Any) {
	entered := fw.filter(enteredChain, nftables.ChainHookForward, nftables.ChainPriorityFirst)
	left := fw.filter(leftChain, nftables.ChainHookPostrouting, nftables.ChainPriorityLast)
	fw.rule(entered, in, matchAnswers(), verdict(expr.VerdictAccept))
	fw.betweenTunnels(entered, in, out, []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}})
	for _, s := range fw.offered {
		fw.rule(entered, in, matchSet(s, destination), verdict(expr.VerdictAccept))
	}
	// What the host itself sends to the tunnel's multicast groups seems to come in by the tunnel (net/ipv6/ip6_output.c, ip6_output).
	fw.rule(left, in, matchInterface(expr.MetaKeyOIFNAME, expr.CmpOpNeq, fw.forward.Interface), verdict(expr.VerdictAccept))
	for _, c := range []*nftables.Chain{entered, left} {
		fw.rule(c, matchInterface(expr.MetaKeyIIFNAME, expr.CmpOpNeq, ""), out, matchAnswers(), verdict(expr.VerdictAccept))
	}
}

// writeErrors gives ICMP errors that go to the tunnel our own address, if their sender's is not one that peers take packets from
// (allowed IPs). They are about flows that conntrack knows, and so that peers have a claim to: without them no path MTU is
// found (RFC 1191, section 4; RFC 8201, section 4).
func (fw *Forwarding) writeErrors() {
	behindNAT := nftables.ChainPriorityRef(*nftables.ChainPriorityNATSource + 10)
	c := fw.filter("errors", nftables.ChainHookPostrouting, behindNAT)
	pass := []expr.Any{&expr.Verdict{Kind: expr.VerdictAccept}}
	fw.rule(c, matchInterface(expr.MetaKeyOIFNAME, expr.CmpOpNeq, fw.forward.Interface), pass)
	for _, s := range fw.offered {
		fw.rule(c, matchSet(s, source), pass)
	}
	for _, p := range fw.forward.Addresses {
		fw.rule(c, matchAddress(p.Masked(), source), pass)
	}
	done := map[bool]bool{}
	for _, a := range fw.forward.Addresses {
		if family := a.Addr().Is6(); !done[family] {
			done[family] = true
			fw.rule(c, matchRelated(), rewriteSource(a.Addr()))
		}
	}
}

// matchRelated is `ct state related`.
func matchRelated() []expr.Any { return matchState(expr.CtStateBitRELATED) }

// rewriteSource is `meta l4proto icmp ip saddr set ADDRESS` or `ip6 nexthdr icmpv6 ip6 saddr set ADDRESS`. An IPv6 address counts
// in the checksum of ICMPv6 (RFC 8200, section 8.1), an IPv4 address in that of its header.
func rewriteSource(a netip.Addr) []expr.Any {
	protocol := byte(syscall.IPPROTO_ICMP)
	protocolAt, sourceAt, checksumAt := uint32(9), uint32(12), uint32(10)
	if a.Is6() {
		protocol = syscall.IPPROTO_ICMPV6
		protocolAt, sourceAt, checksumAt = 6, 8, 40+2
	}
	address := a.AsSlice()
	return append(matchFamily(a.Is6()),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: protocolAt, Len: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{protocol}},
		&expr.Counter{},
		&expr.Immediate{Register: 1, Data: address},
		&expr.Payload{
			OperationType: expr.PayloadWrite, SourceRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: sourceAt, Len: uint32(len(address)),
			CsumType: expr.CsumTypeInet, CsumOffset: checksumAt,
		})
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

// end is one of the two addresses of a packet.
type end int

const (
	source end = iota
	destination
)

func matchDestination(p netip.Prefix) []expr.Any { return matchAddress(p, destination) }

// loadAddress loads one of the addresses of a packet of a family.
func loadAddress(ipv6 bool, which end) []expr.Any {
	size, offset := uint32(4), uint32(12) // RFC 791, section 3.1
	if ipv6 {
		size, offset = 16, 8 // RFC 8200, section 3
	}
	return append(matchFamily(ipv6),
		&expr.Payload{DestRegister: 1, Base: expr.PayloadBaseNetworkHeader, Offset: offset + size*uint32(which), Len: size})
}

// matchFamily is `meta nfproto ipv4` or `meta nfproto ipv6`.
func matchFamily(ipv6 bool) []expr.Any {
	family := byte(unix.NFPROTO_IPV4)
	if ipv6 {
		family = unix.NFPROTO_IPV6
	}
	return []expr.Any{&expr.Meta{Key: expr.MetaKeyNFPROTO, Register: 1}, &expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{family}}}
}

// matchAddress is `ip saddr PREFIX`, `ip6 daddr PREFIX` and so on.
func matchAddress(p netip.Prefix, which end) []expr.Any {
	address := p.Addr().AsSlice()
	size := len(address)
	return append(loadAddress(p.Addr().Is6(), which),
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: uint32(size), Mask: net.CIDRMask(p.Bits(), 8*size), Xor: make([]byte, size),
		},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: address})
}

// matchSet is `ip saddr @SET` and so on.
func matchSet(s *nftables.Set, which end) []expr.Any {
	return append(loadAddress(s.KeyType == nftables.TypeIP6Addr, which), &expr.Lookup{SourceRegister: 1, SetName: s.Name, SetID: s.ID})
}

// matchAnswers is `ct state established,related`.
func matchAnswers() []expr.Any {
	return matchState(expr.CtStateBitESTABLISHED | expr.CtStateBitRELATED)
}

func matchState(bits uint32) []expr.Any {
	states := binaryutil.NativeEndian.PutUint32(bits)
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
