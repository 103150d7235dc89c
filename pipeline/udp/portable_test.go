package udp

import (
	"net"
	"testing"
)

// TestPortableFull: without its pumps the ring fills; a short count and a dropped SendOne tell so, and Writable delivers
// once a run has left.
func TestPortableFull(t *testing.T) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	s := newPortable(conn)
	runs := make([]Run, portableQueue+1)
	for i := range runs {
		runs[i] = Run{Data: []byte("aab"), SegmentSize: 2, Dst: loopback(s, v4)}
	}
	if n, err := s.Send(runs); n != portableQueue || err != nil {
		t.Fatalf("Send of %d runs: %d, %v", len(runs), n, err)
	}
	if err := s.SendOne(runs[0]); err == nil || s.stats.SendNoBuffer.Load() != 1 {
		t.Fatalf("SendOne into a full ring: %v", err)
	}
	select {
	case <-s.Writable():
		t.Fatal("writable while full")
	default:
	}
	m := <-s.sending
	s.writeRun(m)
	s.recycleSent(m)
	<-s.Writable()
	if n, err := s.Send(runs[portableQueue:]); n != 1 || err != nil {
		t.Fatalf("Send after a run left: %d, %v", n, err)
	}
	if s.stats.SendDatagrams.Load() != 2 {
		t.Fatalf("%d datagrams counted", s.stats.SendDatagrams.Load())
	}
}

// TestPortableTooLong: more than a datagram can hold is dropped and counted, and takes no place in the ring.
func TestPortableTooLong(t *testing.T) {
	p := open(t, Config{Portable: true})
	for range 2 * portableQueue {
		sendAll(t, p.V4, []Run{{Data: make([]byte, MaxDatagram+1), Dst: dstAny}})
	}
	if n := p.V4.Stats().SendTooBig.Load(); n != 2*portableQueue {
		t.Fatalf("%d counted, want %d", n, 2*portableQueue)
	}
}
