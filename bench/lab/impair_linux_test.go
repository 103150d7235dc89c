package lab

import (
	"bytes"
	"fmt"
	"io"
	"net"
	"net/netip"
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
	count := func(i Impairment, n int) (arrived int, order bool) {
		t.Helper()
		site.Line.Impair(0, i)
		go func() {
			for k := range n {
				from.WriteToUDPAddrPort(fmt.Appendf(nil, "%05d", k), netip.MustParseAddrPort("198.18.0.1:7001"))
				time.Sleep(time.Millisecond)
			}
		}()
		last, b := "", make([]byte, 100)
		order = true
		for at.SetReadDeadline(time.Now().Add(2 * time.Second)); ; at.SetReadDeadline(time.Now().Add(500 * time.Millisecond)) {
			k, err := at.Read(b)
			if err != nil {
				return arrived, order
			}
			arrived++
			order = order && string(b[:k]) >= last
			last = string(b[:k])
		}
	}
	if n, order := count(Impairment{Delay: time.Millisecond, Jitter: 3 * time.Millisecond}, 200); n != 200 || !order {
		t.Errorf("%d of 200 arrived, in order %v", n, order)
	}
	if n, _ := count(Impairment{Loss: 0.5}, 200); n < 50 || n > 150 {
		t.Errorf("%d of 200 arrived, half should be lost", n)
	}
	if n, _ := count(Impairment{Duplicate: 1}, 100); n != 200 {
		t.Errorf("%d of 100 arrived, all should twice", n)
	}
	if n, order := count(Impairment{Delay: 5 * time.Millisecond, Reorder: 0.2}, 200); n != 200 || order {
		t.Errorf("%d of 200 arrived, in order %v", n, order)
	}
	if n, _ := count(Impairment{Corrupt: 1}, 200); n == 200 {
		t.Error("damaged frames all arrive, so none was damaged")
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
