// Package flow tells answers from what nobody has asked for. Its table remembers what was sent, as connection tracking does, and of that
// only as much as it takes: a fingerprint of the two ends, how far the flow has come, and when it was last used.
//
// A flow is what goes to and fro between two addresses by one protocol, and between two ports where the protocol has ports (an identifier
// where it is an ICMP query). It lasts as long as Linux's nf_conntrack has it last by default.
//
// The table has a fixed size. Where too many flows meet in one place the one with the least time left gives way; what is sent by it brings
// it back.
package flow

import (
	"hash/maphash"
	"net/netip"
	"sync/atomic"
	"time"
)

// Size of a Table: 65,536 flows in 512 KiB, of which those parts take memory that were used.
const (
	ways    = 8 // of a bucket, which is a cache line
	buckets = 8192
)

// An entry is a tag of 36 bits, a stage of 3, and the second of its last use, of 25 bits, which is more than a year; 0: none.
const (
	secondBits = 25
	stageBits  = 3
	secondMask = 1<<secondBits - 1
	stageMask  = 1<<stageBits - 1
	tagShift   = secondBits + stageBits
)

// stage is how far a flow has come.
type stage uint8

const (
	brief       stage = iota // not answered yet, or a query
	stream                   // datagrams in both directions
	opening                  // TCP, our SYN was the last that was sent
	established              // TCP
	closing                  // TCP, after a FIN or RST
	other                    // a protocol without ports
	stages
)

// life is how long a flow lasts that is not used, in seconds (net/netfilter/nf_conntrack_proto_*.c).
var life = [1 << stageBits]uint32{brief: 30, stream: 120, opening: 120, established: 5 * 24 * 3600, closing: 120, other: 600}

// Half of the seconds' range must be longer than any flow lasts.
const _ = uint(1<<(secondBits-1) - 5*24*3600)

const _ = uint(stageMask + 1 - stages)

// Table is the flows of one node. Its methods may be called by any goroutine.
type Table struct {
	seed    maphash.Seed
	buckets [buckets][ways]atomic.Uint64
}

// NewTable returns an empty table.
func NewTable() *Table { return &Table{seed: maphash.MakeSeed()} }

// Resume remembers a flow of a program that has used it before the table was there. Protocols other than TCP and UDP are ignored.
func (t *Table) Resume(now time.Duration, protocol uint8, local, remote netip.AddrPort) {
	if k, ok := keyOf(protocol, local, remote); ok {
		p := t.find(now, &k)
		p.set(resumed(protocol))
	}
}

func second(now time.Duration) uint32 { return uint32(now/time.Second) & secondMask }

// place is where a flow is in a table, or may be put.
type place struct {
	bucket *[ways]atomic.Uint64
	tag    uint64
	second uint32 // now
	slot   *atomic.Uint64
	before uint64 // in the slot
	known  bool   // before is the flow, and it lasts still
	stage  stage  // of before
}

// find looks for the flow.
func (t *Table) find(now time.Duration, k *key) place {
	h := maphash.Bytes(t.seed, k[:])
	p := place{bucket: &t.buckets[h%buckets], tag: h>>tagShift | 1, second: second(now)} // an entry is not 0
	p.look()
	return p
}

func (p *place) look() {
	least := ^uint32(0)
	for i := range p.bucket {
		e := p.bucket[i].Load()
		left := p.left(e)
		if e>>tagShift == p.tag {
			p.slot, p.before, p.known, p.stage = &p.bucket[i], e, left > 0, stage(e>>secondBits&stageMask)
			return
		}
		if left < least {
			least, p.slot, p.before, p.known = left, &p.bucket[i], e, false
		}
	}
}

// left is for how many seconds an entry will last; 0: no more.
func (p *place) left(e uint64) uint32 {
	if e == 0 {
		return 0
	}
	age := (p.second - uint32(e)) & secondMask
	if whole := life[e>>secondBits&stageMask]; age < whole {
		return whole - age
	}
	// A clock that another goroutine has read a little later.
	if age > secondMask-2 {
		return 1
	}
	return 0
}

// setTries bounds how often other goroutines may be in the way. A flow that gives up is brought back by what is sent next.
const setTries = 4

// set puts the flow there, used now.
func (p *place) set(s stage) {
	entry := p.tag<<tagShift | uint64(s)<<secondBits | uint64(p.second)
	for range setTries {
		if p.before == entry || p.slot.CompareAndSwap(p.before, entry) {
			return
		}
		p.look()
	}
}
