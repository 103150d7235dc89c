package udp

import (
	"os"
	"sync"
	"sync/atomic"
	"syscall"

	"golang.org/x/sys/unix"
)

// batchCalls is how many messages one system call takes at most.
const batchCalls = 64

// linuxSocket is a non-blocking descriptor, at times with spares to send by, and message arrays of its own. The goroutine
// that calls Receive owns receiver, the one that calls Send owns lane; SendOne's callers share one under mu.
type linuxSocket struct {
	// Frozen.
	fd       int
	senders  []int // descriptors to send by: fd, and spares that take over where a send buffer is full
	family   family
	port     uint16
	offloads Offloads
	calls    kernelCalls

	// Owned.
	receiver receiver
	lane     sender

	mu  sync.Mutex // guards one and oneRun
	one sender
	// oneRun is an array because sender takes a slice, and one on the stack would escape.
	oneRun [1]Run

	drops dropCount

	// Atomic.
	users atomic.Int64 // calls in progress, plus closedFlag after Close
	stats Stats
}

// closedFlag in users refuses further calls. The last user closes the descriptor, so that its number is not given to
// another file while a call is about to use it.
const closedFlag = int64(1) << 62

var _ Socket = (*linuxSocket)(nil)

func newLinuxSocket(fd int, f family, port uint16, offloads Offloads, calls kernelCalls) *linuxSocket {
	s := &linuxSocket{fd: fd, senders: []int{fd}, family: f, port: port, offloads: offloads, calls: calls}
	s.receiver.init(batchCalls)
	s.lane.init(s, batchCalls)
	s.one.init(s, 1)
	return s
}

// acquire says that a call uses the descriptor until release; false after Close.
func (s *linuxSocket) acquire() bool {
	for {
		users := s.users.Load()
		if users&closedFlag != 0 {
			return false
		}
		if s.users.CompareAndSwap(users, users+1) {
			return true
		}
	}
}

func (s *linuxSocket) release() {
	if s.users.Add(-1) == closedFlag {
		for i := len(s.senders) - 1; i >= 0; i-- { // fd last: it is the one that others are kept from receiving for
			_ = unix.Close(s.senders[i]) // nothing is buffered, so nothing can be lost
		}
	}
}

// Close wakes whoever polls the descriptor and closes it once no call uses it any more. Pollers must stop polling before
// the number can be given to another file: they own a reference to FD that the socket cannot see.
func (s *linuxSocket) Close() error {
	for {
		users := s.users.Load()
		if users&closedFlag != 0 {
			return nil
		}
		if s.users.CompareAndSwap(users, (users+1)|closedFlag) {
			break
		}
	}
	// ENOTCONN is returned, yet waiters wake (inet_shutdown in net/ipv4/af_inet.c).
	_ = unix.Shutdown(s.fd, unix.SHUT_RDWR)
	s.release()
	return nil
}

// LocalPort is the bound port.
func (s *linuxSocket) LocalPort() uint16 { return s.port }

// SetMark sets SO_MARK; it needs CAP_NET_ADMIN, or CAP_NET_RAW since 5.17.
func (s *linuxSocket) SetMark(mark uint32) error {
	if !s.acquire() {
		return ErrClosed
	}
	defer s.release()
	for _, fd := range s.senders {
		if err := set(fd, "SO_MARK", unix.SOL_SOCKET, unix.SO_MARK, int(mark)); err != nil {
			return err
		}
	}
	return nil
}

// FD is the descriptor to poll.
func (s *linuxSocket) FD() int { return s.fd }

// Ready is nil: poll FD.
func (s *linuxSocket) Ready() <-chan struct{} { return nil }

// Writable is nil: poll FD.
func (s *linuxSocket) Writable() <-chan struct{} { return nil }

// Offloads are what opening the socket found.
func (s *linuxSocket) Offloads() Offloads { return s.offloads }

// Stats counts, see [Stats]; what the kernel dropped is as of this call.
func (s *linuxSocket) Stats() *Stats {
	s.countDropped()
	return &s.stats
}

// SendOne sends r.Data as one datagram, whatever its SegmentSize, see [Socket]. A datagram that was not sent is counted
// and told.
func (s *linuxSocket) SendOne(r Run) error {
	if !s.acquire() {
		return ErrClosed
	}
	defer s.release()
	r.SegmentSize = len(r.Data)
	for range sendOneWait.Milliseconds() {
		sent, err := s.trySendOne(r)
		if sent || err != nil {
			return err
		}
		// The lock is not held here, so that one datagram's wait is not another one's. Counting waits of 1 ms bounds the
		// whole without a clock.
		s.calls.wait(s.fd, unix.POLLOUT, 1)
	}
	s.stats.SendNoBuffer.Add(1)
	return errFull
}

func (s *linuxSocket) trySendOne(r Run) (bool, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.oneRun[0] = r
	s.one.lastRefusal = 0
	n, err := s.one.send(s.oneRun[:])
	s.oneRun[0] = Run{}
	if err == nil && s.one.lastRefusal != 0 {
		err = os.NewSyscallError("sendmmsg", s.one.lastRefusal)
	}
	return n == 1, err
}

// Send sends runs in order, see [Socket].
func (s *linuxSocket) Send(runs []Run) (int, error) {
	if !s.acquire() {
		return 0, ErrClosed
	}
	defer s.release()
	return s.lane.send(runs)
}

// Receive fills messages, see [Socket]. A message that was truncated keeps its place with empty Data.
func (s *linuxSocket) Receive(batch []Datagrams) (int, error) {
	if !s.acquire() {
		return 0, ErrClosed
	}
	defer s.release()
	return s.receive(batch)
}

// oneOf makes tables of errors short.
func oneOf(errno syscall.Errno, list ...syscall.Errno) bool {
	for _, e := range list {
		if e == errno {
			return true
		}
	}
	return false
}
