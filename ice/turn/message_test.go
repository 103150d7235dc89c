package turn

import (
	"testing"

	"github.com/sluice-vpn/sluice/ice/stun"
)

// TestIndication: a payload that fits none makes none.
func TestIndication(t *testing.T) {
	if got := indication(stun.Send, stun.ID{}, peerA, make([]byte, maxSend+1)); got != nil {
		t.Errorf("too long a payload: %d bytes, want none", len(got))
	}
	var m stun.Message
	if drop := m.Parse(indication(stun.Send, stun.ID{9}, peerA, []byte("data")), stun.Server); drop != stun.DropNone || string(m.Get(stun.Data)) != "data" {
		t.Errorf("dropped as %d, data %q", drop, m.Get(stun.Data))
	}
}
