//go:build linux && !sluice_portable

package netstack

import (
	"encoding/binary"
	"fmt"
	"runtime"

	"golang.org/x/sys/unix"
)

// bell tells the queue's owner that there is something to read, by a descriptor, as the sockets beside it do. Its number belongs to the bell
// until nobody has it any more, so that nobody polls another file by it.
type bell struct{ event int }

func newBell() (*bell, error) {
	fd, err := unix.Eventfd(0, unix.EFD_CLOEXEC|unix.EFD_NONBLOCK)
	if err != nil {
		return nil, fmt.Errorf("netstack: eventfd: %w", err)
	}
	b := &bell{event: fd}
	runtime.AddCleanup(b, func(fd int) { _ = unix.Close(fd) }, fd)
	return b, nil
}

func (b *bell) ring() {
	var one [8]byte
	binary.NativeEndian.PutUint64(one[:], 1)
	_, _ = unix.Write(b.event, one[:]) // EAGAIN: the counter is far from 0 already
}

// again is after a read that has left something; the descriptor is readable until reset.
func (b *bell) again() {}

func (b *bell) reset() {
	var counter [8]byte
	_, _ = unix.Read(b.event, counter[:]) // EAGAIN: it is
}

func (b *bell) fd() int                { return b.event }
func (b *bell) ready() <-chan struct{} { return nil }
