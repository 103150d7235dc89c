package ice

import (
	"sync"
	"sync/atomic"
	"testing"
	"testing/synctest"
	"time"

	"github.com/sluice-vpn/sluice/pipeline/udp/udptest"
)

// TestCloseAgent: one agent is closed and the other stays, as often and by as many as wish it.
func TestCloseAgent(t *testing.T) {
	world(t, func(t *testing.T, _ *udptest.Network, a, b *node) {
		l := newLink(a, b)
		l.a.CloseAgent(1) // there is none
		l.restart(1)
		if !signal(a, b, l.peers(), 5*time.Second, l.connected) {
			t.Fatal("not connected")
		}
		path := l.a.Path()
		if _, err := l.a.Restart(2); err != nil {
			t.Fatal(err)
		}
		var closers sync.WaitGroup
		for range 3 {
			closers.Go(func() { l.a.CloseAgent(2) })
		}
		closers.Wait()
		if n := a.mux.agents(); n != 1 || l.a.inUse() != 1 || l.a.Path() != path {
			t.Errorf("%d agents, %d in use, path %v", n, l.a.inUse(), l.a.Path())
		}
		if err := l.a.Connect(2, Credentials{"abcdefgh", "abcdefghijklmnopqrstuvwxyz"}); err != errNumber {
			t.Errorf("Connect of a closed agent: %v", err)
		}
		l.restart(3)
		if !signal(a, b, l.peers(), 5*time.Second, func() bool { return l.a.inUse() == 3 && l.b.inUse() == 3 }) {
			t.Fatal("the second agent did not take over")
		}
		l.a.CloseAgent(1) // it was closed by the other's taking over
		synctest.Wait()
		if n := a.mux.agents(); n != 1 || l.a.inUse() != 3 {
			t.Errorf("%d agents, %d in use", n, l.a.inUse())
		}
		l.close()
		l.a.CloseAgent(3)
		if n := a.mux.remembered(); n != 0 {
			t.Errorf("the mux remembers %d", n)
		}
	})
}

// TestHeard: only what is heard for the agent in use is told, and only while it is heard.
func TestHeard(t *testing.T) {
	world(t, func(t *testing.T, network *udptest.Network, a, b *node) {
		var heard atomic.Int32
		l := newLink(a, b)
		l.a = NewConnection(AgentConfig{
			Mux: a.mux, Mailbox: a.mailbox, Controlling: true, Heard: func() { heard.Add(1) },
		})
		l.restart(1)
		if !signal(a, b, l.peers(), 5*time.Second, l.connected) {
			t.Fatal("not connected")
		}
		before := heard.Load()
		for range 5 {
			time.Sleep(3 * time.Second) // pion leaves up to 6 s between them, with two sides that ask
		}
		synctest.Wait()
		if n := heard.Load() - before; n < 3 {
			t.Errorf("heard %d times in 15 s", n)
		}
		network.Hook(func(*udptest.Datagram) bool { return false })
		time.Sleep(time.Second)
		synctest.Wait()
		before = heard.Load()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if n := heard.Load() - before; n != 0 {
			t.Errorf("heard %d times when nothing came", n)
		}
		network.Hook(nil)
		l.a.CloseAgent(1)
		before = heard.Load()
		time.Sleep(10 * time.Second)
		synctest.Wait()
		if n := heard.Load() - before; n != 0 {
			t.Errorf("a closed agent heard %d times", n)
		}
		l.close()
	})
}
