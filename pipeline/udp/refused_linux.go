package udp

import (
	"net/netip"
	"syscall"

	"golang.org/x/sys/unix"
)

// sourceMemory is how many runs leave out a source that was refused before it is tried again.
const sourceMemory = 256

// sourceRefusal remembers the last source that was refused: after an address went away the control side needs a while to
// notice, and runs should not fail first until then.
type sourceRefusal struct {
	src, dst netip.Addr
	ifIndex  int
	left     int
}

// covers tells whether the source of r should be left out, and counts that use.
func (s *sourceRefusal) covers(r *Run) bool {
	if s.left == 0 || s.src != r.Src || s.ifIndex != r.IfIndex || s.dst != r.Dst.Addr() {
		return false
	}
	s.left--
	return true
}

// refused decides what becomes of the message at the cursor, which the kernel refused: it is tried again, without its
// source, datagram by datagram, or dropped. Each answer can be given once a message, so this ends.
func (t *sender) refused(r *Run, p piece, errno syscall.Errno) {
	t.decided, t.single, t.noSource = true, p.single, p.leftOut
	switch {
	case errno == unix.EINTR:
	case p.source && sourceError(errno):
		t.noSource = true
		t.badSource = sourceRefusal{src: r.Src, dst: r.Dst.Addr(), ifIndex: r.IfIndex, left: sourceMemory}
	case p.datagrams > 1 && segmentError(errno):
		t.single = true
		if p.leftOut { // EINVAL was about the segments, not the source
			t.noSource = false
			t.badSource = sourceRefusal{}
		}
		if !noMemory(errno) {
			t.refusals.add(r.Dst.Addr(), r.segmentSize())
		}
	case passingError(errno) && !t.retried:
		t.retried = true
	default:
		t.drop(r, p, errno)
	}
}

// sourceError: the address is not ours any more (EINVAL, EADDRNOTAVAIL) or its interface has no way there.
func sourceError(errno syscall.Errno) bool {
	return oneOf(errno, unix.EINVAL, unix.EADDRNOTAVAIL, unix.ENETUNREACH, unix.EHOSTUNREACH, unix.ENODEV, unix.ENXIO)
}

// segmentError: no checksum offload or an IPsec policy (EIO), segments longer than the MTU (EINVAL, EMSGSIZE), no buffer
// of that length, or no such option after all (udp_send_skb in net/ipv4/udp.c).
func segmentError(errno syscall.Errno) bool {
	return noMemory(errno) || oneOf(errno, unix.EIO, unix.EINVAL, unix.EMSGSIZE, unix.EOPNOTSUPP, unix.ENOPROTOOPT)
}

// passingError: worth one more try. ECONNREFUSED is an earlier datagram's ICMP error, which the send reported and cleared.
func passingError(errno syscall.Errno) bool { return noMemory(errno) || errno == unix.ECONNREFUSED }

func noMemory(errno syscall.Errno) bool { return oneOf(errno, unix.ENOBUFS, unix.ENOMEM) }
