package crypto

import (
	"bytes"
	"encoding/binary"
	"time"
)

// timestamp is a TAI64N label: 8 bytes of seconds and 4 of nanoseconds, big endian, so that comparing the bytes compares
// the times (https://cr.yp.to/libtai/tai64.html; paper, section 5.1).
type timestamp [12]byte

const (
	// tai64Epoch is the label of 1970-01-01 00:00:00 TAI, plus the ten seconds that everyone adds for UTC.
	tai64Epoch = 1<<62 + 10
	// stampUnit is what the nanoseconds are rounded down to, so that a stamp does not leak a precise clock: the
	// greatest power of two in a 50th of a second, 16.8 ms (kernel noise.c, tai64n_now).
	stampUnit = 1 << 24
)

// stampOf returns the label of t, rounded down to stampUnit.
func stampOf(t time.Time) timestamp {
	var s timestamp
	binary.BigEndian.PutUint64(s[:], tai64Epoch+uint64(t.Unix()))
	binary.BigEndian.PutUint32(s[8:], uint32(t.Nanosecond())&^(stampUnit-1))
	return s
}

// nanoseconds returns the second field; in a valid label it is below 1e9.
func (s timestamp) nanoseconds() uint32 { return binary.BigEndian.Uint32(s[8:]) }

func (s timestamp) valid() bool { return s.nanoseconds() < 1e9 }

func (s timestamp) after(o timestamp) bool { return bytes.Compare(s[:], o[:]) > 0 }

// next returns the least rounded label after s.
func (s timestamp) next() timestamp {
	seconds, ns := binary.BigEndian.Uint64(s[:]), s.nanoseconds()+stampUnit
	if ns >= 1e9 {
		seconds, ns = seconds+1, 0
	}
	binary.BigEndian.PutUint64(s[:], seconds)
	binary.BigEndian.PutUint32(s[8:], ns)
	return s
}

// time returns the wall-clock time of s, for logs.
func (s timestamp) time() time.Time {
	return time.Unix(int64(binary.BigEndian.Uint64(s[:])-tai64Epoch), int64(s.nanoseconds()))
}
