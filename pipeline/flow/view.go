package flow

import (
	"time"

	"github.com/sluice-vpn/sluice/tun/ip"
)

// View is how one lane uses a Table: it remembers the last packet's flow, as most packets are of the same. Owned by one goroutine, and for
// one direction.
type View struct {
	table  *Table
	last   key
	second uint32
	cached bool // last was found in second, and nothing of it is to be changed by a plain packet
	packet segment
}

// View returns a view of the table.
func (t *Table) View() *View { return &View{table: t} }

// turns are the flags of TCP that change a flow's stage.
const turns = ip.TCPSyn | ip.TCPFin | ip.TCPRst

// again tells whether the packet is one more of the last flow.
func (v *View) again(now uint32) bool {
	s := &v.packet
	return v.cached && v.second == now && s.key == v.last && (s.kind != tcp || s.flags&turns == 0)
}

func (v *View) remember(now uint32) {
	v.last, v.second = v.packet.key, now
	v.cached = v.packet.kind != tcp || v.packet.flags&turns == 0
}

// Sent remembers what the packet begins or goes on with. The packet is borrowed; ip.Length was ok for it.
func (v *View) Sent(now time.Duration, p []byte) {
	s := &v.packet
	switch s.parse(p, true); s.kind {
	case malformed, rest, failure, refused:
		return
	}
	at := second(now)
	if v.again(at) {
		return
	}
	place := v.table.find(now, &s.key)
	v.remember(at)
	switch {
	case s.kind == others:
		place.set(other)
	case s.kind == tcp:
		if next, ok := sentTCP(&place, s.flags); ok {
			place.set(next)
		}
	case place.known:
		place.set(place.stage)
	default:
		place.set(brief)
	}
}

// sentTCP is what becomes of a connection; not ok: nothing. One that was there before the table is taken up.
func sentTCP(p *place, flags uint8) (next stage, ok bool) {
	switch {
	case flags&ip.TCPRst != 0:
		return closing, p.known
	case flags&ip.TCPFin != 0:
		return closing, true
	case flags&(ip.TCPSyn|ip.TCPAck) == ip.TCPSyn:
		return opening, true
	case p.known && p.stage == closing && flags&ip.TCPSyn == 0:
		return closing, true
	}
	return established, true
}

// Answers tells whether the packet answers something that was sent, or is an ICMP error about that. Fragments other than the first pass:
// they come to nothing without the first one. The packet is borrowed; ip.Length was ok for it.
func (v *View) Answers(now time.Duration, p []byte) bool {
	s := &v.packet
	switch s.parse(p, false); s.kind {
	case rest:
		return true
	case malformed, refused:
		return false
	case failure:
		return v.explains(now, p)
	case plain:
		if s.key[0] == ip.ProtocolTCP { // cut before its flags (RFC 1858)
			return false
		}
	}
	at := second(now)
	if v.again(at) {
		return true
	}
	place := v.table.find(now, &s.key)
	if !place.known || s.kind == tcp && s.flags&(ip.TCPSyn|ip.TCPAck) == ip.TCPSyn && place.stage != opening {
		return false // both may open one connection at once (RFC 9293, section 3.5)
	}
	v.remember(at)
	switch {
	case s.kind == query: // has its answer
	case s.kind == tcp && s.flags&(ip.TCPFin|ip.TCPRst) != 0:
		place.set(closing)
	case place.stage == brief:
		place.set(stream)
	default:
		place.set(place.stage)
	}
	return true
}

// explains tells whether an ICMP error is about a packet of a flow, and is for who has sent that (RFC 5927, section 4.1).
func (v *View) explains(now time.Duration, p []byte) bool {
	q := quoted(p)
	if q == nil || ip.Source(q) != ip.Destination(p) {
		return false
	}
	s := &v.packet
	switch s.parse(q, true); s.kind {
	case malformed, rest, failure, refused:
		return false
	}
	place := v.table.find(now, &s.key)
	return place.known
}
