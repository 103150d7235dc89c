package pipeline

import (
	"runtime"
	"testing"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-vpn/sluice/pipeline/udp"
)

// fdSocket is a socket of which only the descriptor is used.
type fdSocket struct {
	udp.Socket
	fd int
}

func (s fdSocket) FD() int { return s.fd }

// pollWaiterOn makes a waiter on an idle TUN and two sockets, the first of which is full.
func pollWaiterOn(t *testing.T) *pollWaiter {
	t.Helper()
	pair := func() [2]int {
		fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_NONBLOCK|unix.SOCK_CLOEXEC, 0)
		if err != nil {
			t.Fatal(err)
		}
		t.Cleanup(func() { unix.Close(fds[0]); unix.Close(fds[1]) })
		return fds
	}
	queue, full, roomy := pair(), pair(), pair()
	for unix.Send(full[0], make([]byte, 1024), 0) == nil {
	}
	event, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		t.Fatal(err)
	}
	w := &pollWaiter{event: event, fds: [4]unix.PollFd{{Fd: int32(queue[0])}, {Fd: -1}, {Fd: -1}, {Fd: int32(event), Events: unix.POLLIN}}}
	t.Cleanup(w.close)
	w.sockets(udp.Pair{V4: fdSocket{fd: full[0]}, V6: fdSocket{fd: roomy[0]}})
	return w
}

// A shard that waits for one socket does not spin on the room that the other has.
func TestWaitSleepsWhileOneSocketIsFull(t *testing.T) {
	w := pollWaiterOn(t)
	returned := make(chan struct{})
	go func() { w.wait(families{v4: true}); close(returned) }()
	select {
	case <-returned:
		t.Fatal("the wait ended, although nobody woke it and the full socket has no room")
	case <-time.After(100 * time.Millisecond):
	}
	w.wake()
	<-returned
	w.wake()
	w.wait(families{v6: true}) // this one has room
	w.wait(families{v6: true})
}

// The wait for a full socket lasts its limit whatever signals arrive (the runtime preempts with SIGURG) and whatever the
// other socket has.
func TestWritableLastsItsLimit(t *testing.T) {
	w := pollWaiterOn(t)
	const limit = 50 * time.Millisecond
	done := make(chan struct{})
	threads := make(chan int)
	var took time.Duration
	go func() {
		defer close(done)
		runtime.LockOSThread()
		defer runtime.UnlockOSThread()
		threads <- unix.Gettid()
		start := time.Now()
		w.writable(families{v4: true}, limit)
		took = time.Since(start)
	}()
	thread := <-threads
	for signalling := true; signalling; {
		select {
		case <-done:
			signalling = false
		default:
			_ = unix.Tgkill(unix.Getpid(), thread, unix.SIGURG)
			time.Sleep(time.Millisecond)
		}
	}
	if took < limit {
		t.Errorf("the wait ended after %v, want %v", took, limit)
	}
	if got := w.fds[3].Fd; got != int32(w.event) {
		t.Error("the wait changed what is waited for")
	}
}
