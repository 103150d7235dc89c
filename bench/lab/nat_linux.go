package lab

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"os"
	"strconv"

	"github.com/google/nftables"
	"github.com/google/nftables/binaryutil"
	"github.com/google/nftables/expr"
	"github.com/vishvananda/netlink"
	"golang.org/x/sys/unix"
)

// NAT is a kind of network address translation (RFC 4787). All kinds drop what comes to the router itself, and forward
// nothing inwards that does not belong to what went out.
type NAT uint8

// The kinds.
const (
	// NoNAT routes, with no translation and no filter.
	NoNAT NAT = iota
	// Cone maps an inner address and port to the same outer one whatever the destination (endpoint-independent mapping), and lets
	// anybody answer (endpoint-independent filtering).
	Cone
	// Restricted has the same mapping, but lets only those answer that were sent to (address- and port-dependent filtering).
	Restricted
	// Symmetric maps each destination to another outer port (address- and port-dependent mapping and filtering).
	Symmetric
)

var natNames = [...]string{NoNAT: "none", Cone: "cone", Restricted: "restricted", Symmetric: "symmetric"}

func (n NAT) String() string { return natNames[n] }

// translate makes ns a router with this NAT: outside is the device that the translation is for, inside the address of the one
// host behind it.
func (ns *Namespace) translate(kind NAT, outside string, inside netip.Addr) error {
	err := ns.Run(func() error {
		for _, path := range []string{"ipv4/ip_forward", "ipv6/conf/all/forwarding"} {
			if err := os.WriteFile("/proc/sys/net/"+path, []byte("1"), 0); err != nil && !os.IsNotExist(err) {
				return err
			}
		}
		if kind == NoNAT {
			return nil
		}
		conn, err := nftables.New()
		if err != nil {
			return err
		}
		addNAT(conn, kind, outside, inside)
		return conn.Flush()
	})
	if err != nil {
		return fmt.Errorf("lab: %s: NAT %s: %w", ns.name, kind, err)
	}
	return nil
}

// addNAT writes the rule set of a router.
func addNAT(conn *nftables.Conn, kind NAT, outside string, inside netip.Addr) {
	table := conn.AddTable(&nftables.Table{Name: "nat", Family: nftables.TableFamilyIPv4})
	drop, accept := nftables.ChainPolicyDrop, nftables.ChainPolicyAccept
	for _, hook := range []struct {
		name string
		at   *nftables.ChainHook
	}{{"input", nftables.ChainHookInput}, {"forward", nftables.ChainHookForward}} {
		chain := conn.AddChain(&nftables.Chain{
			Name: hook.name, Table: table, Type: nftables.ChainTypeFilter, Hooknum: hook.at, Priority: nftables.ChainPriorityFilter, Policy: &drop,
		})
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(established(), verdict(expr.VerdictAccept))})
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(device(expr.MetaKeyIIFNAME, outside, expr.CmpOpNeq), verdict(expr.VerdictAccept))})
		if kind == Cone && hook.name == "forward" { // what was translated by destination comes from anybody
			conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(translated(), verdict(expr.VerdictAccept))})
		}
	}
	post := conn.AddChain(&nftables.Chain{
		Name: "postrouting", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPostrouting,
		Priority: nftables.ChainPriorityNATSource, Policy: &accept,
	})
	conn.AddRule(&nftables.Rule{Table: table, Chain: post, Exprs: append(
		device(expr.MetaKeyOIFNAME, outside, expr.CmpOpEq), &expr.Masq{FullyRandom: kind == Symmetric})})
	if kind != Cone {
		return
	}
	// The mapping keeps the port, so whoever sends to an outer port means the same inner one.
	pre := conn.AddChain(&nftables.Chain{
		Name: "prerouting", Table: table, Type: nftables.ChainTypeNAT, Hooknum: nftables.ChainHookPrerouting,
		Priority: nftables.ChainPriorityNATDest, Policy: &accept,
	})
	to := inside.As4()
	conn.AddRule(&nftables.Rule{Table: table, Chain: pre, Exprs: append(
		device(expr.MetaKeyIIFNAME, outside, expr.CmpOpEq),
		&expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
		&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}},
		&expr.Immediate{Register: 1, Data: to[:]},
		&expr.NAT{Type: expr.NATTypeDestNAT, Family: unix.NFPROTO_IPV4, RegAddrMin: 1},
	)})
}

func verdict(kind expr.VerdictKind) expr.Any { return &expr.Verdict{Kind: kind} }

// device matches the name of a device.
func device(key expr.MetaKey, name string, op expr.CmpOp) []expr.Any {
	text := make([]byte, unix.IFNAMSIZ)
	copy(text, name)
	return []expr.Any{&expr.Meta{Key: key, Register: 1}, &expr.Cmp{Op: op, Register: 1, Data: text}}
}

// established matches packets of flows that went the other way before.
func established() []expr.Any {
	return ctMatch(&expr.Ct{Key: expr.CtKeySTATE, Register: 1}, expr.CtStateBitESTABLISHED|expr.CtStateBitRELATED)
}

// translated matches packets whose destination was translated (IPS_DST_NAT in linux/netfilter/nf_conntrack_common.h).
func translated() []expr.Any {
	return ctMatch(&expr.Ct{Key: expr.CtKeySTATUS, Register: 1}, 1<<5)
}

func ctMatch(ct *expr.Ct, bits uint32) []expr.Any {
	return []expr.Any{
		ct,
		&expr.Bitwise{
			SourceRegister: 1, DestRegister: 1, Len: 4, Mask: binaryutil.NativeEndian.PutUint32(bits), Xor: binaryutil.NativeEndian.PutUint32(0),
		},
		&expr.Cmp{Op: expr.CmpOpNeq, Register: 1, Data: binaryutil.NativeEndian.PutUint32(0)},
	}
}

// ForgetMappings makes a NAT forget what it has translated, as one that restarts: the next packet gets another mapping.
func (ns *Namespace) ForgetMappings() error {
	err := ns.Run(func() error { return netlink.ConntrackTableFlush(netlink.ConntrackTable) })
	if err != nil {
		return fmt.Errorf("lab: %s: forget mappings: %w", ns.name, err)
	}
	return nil
}

// SetMappingLife sets for how many seconds a NAT keeps the mapping of a UDP flow that is silent.
func (ns *Namespace) SetMappingLife(seconds int) error {
	return ns.Run(func() error {
		for _, name := range []string{"nf_conntrack_udp_timeout", "nf_conntrack_udp_timeout_stream"} {
			if err := os.WriteFile("/proc/sys/net/netfilter/"+name, []byte(strconv.Itoa(seconds)), 0); err != nil {
				return fmt.Errorf("lab: %s: %w", ns.name, err)
			}
		}
		return nil
	})
}

// Drop drops all packets that ns would forward between two devices in this direction, or only UDP, until the returned function
// is called. A cut cable, a lost direction and a firewall are all this.
func (ns *Namespace) Drop(in, out string, onlyUDP bool) (restore func() error, err error) {
	table := &nftables.Table{Name: "drop-" + in + "-" + out, Family: nftables.TableFamilyINet}
	apply := func(change func(*nftables.Conn)) error {
		return ns.Run(func() error {
			conn, err := nftables.New()
			if err != nil {
				return err
			}
			change(conn)
			return conn.Flush()
		})
	}
	err = apply(func(conn *nftables.Conn) {
		conn.AddTable(table)
		chain := conn.AddChain(&nftables.Chain{
			Name: "forward", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityRaw,
		})
		var match []expr.Any
		if in != "" {
			match = append(match, device(expr.MetaKeyIIFNAME, in, expr.CmpOpEq)...)
		}
		if out != "" {
			match = append(match, device(expr.MetaKeyOIFNAME, out, expr.CmpOpEq)...)
		}
		if onlyUDP {
			match = append(match, &expr.Meta{Key: expr.MetaKeyL4PROTO, Register: 1},
				&expr.Cmp{Op: expr.CmpOpEq, Register: 1, Data: []byte{unix.IPPROTO_UDP}})
		}
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: append(match, verdict(expr.VerdictDrop))})
	})
	if err != nil {
		return nil, fmt.Errorf("lab: %s: drop %s to %s: %w", ns.name, in, out, err)
	}
	return func() error { return apply(func(conn *nftables.Conn) { conn.DelTable(table) }) }, nil
}

// Lose drops a share of the packets that ns forwards, at random.
func (ns *Namespace) Lose(percent int) (restore func() error, err error) {
	table := &nftables.Table{Name: "lose", Family: nftables.TableFamilyINet}
	apply := func(change func(*nftables.Conn)) error {
		return ns.Run(func() error {
			conn, err := nftables.New()
			if err != nil {
				return err
			}
			change(conn)
			return conn.Flush()
		})
	}
	below := make([]byte, 4)
	binary.BigEndian.PutUint32(below, uint32(percent))
	err = apply(func(conn *nftables.Conn) {
		conn.AddTable(table)
		chain := conn.AddChain(&nftables.Chain{
			Name: "forward", Table: table, Type: nftables.ChainTypeFilter, Hooknum: nftables.ChainHookForward, Priority: nftables.ChainPriorityRaw,
		})
		conn.AddRule(&nftables.Rule{Table: table, Chain: chain, Exprs: []expr.Any{
			&expr.Numgen{Register: 1, Type: unix.NFT_NG_RANDOM, Modulus: 100},
			&expr.Byteorder{SourceRegister: 1, DestRegister: 1, Op: expr.ByteorderHton, Len: 4, Size: 4},
			&expr.Cmp{Op: expr.CmpOpLt, Register: 1, Data: below},
			verdict(expr.VerdictDrop),
		}})
	})
	if err != nil {
		return nil, fmt.Errorf("lab: %s: lose %d %%: %w", ns.name, percent, err)
	}
	return func() error { return apply(func(conn *nftables.Conn) { conn.DelTable(table) }) }, nil
}
