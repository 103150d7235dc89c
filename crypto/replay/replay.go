// Package replay remembers which counters of a WireGuard session have been seen, so that no packet is accepted twice.
//
// It is the sliding window of RFC 6479: a ring of words that is one word longer than the window, so that moving the
// window forward clears whole words and never shifts bits. The numbers are the kernel's (messages.h): 8192 bits, 64 of
// them redundant, which leaves a [Window] that accepts a packet that comes up to 8128 counters late.
package replay

const (
	bitsTotal = 8192
	wordBits  = 64
	words     = bitsTotal / wordBits

	// Size is how far behind the greatest counter a packet may be and still be accepted.
	Size = bitsTotal - wordBits

	// Limit is the first counter that is never accepted: the paper's Reject-After-Messages, 2^64 - 2^13 - 1.
	Limit = 1<<64 - 1<<13 - 1
)

// Window is the memory of one session and one direction. The zero value has seen nothing. It has one owner at a time,
// and no lock.
type Window struct {
	greatest uint64
	ring     [words]uint64 // bit c%64 of word c/64%words: counter c was seen
}

// Accept reports whether counter is new, and marks it as seen. Call it only after the packet was authenticated: a forged
// counter must not move the window (RFC 6479, section 2; kernel receive.c, counter_validate).
func (w *Window) Accept(counter uint64) bool {
	if counter >= Limit {
		return false
	}
	word := counter / wordBits
	if counter > w.greatest {
		w.forward(word)
		w.greatest = counter
	} else if w.greatest-counter > Size {
		return false
	}
	seen := &w.ring[word%words]
	bit := uint64(1) << (counter % wordBits)
	fresh := *seen&bit == 0
	*seen |= bit
	return fresh
}

// forward clears the words between the old greatest counter's and word, which become part of the window.
func (w *Window) forward(word uint64) {
	at := w.greatest / wordBits
	if word-at >= words {
		clear(w.ring[:])
		return
	}
	for at < word {
		at++
		w.ring[at%words] = 0
	}
}
