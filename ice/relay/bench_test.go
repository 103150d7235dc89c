package relay

import (
	"net/netip"
	"testing"
	"time"
)

// BenchmarkRelay sends runs of 1400-byte datagrams from a client through a channel to a peer, or back, on loopback, 8 runs in
// flight. All three ends share the machine.
func BenchmarkRelay(b *testing.B) {
	for _, offload := range []bool{true, false} {
		name := map[bool]string{true: "runs", false: "single"}[offload]
		b.Run("to_peer/"+name, func(b *testing.B) { benchmarkRelay(b, offload, false) })
		b.Run("to_client/"+name, func(b *testing.B) { benchmarkRelay(b, offload, true) })
	}
}

func benchmarkRelay(b *testing.B, offload, back bool) {
	s := start(b, func(c *Config) { c.NoOffload = !offload })
	cfg := socketConfig{receiveBuffer: 8 << 20, sendBuffer: 4 << 20}
	if offload {
		cfg.offloads = probeOffloads()
	}
	open := func() *socket {
		sock, err := openSocket(netip.AddrPortFrom(loopback4, 0), cfg)
		if err != nil {
			b.Fatal(err)
		}
		b.Cleanup(func() { sock.conn.Close() })
		return sock
	}
	c, clientEnd, peerEnd := dial(b, s, 0, "bench"), open(), open()
	c.conn.Close()
	c.conn = clientEnd.conn
	relayed := c.allocate()
	if c.bind(0x4001, peerEnd.local) != 0 {
		b.Fatal("ChannelBind")
	}
	const size, count, flight = 1400, 40, 8
	from, to, dst, one := clientEnd, peerEnd, c.server, channelData(0x4001, make([]byte, size))
	if back {
		from, to, dst, one = peerEnd, clientEnd, relayed, make([]byte, size)
	}
	var run []byte
	for range count {
		run = append(run, one...)
	}
	oob, in := make([]byte, 128), make([]byte, 65536)
	b.SetBytes(size * count * flight)
	lost, total := 0, 0
	for b.Loop() {
		for range flight {
			from.send(run, len(one), dst, netip.Addr{}, oob)
		}
		for got := 0; got < count*flight; {
			to.conn.SetReadDeadline(time.Now().Add(50 * time.Millisecond))
			r, err := to.receive(in)
			if err != nil {
				lost += count*flight - got
				break
			}
			got += segments(len(r.data), r.segment)
		}
		total += count * flight
	}
	b.ReportMetric(float64(total)/b.Elapsed().Seconds(), "datagrams/s")
	b.ReportMetric(float64(lost)/float64(total), "lost/datagram")
}
