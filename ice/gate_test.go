package ice

import (
	"encoding/binary"
	"hash/crc32"
	"net/netip"
	"testing"
	"testing/synctest"
	"time"

	witness "github.com/pion/stun"

	"github.com/sluice-vpn/sluice/ice/stun"
	"github.com/sluice-vpn/sluice/pipeline"
)

// TestGate: what an agent exchanges over a relay is under the rules of the mux, and apart from its sockets.
func TestGate(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		out := newSink()
		m := NewMux(MuxConfig{Sender: out})
		a, err := m.add("ufrag", testPassword, new(Share), func() {}, func() {})
		if err != nil {
			t.Fatal(err)
		}
		var sent [][]byte
		peer, relayed := netip.MustParseAddrPort("192.0.2.9:7"), netip.MustParseAddrPort("192.0.2.1:50000")
		r := (&Gate{m, a}).Open(relayed, func(to netip.AddrPort, data []byte) {
			if to != peer {
				t.Errorf("sent to %v", to)
			}
			sent = append(sent, append([]byte(nil), data...))
		}, func(netip.AddrPort) {})
		check := witness.MustBuild(witness.TransactionID, witness.BindingRequest)
		r.Send(peer, check.Raw)
		r.Send(peer, pionAnswer(t, stun.ID{1}, peer))
		r.Send(netip.MustParseAddrPort("127.0.0.1:7"), check.Raw)
		r.Send(netip.MustParseAddrPort("[2001:db8::1]:7"), check.Raw)
		r.Send(peer, []byte("data that is no STUN at all"))
		if len(sent) != 2 || len(out.runs) != 0 || drops(m, dropDestination) != 2 || drops(m, dropNotSTUN) != 1 {
			t.Fatalf("%d sent, %d over the sockets", len(sent), len(out.runs))
		}
		time.Sleep(30 * time.Millisecond)
		answer := pionAnswer(t, stun.ID(check.TransactionID), peer)
		m.Receive(pipeline.Stray{Data: answer, Src: peer, Dst: aliceAddr})
		if drops(m, dropTransaction) != 1 {
			t.Error("an answer came by another way than the check")
		}
		other := (&Gate{m, a}).Open(netip.MustParseAddrPort("192.0.2.2:50000"), nil, nil)
		if passes(other, peer, answer) {
			t.Error("an answer came by another relay than the check")
		}
		if !passes(r, peer, answer) || passes(r, peer, answer) {
			t.Error("an answer passes once")
		}
		if a.lastSeen != time.Now() || a.roundTrip != 30*time.Millisecond {
			t.Errorf("last seen %v, round trip %v", a.lastSeen, a.roundTrip)
		}
		request := pionCheck(t, "ufrag", testPassword)
		if !passes(r, peer, request) {
			t.Error("an authentic check was dropped")
		}
		m.Receive(pipeline.Stray{Data: request, Src: peer, Dst: aliceAddr})
		if drops(m, dropLocalAddress) != 1 {
			t.Error("the sockets delivered to a relayed address")
		}
		gateDrops(t, m, r, peer)
		for range 3 * maxUnanswered {
			r.Send(peer, witness.MustBuild(witness.TransactionID, witness.BindingRequest).Raw)
			time.Sleep(checkPace)
		}
		if n := len(sent); n > maxUnanswered+10 || n < quickChecks {
			t.Errorf("%d datagrams to an address that is silent", n)
		}
		m.RemoveConnByUfrag("ufrag")
		if passes(r, peer, request) {
			t.Error("an agent that is gone got a check")
		}
		m.Close()
	})
}

// passes: nothing that passes is translated while the peer has not moved.
func passes(r *Relayed, from netip.AddrPort, data []byte) bool {
	var msg stun.Message
	if why := msg.Parse(data, stun.Peer); why != stun.DropNone {
		r.Refused(why)
		return false
	}
	known, ok := r.Receive(from, &msg)
	return ok && known == from
}

// gateDrops: what may not pass, and under which name it is counted.
func gateDrops(t *testing.T, m *Mux, r *Relayed, peer netip.AddrPort) {
	t.Helper()
	refused := witness.MustBuild(witness.TransactionID, witness.BindingRequest)
	r.Send(peer, refused.Raw)
	synctest.Wait()
	time.Sleep(time.Second)
	short := build(0x0101, attribute(stun.XORMappedAddress, "\x00\x01")) // pion/stun v0.6.1 panics on it
	wrong := pionCheck(t, "ufrag", testPassword)
	binary.BigEndian.PutUint32(wrong[len(wrong)-4:], crc32.ChecksumIEEE(wrong))
	for _, test := range []struct {
		name string
		from netip.AddrPort
		data []byte
		want dropReason
	}{
		{"nothing", peer, nil, dropNotSTUN},
		{"a short address", peer, short, dropMalformed},
		{"a wrong fingerprint", peer, wrong, dropFingerprint},
		{"an indication", peer, build(0x0011), dropIndication},
		{"a wrong password", peer, pionCheck(t, "ufrag", testPassword+"x"), dropUnauthentic},
		{"no source", netip.AddrPort{}, pionCheck(t, "ufrag", testPassword), dropSource},
		{"another agent's", peer, pionCheck(t, "nobody", testPassword), dropNone},
		{"an answer to nothing", peer, pionAnswer(t, stun.ID{9}, peer), dropNone},
		{"a refusal", peer, witness.MustBuild(refused, witness.BindingError).Raw, dropErrorResponse},
	} {
		before, all := drops(m, test.want), uint64(0)
		for why := range dropReasons {
			all -= drops(m, why)
		}
		if passes(r, test.from, test.data) {
			t.Errorf("%s: passed", test.name)
		}
		for why := range dropReasons {
			all += drops(m, why)
		}
		if counted := drops(m, test.want) - before; test.want != dropNone && counted != 1 || test.want == dropNone && all != 0 {
			t.Errorf("%s: counted %d times as %s, %d in all", test.name, counted, dropTable[test.want].reason, all)
		}
	}
}
