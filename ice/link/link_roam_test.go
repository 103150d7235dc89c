package link

import (
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/pipeline/udp/udptest"
)

// A path that is needed and over which nothing is heard is checked within half a second, in either direction of the data, and has a
// second agent two seconds after it went silent. One that answers has none.
func TestQuiet(t *testing.T) {
	for _, answers := range []bool{true, false} {
		runLinks(t, plain, func(w *linkWorld) {
			w.connect()
			sleep(3 * time.Second)
			silent := time.Now()
			w.edges(func() { w.stun = answers })
			w.network.Hook(func(*udptest.Datagram) bool { return false })
			for i := range 30 {
				w.a.send(i)
				sleep(100 * time.Millisecond)
			}
			checks := w.a.requests(RequestCheck)
			if len(checks) == 0 {
				t.Fatal("the pair was not checked")
			}
			if last := checks[len(checks)-1]; answers && time.Since(last.at) > time.Second || last.Agent != 1 && answers {
				t.Errorf("answers %v: the last check %v ago, of agent %d", answers, time.Since(last.at), last.Agent)
			}
			agents := w.a.requests(RequestAgent)
			if answers != (len(agents) == 1) {
				t.Fatalf("answers %v: %d agents were asked for", answers, len(agents))
			}
			if !answers {
				if first, second := checks[0].at, agents[1].at; first.Sub(silent) > time.Second || second.Sub(silent) > 2500*time.Millisecond {
					t.Errorf("checked after %v, another agent after %v", first.Sub(silent), second.Sub(silent))
				}
			}
			w.network.Hook(nil)
			w.edges(func() { w.stun = true })
			sleep(time.Second)
			w.wantUp()
		})
	}
}
