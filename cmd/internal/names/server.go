package names

import (
	"errors"
	"io"
	"net"
	"net/netip"
	"slices"
	"sync"
	"syscall"
	"time"

	"github.com/sluice-vpn/sluice/pipeline/errno"
)

// dnsPort is where clients look for a name server by themselves.
const dnsPort = 53

// server answers questions of this machine at the node's own tunnel addresses, by UDP, and by TCP where answers may be long. Its methods
// belong to one goroutine.
type server struct {
	own    []netip.Addr     // asked for
	at     []netip.AddrPort // where it answers
	conns  []io.Closer
	served sync.WaitGroup
	relay  *relay
}

// listen begins to answer from the zone of the time. Where port 53 is taken, or not for this user, it takes another one if anyPort, as
// systemd-resolved can be told that. An address that cannot be used (a system without IPv6) is left out, unless all are.
func listen(own []netip.Addr, anyPort bool, view func() *view) (*server, error) {
	s := &server{own: own, relay: newRelay(view)}
	var failed error
	for _, a := range own {
		conn, err := net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, dnsPort)))
		if anyPort && (errors.Is(err, syscall.EACCES) || errno.InUse(err)) {
			conn, err = net.ListenUDP("udp", net.UDPAddrFromAddrPort(netip.AddrPortFrom(a, 0)))
		}
		if err != nil {
			failed = errors.Join(failed, err)
			continue
		}
		at := conn.LocalAddr().(*net.UDPAddr).AddrPort()
		s.at = append(s.at, netip.AddrPortFrom(at.Addr().Unmap(), at.Port()))
		s.conns = append(s.conns, conn)
		s.served.Go(func() { s.serve(conn, view) })
		if l, err := net.ListenTCP("tcp", net.TCPAddrFromAddrPort(at)); err == nil { // else there are short answers
			s.conns = append(s.conns, l)
			s.served.Go(func() { s.relay.accept(l, own) })
		}
	}
	if len(s.conns) == 0 {
		return nil, failed
	}
	return s, nil
}

// serve answers until the socket is closed. Peers may send to it too: only what comes from this machine, whose packets to itself have one
// of these addresses as their source, gets an answer.
func (s *server) serve(conn *net.UDPConn, view func() *view) {
	buffer := make([]byte, mostQuery+1)
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buffer)
		switch {
		case errors.Is(err, net.ErrClosed):
			return
		case err != nil: // of an earlier answer, or of memory
			time.Sleep(10 * time.Millisecond)
			continue
		case n > mostQuery || !slices.Contains(s.own, from.Addr().Unmap()):
			continue
		}
		v := view()
		if len(v.resolvers) > 0 && v.zone.outside(buffer[:n]) {
			s.relay.datagram(conn, from, slices.Clone(buffer[:n]))
			continue
		}
		if answer := v.zone.Answer(buffer[:n]); answer != nil {
			_, _ = conn.WriteToUDPAddrPort(answer, from) // who asks asks again
		}
	}
}

func (s *server) close() {
	for _, c := range s.conns {
		c.Close()
	}
	s.served.Wait()
	s.relay.close() // now nobody begins a task any more
}
