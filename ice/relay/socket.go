package relay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"syscall"

	"github.com/sluice-vpn/sluice/ice/stun"
	"github.com/sluice-vpn/sluice/pipeline/udp"
)

const (
	// maxRun is the most bytes and maxSegments the most datagrams that leave in one UDP_SEGMENT run.
	maxRun      = udp.MaxDatagram
	maxSegments = udp.MaxSegments
)

// offloads are what the kernel may be trusted with.
type offloads struct{ segment, gro bool }

// probeOffloads asks package udp, which knows the kernels whose offloads corrupt data, by opening sockets for a moment.
func probeOffloads() offloads {
	pairs, err := udp.Listen(udp.Config{})
	if err != nil {
		return offloads{}
	}
	var o offloads
	for _, pair := range pairs {
		for _, s := range []udp.Socket{pair.V4, pair.V6} {
			if s != nil {
				o = offloads{s.Offloads().SegmentSend, s.Offloads().GROReceive}
				s.Close()
			}
		}
	}
	return o
}

// socketConfig says how a socket is opened.
type socketConfig struct {
	offloads
	receiveBuffer, sendBuffer int  // bytes asked for
	localAddress              bool // tell and obey the local address of each datagram (PKTINFO)
}

// socket is one UDP socket of one family. One goroutine receives; any may send.
type socket struct {
	// frozen
	conn    *net.UDPConn
	raw     syscall.RawConn
	local   netip.AddrPort
	granted int // receive buffer in bytes, as asked for; 0 if the system does not tell
	pktinfo bool

	// of the receiving goroutine
	oob [128]byte

	// atomic: whether UDP_SEGMENT runs may be sent; cleared by the first that is refused
	segment atomic.Bool
}

// scratch is working memory for one receive and what is sent because of it. It comes from a pool, so that an idle
// allocation holds none.
type scratch struct {
	in  [udp.BufferSize]byte
	out [udp.BufferSize]byte
	oob [128]byte
}

var scratches = sync.Pool{New: func() any { return new(scratch) }}

// openSocket binds a socket to addr; an IPv6 socket takes no IPv4. Errors are those of package net.
func openSocket(addr netip.AddrPort, cfg socketConfig) (*socket, error) {
	network := "udp4"
	if addr.Addr().Is6() {
		network = "udp6"
	}
	s := &socket{}
	var lc net.ListenConfig
	lc.Control = func(_, _ string, raw syscall.RawConn) error { return s.setOptions(raw, addr.Addr().Is6(), cfg) }
	conn, err := lc.ListenPacket(context.Background(), network, addr.String())
	if err != nil {
		return nil, fmt.Errorf("relay: %w", err)
	}
	s.conn = conn.(*net.UDPConn)
	if s.raw, err = s.conn.SyscallConn(); err != nil {
		conn.Close()
		return nil, fmt.Errorf("relay: listen on %v: %w", addr, err)
	}
	s.local = stun.Unmap(s.conn.LocalAddr().(*net.UDPAddr).AddrPort())
	return s, nil
}

// received is one datagram, or several of one flow that the kernel joined.
type received struct {
	data    []byte
	segment int // length of each datagram but the last; at least 1 unless data is empty
	src     netip.AddrPort
	local   netip.Addr // where it came to; invalid if the system does not tell
}

// errTruncated is returned for a datagram that was longer than the buffer.
var errTruncated = errors.New("relay: datagram truncated")

// receive blocks for the next message. buf is borrowed, the result a view into it.
func (s *socket) receive(buf []byte) (received, error) {
	n, oobn, flags, src, err := s.conn.ReadMsgUDPAddrPort(buf, s.oob[:])
	if err != nil {
		return received{}, err
	}
	r := received{data: buf[:n], segment: max(n, 1), src: stun.Unmap(src)}
	if wasTruncated(flags, n, len(buf)) {
		return r, errTruncated
	}
	parseControl(s.oob[:oobn], &r)
	return r, nil
}

// send sends data to dst as datagrams of segment bytes, the last may be shorter, from the local address given if it is
// valid. It returns how many datagrams the kernel did not take. oob is scratch memory.
func (s *socket) send(data []byte, segment int, dst netip.AddrPort, local netip.Addr, oob []byte) (failed int) {
	if !s.pktinfo {
		local = netip.Addr{}
	}
	for len(data) > segment && s.segment.Load() {
		run := min(len(data), segment*min(maxSegments, max(1, maxRun/segment)))
		control := appendControl(oob[:0], local, segment, run > segment)
		if _, _, err := s.conn.WriteMsgUDPAddrPort(data[:run], control, dst); err != nil {
			if s.givesUpRuns(err) {
				break
			}
			failed += (run + segment - 1) / segment
		}
		data = data[run:]
	}
	for len(data) > 0 {
		n := min(segment, len(data))
		control := appendControl(oob[:0], local, n, false)
		if _, _, err := s.conn.WriteMsgUDPAddrPort(data[:n], control, dst); err != nil {
			failed++
		}
		data = data[n:]
	}
	return failed
}

// sendOne sends one datagram, which may be empty.
func (s *socket) sendOne(data []byte, dst netip.AddrPort, local netip.Addr) error {
	if !s.pktinfo || !local.IsValid() {
		_, err := s.conn.WriteToUDPAddrPort(data, dst)
		return err
	}
	var oob [64]byte
	_, _, err := s.conn.WriteMsgUDPAddrPort(data, appendControl(oob[:0], local, len(data), false), dst)
	return err
}
