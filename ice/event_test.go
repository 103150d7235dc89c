package ice

import (
	"runtime"
	"testing"
	"weak"
)

// An agent whose news were taken is not kept by the mailbox: it may be closed, and holds secrets and queues.
func TestMailboxKeepsNothing(t *testing.T) {
	b := NewMailbox()
	var agents []weak.Pointer[Agent]
	for range 3 {
		a := &Agent{config: AgentConfig{Mailbox: b}}
		agents = append(agents, weak.Make(a))
		a.mu.Lock()
		a.postNews()
		a.postNews() // it is there already
		a.mu.Unlock()
	}
	for i := range 3 {
		if e, ok := b.Poll(); !ok || e.Agent != agents[i].Value() {
			t.Fatalf("event %+v, %v", e, ok)
		}
	}
	if e, ok := b.Poll(); ok {
		t.Errorf("one more event: %+v", e)
	}
	runtime.GC()
	for i, a := range agents {
		if a.Value() != nil {
			t.Errorf("agent %d is still there", i)
		}
	}
	runtime.KeepAlive(b)
}
