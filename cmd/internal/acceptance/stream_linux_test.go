package acceptance

import (
	"bufio"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/bench/lab"
)

// stream is a TCP connection through the tunnel that sends a number every 50 ms and checks what the other end says.
type stream struct {
	t      *testing.T
	conn   net.Conn
	mu     sync.Mutex
	echoed int
	last   time.Time
	gap    time.Duration // the longest between two echoes
	err    error
}

// stream opens one from a node to an address in the given namespace.
func openStream(t *testing.T, from *lab.Namespace, to *lab.Namespace, at netip.Addr) *stream {
	t.Helper()
	var listener net.Listener
	err := to.Run(func() (err error) { listener, err = net.Listen("tcp", netip.AddrPortFrom(at, 0).String()); return err })
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { listener.Close() })
	go func() {
		for {
			conn, err := listener.Accept()
			if err != nil {
				return
			}
			go func() { defer conn.Close(); io.Copy(conn, conn) }()
		}
	}()
	s := &stream{t: t}
	await(t, patience, "a TCP connection through the tunnel", func() bool {
		err := from.Run(func() (err error) {
			s.conn, err = net.DialTimeout("tcp", listener.Addr().String(), 2*time.Second)
			return err
		})
		return err == nil
	})
	t.Cleanup(func() { s.conn.Close() })
	s.last = time.Now()
	go s.send()
	go s.receive()
	return s
}

func (s *stream) send() {
	for n := 0; ; n++ {
		if _, err := fmt.Fprintln(s.conn, n); err != nil {
			return
		}
		time.Sleep(50 * time.Millisecond)
	}
}

func (s *stream) receive() {
	r := bufio.NewScanner(s.conn)
	for n := 0; r.Scan(); n++ {
		s.mu.Lock()
		if r.Text() != fmt.Sprint(n) {
			s.err = fmt.Errorf("echo %q, want %d", r.Text(), n)
		}
		now := time.Now()
		s.gap = max(s.gap, now.Sub(s.last))
		s.echoed, s.last = n+1, now
		s.mu.Unlock()
	}
}

// count is how many echoes came.
func (s *stream) count() int {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.echoed
}

// awaitProgress waits until echoes come again.
func (s *stream) awaitProgress(limit time.Duration, what string) time.Duration {
	s.t.Helper()
	from := s.count()
	took := await(s.t, limit, "TCP goes on: "+what, func() bool { return s.count() >= from+3 })
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err != nil {
		s.t.Error(s.err)
	}
	return took
}

// longestGap is the longest time between two echoes, since the stream began or newGap was called.
func (s *stream) longestGap() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.gap
}

func (s *stream) newGap() {
	s.mu.Lock()
	defer s.mu.Unlock()
	s.gap = 0
}
