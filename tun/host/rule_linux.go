package host

import (
	"encoding/binary"

	"github.com/vishvananda/netlink"
	"github.com/vishvananda/netlink/nl"
	"golang.org/x/sys/unix"
)

// AddRule adds a policy rule.
func AddRule(r Rule) error {
	return wrap(unless(r.request(unix.RTM_NEWRULE, unix.NLM_F_CREATE|unix.NLM_F_EXCL), unix.EEXIST), "add rule for table %d", r.Table)
}

// DeleteRule deletes a policy rule.
func DeleteRule(r Rule) error {
	return wrap(unless(r.request(unix.RTM_DELRULE, 0), unix.ENOENT), "delete rule for table %d", r.Table)
}

// request changes a rule. The library's own call loses suppress_prefixlength for tables above 255.
func (r Rule) request(kind, flags int) error {
	req := nl.NewNetlinkRequest(kind, flags|unix.NLM_F_ACK)
	header := nl.NewRtMsg() // as struct fib_rule_hdr (linux/fib_rules.h), whose action is at Type
	header.Family, header.Type, header.Scope, header.Protocol = netlink.FAMILY_V4, unix.FR_ACT_TO_TBL, 0, 0
	if r.IPv6 {
		header.Family = netlink.FAMILY_V6
	}
	if r.Invert {
		header.Flags |= unix.FIB_RULE_INVERT
	}
	if r.Unreachable {
		header.Type = unix.FR_ACT_UNREACHABLE
	}
	header.Table = unix.RT_TABLE_UNSPEC // FRA_TABLE says it
	if r.To.IsValid() {
		header.Dst_len = uint8(r.To.Bits())
	}
	req.AddData(header)
	if r.To.IsValid() && r.To.Bits() > 0 {
		req.AddData(nl.NewRtAttr(unix.FRA_DST, r.To.Masked().Addr().AsSlice()))
	}
	attribute := func(kind int, value uint32) {
		req.AddData(nl.NewRtAttr(kind, binary.NativeEndian.AppendUint32(nil, value)))
	}
	if r.Table > 0 {
		attribute(unix.FRA_TABLE, uint32(r.Table))
	}
	if r.Priority > 0 {
		attribute(unix.FRA_PRIORITY, uint32(r.Priority))
	}
	if r.Mark != 0 {
		attribute(unix.FRA_FWMARK, r.Mark)
	}
	if r.MinBits > 0 {
		attribute(unix.FRA_SUPPRESS_PREFIXLEN, uint32(r.MinBits-1))
	}
	_, err := req.Execute(unix.NETLINK_ROUTE, 0)
	return err
}
