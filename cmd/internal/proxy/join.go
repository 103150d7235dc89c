package proxy

import (
	"errors"
	"io"
	"sync"
)

// Buffers for copying, in bytes: each direction has a small one of its own, and a large one while its reader fills that.
const (
	smallBuffer, largeBuffer = 4 << 10, 64 << 10
)

var largeBuffers = sync.Pool{New: func() any { return new([largeBuffer]byte) }}

// Carry is join for a client that was not accepted here. There may be as many as there are others; false: there is no room, and both are closed.
func (s *Server) Carry(client, there Conn) bool {
	select {
	case s.rooms <- struct{}{}:
	default:
		client.Close()
		there.Close()
		s.tellFull()
		return false
	}
	defer func() { <-s.rooms }()
	if !s.hold(client) {
		client.Close()
		there.Close()
		return false
	}
	defer s.release(client)
	s.join(client, client, there)
	return true
}

// join carries bytes between a client and the other side, which it closes, until both directions have ended or one has failed. What the
// client says is read from its reader, which may have something already.
func (s *Server) join(client Conn, said io.Reader, there Conn) {
	if !s.hold(there) {
		there.Close()
		return
	}
	defer s.release(there)
	var back sync.WaitGroup
	back.Go(func() { carry(client, there, client, there) })
	carry(there, said, client, there)
	back.Wait()
}

// carry copies one direction and hands its end on. A failure ends both.
func carry(to Conn, from io.Reader, ends ...Conn) {
	err := copyBytes(to, from)
	if err == nil {
		err = to.CloseWrite()
	}
	if err != nil {
		for _, c := range ends {
			c.Close()
		}
	}
}

// copyBytes copies to the end; nil: there was one.
func copyBytes(to io.Writer, from io.Reader) error {
	small := make([]byte, smallBuffer)
	buffer := small
	var large *[largeBuffer]byte
	defer func() {
		if large != nil {
			largeBuffers.Put(large)
		}
	}()
	for {
		n, err := from.Read(buffer)
		if n > 0 {
			if _, err := to.Write(buffer[:n]); err != nil {
				return err
			}
		}
		switch {
		case errors.Is(err, io.EOF):
			return nil
		case err != nil:
			return err
		case large == nil && n == len(buffer):
			large = largeBuffers.Get().(*[largeBuffer]byte)
			buffer = large[:]
		case large != nil && n <= smallBuffer: // it has slowed down, and may soon be silent
			largeBuffers.Put(large)
			large, buffer = nil, small
		}
	}
}
