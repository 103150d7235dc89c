package lab

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"
)

// A line does to frames what it is told, and TCP with its checksums gets through unharmed.
func TestLine(t *testing.T) {
	Need(t)
	internet, err := NewInternet()
	if err != nil {
		t.Fatal(err)
	}
	defer internet.Close()
	site, err := internet.AddDistantSite("far", NoNAT, Impairment{Delay: 20 * time.Millisecond})
	if err != nil {
		t.Fatal(err)
	}
	at := listen(t, internet.Hub, "198.18.0.1:7001")
	from := listen(t, site.Node, ":0")
	begin := time.Now()
	if !comes(t, from, netip.MustParseAddrPort("198.18.0.1:7001"), at) {
		t.Fatal("nothing arrives")
	}
	if took := time.Since(begin); took < 20*time.Millisecond {
		t.Errorf("arrived after %v", took)
	}
	round := 0
	// count sends n datagrams, and then marks until one arrives and so have as many as must.
	count := func(i Impairment, n, must int) (arrived int, order bool) {
		t.Helper()
		round++
		site.Line.Impair(0, i)
		done := make(chan struct{})
		var sender sync.WaitGroup
		sender.Go(func() {
			for k := 0; ; k++ {
				from.WriteToUDPAddrPort(fmt.Appendf(nil, "%d %05d", round, min(k, n)), netip.MustParseAddrPort("198.18.0.1:7001"))
				select {
				case <-done:
					return
				case <-time.After(time.Millisecond):
				}
			}
		})
		defer sender.Wait()
		defer close(done)
		last, b, marked, mark := "", make([]byte, 100), false, fmt.Sprintf("%d %05d", round, n)
		order = true
		for at.SetReadDeadline(time.Now().Add(patience)); !marked || arrived < must; {
			k, err := at.Read(b)
			switch {
			case err != nil:
				return arrived, order
			case !bytes.HasPrefix(b[:k], fmt.Appendf(nil, "%d ", round)): // of an earlier round
				continue
			case string(b[:k]) == mark:
				marked = true
				continue
			}
			arrived++
			order = order && string(b[:k]) >= last
			last = string(b[:k])
		}
		return arrived, order
	}
	if n, order := count(Impairment{Delay: time.Millisecond, Jitter: 3 * time.Millisecond}, 200, 200); n != 200 || !order {
		t.Errorf("%d of 200 arrived, in order %v", n, order)
	}
	if n, _ := count(Impairment{Loss: 0.5}, 200, 0); n < 50 || n > 150 {
		t.Errorf("%d of 200 arrived, half should be lost", n)
	}
	if n, _ := count(Impairment{Duplicate: 1}, 100, 200); n != 200 {
		t.Errorf("%d of 100 arrived, all should twice", n)
	}
	if n, order := count(Impairment{Delay: 5 * time.Millisecond, Reorder: 0.2}, 200, 200); n != 200 || order {
		t.Errorf("%d of 200 arrived, in order %v", n, order)
	}
	if n, _ := count(Impairment{Corrupt: 0.5}, 200, 0); n < 50 || n > 150 {
		t.Errorf("%d of 200 arrived, half should be damaged and so dropped", n)
	}
	site.Line.Impair(0, Impairment{Delay: time.Millisecond, Loss: 0.01, Reorder: 0.01})
	transfer(t, internet.Hub, site.Node)
}

// transfer sends a megabyte by TCP.
func transfer(t *testing.T, to, from *Namespace) {
	t.Helper()
	var listener net.Listener
	err := to.Run(func() (err error) { listener, err = net.Listen("tcp", "198.18.0.1:0"); return err })
	if err != nil {
		t.Fatal(err)
	}
	defer listener.Close()
	data := bytes.Repeat([]byte("0123456789abcdef"), 1<<16)
	go from.Run(func() error {
		conn, err := net.Dial("tcp", listener.Addr().String())
		if err == nil {
			defer conn.Close()
			conn.Write(data)
		}
		return err
	})
	conn, err := listener.Accept()
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	conn.SetDeadline(time.Now().Add(60 * time.Second))
	if got, err := io.ReadAll(conn); err != nil || !bytes.Equal(got, data) {
		t.Errorf("%d of %d bytes arrived as they were sent (%v)", len(got), len(data), err)
	}
}
