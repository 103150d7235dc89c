package udp

import (
	"math/rand/v2"
	"net/netip"
	"syscall"
	"testing"

	"golang.org/x/sys/unix"
)

// FuzzSend: whatever mixture of short counts, full buffers and refusals the kernel answers with, as long as none of them
// is final each datagram leaves once, in order, with its TOS.
func FuzzSend(f *testing.F) {
	for seed := range uint64(8) {
		f.Add(seed, uint8(seed*30))
	}
	f.Fuzz(func(t *testing.T, seed uint64, trouble uint8) {
		rng := rand.New(rand.NewPCG(seed, 9))
		w := &wire{hideSource: true} // a run may lose it
		refusedOnce := false
		w.refuse = func(m wireMessage) syscall.Errno {
			errno := passingTrouble(rng, trouble, m)
			if errno == unix.ENOBUFS && refusedOnce {
				errno = 0 // twice would be final
			}
			refusedOnce = errno == unix.ENOBUFS || refusedOnce && errno != 0
			return errno
		}
		s := wiredSocket(w)
		var runs []Run
		for range 1 + rng.IntN(100) {
			size := 1 + rng.IntN(5)
			r := Run{Data: make([]byte, rng.IntN(12*size)), SegmentSize: size, Dst: dstA, TOS: uint8(rng.IntN(4))}
			for i := range r.Data {
				r.Data[i] = byte('a' + len(runs)%26)
			}
			if rng.IntN(2) == 0 {
				r.Dst = dstB
			}
			if rng.IntN(3) == 0 {
				r.Src = dstB.Addr() // which the kernel refuses at times
			}
			runs = append(runs, r)
		}
		for rest, calls := runs, 0; len(rest) > 0; calls++ {
			n, err := s.Send(rest)
			if err != nil || calls > 100000 {
				t.Fatalf("%d runs left after %d calls: %v", len(rest), calls, err)
			}
			rest = rest[n:]
		}
		for i := range runs {
			runs[i].Src = netip.Addr{}
		}
		expect(t, w, runs...)
	})
}

// passingTrouble draws an answer to one message; trouble of 255 are bad ones.
func passingTrouble(rng *rand.Rand, trouble uint8, m wireMessage) syscall.Errno {
	if uint8(rng.IntN(255)) >= trouble {
		return 0
	}
	switch choice := rng.IntN(6); {
	case choice == 0:
		return unix.EINTR
	case choice == 1:
		return unix.ENOBUFS
	case choice == 2 && m.out.segmentSize != 0:
		return unix.EIO
	case choice == 3 && m.out.segmentSize != 0:
		return unix.EMSGSIZE
	case choice == 4 && (m.out.src.IsValid() || m.out.segmentSize != 0):
		return unix.EINVAL
	}
	return unix.EAGAIN
}
