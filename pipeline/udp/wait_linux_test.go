package udp

import (
	"time"

	"golang.org/x/sys/unix"
)

// waitReadable and waitWritable block as a shard does, for a second at most: in poll or on the socket's channel.
func waitReadable(s Socket) { waitEither(s, unix.POLLIN, s.Ready()) }

func waitWritable(s Socket) { waitEither(s, unix.POLLOUT, s.Writable()) }

func waitEither(s Socket, events int16, c <-chan struct{}) {
	if fd := s.FD(); fd >= 0 {
		waitFor(fd, events, 1000)
		return
	}
	select {
	case <-c:
	case <-time.After(time.Second):
	}
}
