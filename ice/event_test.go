package ice

import (
	"runtime"
	"testing"
	"weak"
)

// An agent whose news were taken is not kept by the mailbox: it may be closed, and holds secrets and queues.
func TestMailboxKeepsNothing(t *testing.T) {
	b, c := NewMailbox(), &Connection{}
	c.config.Mailbox = b
	var agents []weak.Pointer[agent]
	for generation := range uint32(3) {
		a := &agent{connection: c, generation: generation}
		agents = append(agents, weak.Make(a))
		c.mu.Lock()
		a.postNews()
		a.postNews() // it is there already
		c.mu.Unlock()
	}
	for generation := range uint32(3) {
		if e, ok := b.Poll(); !ok || e.Generation != generation || e.Connection != c {
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
