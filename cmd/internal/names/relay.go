package names

import (
	"context"
	"encoding/binary"
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"
)

const (
	// mostAsked questions are under way to a gateway's name servers; more are not asked, and who asks tries again.
	mostAsked = 256
	// askLimit is how long one name server may take for an answer.
	askLimit = 3 * time.Second
	// mostAnswer is the most bytes of an answer that is handed on.
	mostAnswer = 65535
	// silentLimit is how long a TCP connection without a question is kept (RFC 7766, section 6.2.3).
	silentLimit = 10 * time.Second
)

// relay asks a gateway's name servers what is outside of the zone, and hands their answers on as they are.
type relay struct {
	view  func() *view
	rooms chan struct{}
	ctx   context.Context // of all that is asked
	end   context.CancelFunc
	tasks sync.WaitGroup
}

func newRelay(v func() *view) *relay {
	r := &relay{view: v, rooms: make(chan struct{}, mostAsked)}
	r.ctx, r.end = context.WithCancel(context.Background())
	return r
}

// close ends all that is under way; nothing may begin any more.
func (r *relay) close() {
	r.end()
	r.tasks.Wait()
}

// begin runs something if there is room for it, as one of those that close waits for.
func (r *relay) begin(task func()) bool {
	select {
	case r.rooms <- struct{}{}:
	default:
		return false
	}
	r.tasks.Go(func() {
		defer func() { <-r.rooms }()
		task()
	})
	return true
}

// datagram answers a query that came by UDP. Without an answer who asks asks again.
func (r *relay) datagram(conn *net.UDPConn, from netip.AddrPort, query []byte) {
	r.begin(func() {
		if answer, err := r.ask("udp", query); err == nil {
			_, _ = conn.WriteToUDPAddrPort(answer, from)
		}
	})
}

// ask asks one name server after the other.
func (r *relay) ask(network string, query []byte) (answer []byte, err error) {
	err = errors.New("there is no name server")
	for _, at := range r.view().resolvers {
		if answer, err = r.askOne(network, at, query); err == nil {
			return answer, nil
		}
	}
	return nil, err
}

func (r *relay) askOne(network string, at netip.AddrPort, query []byte) ([]byte, error) {
	ctx, stop := context.WithTimeout(r.ctx, askLimit)
	defer stop()
	conn, err := new(net.Dialer).DialContext(ctx, network, at.String())
	if err != nil {
		return nil, err
	}
	defer conn.Close()
	ended := context.AfterFunc(ctx, func() { conn.Close() })
	defer ended()
	if network == "tcp" {
		if err := writeMessage(conn, query); err != nil {
			return nil, err
		}
		return readMessage(conn)
	}
	if _, err := conn.Write(query); err != nil {
		return nil, err
	}
	answer := make([]byte, mostAnswer)
	for {
		n, err := conn.Read(answer)
		if err != nil {
			return nil, err
		}
		if n >= 12 && slices.Equal(answer[:2], query[:2]) { // a header, of our question's number
			return answer[:n], nil
		}
	}
}

// accept serves questions by TCP until the listener is closed.
func (r *relay) accept(l *net.TCPListener, own []netip.Addr) {
	for {
		conn, err := l.AcceptTCP()
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			time.Sleep(10 * time.Millisecond)
			continue
		}
		from := conn.RemoteAddr().(*net.TCPAddr).AddrPort().Addr().Unmap()
		if !slices.Contains(own, from) || !r.begin(func() { r.stream(conn) }) {
			conn.Close()
		}
	}
}

// stream answers one question after the other.
func (r *relay) stream(conn net.Conn) {
	defer conn.Close()
	ended := context.AfterFunc(r.ctx, func() { conn.Close() })
	defer ended()
	for {
		_ = conn.SetDeadline(time.Now().Add(silentLimit))
		query, err := readMessage(conn)
		if err != nil {
			return
		}
		v := r.view()
		answer := v.zone.Answer(query)
		if len(v.resolvers) > 0 && v.zone.outside(query) {
			if answer, err = r.ask("tcp", query); err != nil {
				return
			}
		}
		_ = conn.SetDeadline(time.Now().Add(silentLimit))
		if answer == nil || writeMessage(conn, answer) != nil {
			return
		}
	}
}

// writeMessage and readMessage put the length in front (RFC 1035, section 4.2.2).
func writeMessage(w io.Writer, message []byte) error {
	_, err := w.Write(append(binary.BigEndian.AppendUint16(nil, uint16(len(message))), message...))
	return err
}

func readMessage(r io.Reader) ([]byte, error) {
	var length [2]byte
	if _, err := io.ReadFull(r, length[:]); err != nil {
		return nil, err
	}
	message := make([]byte, binary.BigEndian.Uint16(length[:]))
	_, err := io.ReadFull(r, message)
	return message, err
}
