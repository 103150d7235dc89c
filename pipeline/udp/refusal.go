package udp

import "net/netip"

const (
	// refusalSlots bounds what is remembered; a new destination takes the slot of another one.
	refusalSlots = 64
	// refusalFirst and refusalMost are how many runs to a destination are sent datagram by datagram before one is tried
	// as a run again. The number doubles with each refusal: runs are counted because the lane has no clock.
	refusalFirst, refusalMost = 256, 1 << 16
)

// refusalTable remembers to which destinations a UDP_SEGMENT run was refused, so that the next runs do not fail first. A
// path may refuse runs because the device has no checksum offload (EIO) or because a segment is longer than its MTU
// (EINVAL or EMSGSIZE, by version); shorter segments may then pass. The zero value is empty; one goroutine at a time.
type refusalTable struct {
	slots []refusal // nil until the first
}

type refusal struct {
	dst  netip.Addr
	size int // segments at least this long are refused
	left int // runs to go until the next try
	next int // left after one more refusal
}

// refuses tells whether a run to dst should be sent datagram by datagram, and counts that use.
func (t *refusalTable) refuses(dst netip.Addr, size int) bool {
	if t.slots == nil {
		return false
	}
	r := &t.slots[slotOf(dst)]
	if r.dst != dst || size < r.size || r.left == 0 {
		return false
	}
	r.left--
	return true
}

// add remembers that a run with segments of size bytes was refused.
func (t *refusalTable) add(dst netip.Addr, size int) {
	if t.slots == nil {
		t.slots = make([]refusal, refusalSlots)
	}
	r := &t.slots[slotOf(dst)]
	if r.dst != dst {
		*r = refusal{dst: dst, size: size, next: refusalFirst}
	}
	r.size = min(r.size, size)
	r.left = r.next
	r.next = min(2*r.next, refusalMost)
}

// passed forgets a refusal: a run of this size went through.
func (t *refusalTable) passed(dst netip.Addr, size int) {
	if t.slots == nil {
		return
	}
	if r := &t.slots[slotOf(dst)]; r.dst == dst && size >= r.size {
		*r = refusal{}
	}
}

func slotOf(a netip.Addr) uint32 {
	h := uint32(2166136261) // FNV-1a
	for _, b := range a.As16() {
		h = (h ^ uint32(b)) * 16777619
	}
	return (h ^ h>>16) % refusalSlots
}
