package relay

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"slices"

	"github.com/sluice-vpn/sluice/ice/stun"
)

// This file answers Binding requests at and from another port, and another address where there is one, so that a client can find out
// what the NATs before it let in (RFC 5780, sections 4.3, 4.4 and 6.1). Who asks is bounded as at the first port, and an answer by
// maxAmplification. There is no RESPONSE-ORIGIN: with it an IPv6 answer would be longer than that, and the client's socket tells.

// Flags of CHANGE-REQUEST (RFC 5780, section 7.2).
const changeAddress, changePort = 0x4, 0x2

// mirror is the other port of one address family, beside the gate that has the first. It belongs to its reading goroutine but for the
// socket, by which the gate sends, too.
type mirror struct {
	server *Server
	gate   *gate
	sock   *socket
	begun  bool          // of Run's goroutine: somebody reads
	ended  chan struct{} // closed when nobody does any more
}

// openMirrors opens the other ports. One that cannot be opened is told, and done without; another address must be there.
func (s *Server) openMirrors() error {
	s.mirrors, s.others = map[*gate]*mirror{}, map[bool]netip.Addr{}
	if s.cfg.OtherPort == 0 {
		return nil
	}
	for _, a := range s.cfg.OtherAddrs {
		sock, err := openSocket(netip.AddrPortFrom(a, 0), socketConfig{})
		if err != nil {
			return fmt.Errorf("relay: Config.OtherAddrs: %v is no address of this machine: %w", a, err)
		}
		sock.conn.Close()
		if !slices.ContainsFunc(s.gates, func(g *gate) bool { return g.sock.local.Addr().IsUnspecified() && g.sock.local.Addr().Is4() == a.Is4() }) {
			return fmt.Errorf("relay: Config.OtherAddrs: %v would not be heard: Config.Listen has not all addresses of its family", a)
		}
		s.others[a.Is4()] = a
	}
	for _, g := range s.gates {
		at := netip.AddrPortFrom(g.sock.local.Addr(), s.cfg.OtherPort)
		sock, err := openSocket(at, socketConfig{receiveBuffer: mirrorBuffer, sendBuffer: mirrorBuffer, localAddress: true})
		if err != nil {
			s.cfg.Logger.Warn("relay: no second port, so that nodes cannot tell what NATs let in", "address", at, "error", err)
			continue
		}
		s.mirrors[g] = &mirror{server: s, gate: g, sock: sock, ended: make(chan struct{})}
	}
	return nil
}

// mirrorBuffer is the size of each buffer of the other port's socket, bytes: what is asked there is a few packets.
const mirrorBuffer = 64 << 10

// serve answers until the socket is closed.
func (m *mirror) serve() {
	defer close(m.ended)
	buffer := make([]byte, maxMessage+1)
	for {
		r, err := m.sock.receive(buffer)
		if m.server.receiveFailed(err) {
			return
		}
		if err == nil && m.gate.welcome(r) {
			m.take(r)
		}
	}
}

func (m *mirror) take(r received) {
	stats := &m.server.stats
	of := request{src: r.src, local: r.local, size: len(r.data)}
	switch why := of.Parse(r.data, stun.Server); {
	case why != stun.DropNone && why != stun.DropMethod:
		stats.drop(dropMalformed)
	case why == stun.DropMethod || of.Method != stun.Binding || of.Class != stun.Request:
		stats.drop(dropMethod)
	case !m.server.bindings.allow(r.src.Addr(), m.server.since()):
		stats.drop(dropBindingLimited)
	default:
		m.answer(&of, changeOf(&of.Message), true)
	}
}

// changeOf is what a request asks to be changed, 0 for nothing.
func changeOf(m *stun.Message) uint32 {
	v, _ := m.Uint32(stun.ChangeRequest)
	return v & (changeAddress | changePort)
}

// reflected answers the present request if it is one that asks for an answer from elsewhere.
func (g *gate) reflected() bool {
	m := g.server.mirrors[g]
	if m == nil || g.now.Method != stun.Binding {
		return false
	}
	change := changeOf(&g.now.Message)
	if change != 0 {
		m.answer(&g.now, change, false)
	}
	return change != 0
}

// answer answers a Binding request that came to the other port, or to the first.
func (m *mirror) answer(r *request, change uint32, atOther bool) {
	if r.Unknown() { // CHANGE-REQUEST, too, is then not obeyed
		change = 0
	}
	sock, local := m.gate.sock, r.local
	if atOther != (change&changePort != 0) {
		sock = m.sock
	}
	if change&changeAddress != 0 {
		if local = m.otherLocal(r.local); !local.IsValid() {
			m.server.stats.drop(dropMethod)
			return
		}
	}
	var w stun.Builder
	if r.Unknown() {
		w = stun.Build(nil, stun.Error, stun.Binding, r.ID)
		w.Unknown(&r.Message) // and at most twice as long as the request
		m.server.stats.answers[answerOf(stun.CodeUnknownAttribute)].Add(1)
	} else {
		w = stun.Build(nil, stun.Success, stun.Binding, r.ID)
		w.XORAddress(stun.XORMappedAddress, r.src)
		m.addOther(&w, r, atOther)
		m.server.stats.answers[answerBinding].Add(1)
	}
	if err := sock.sendOne(w.Bytes(), r.src, local); err != nil {
		m.server.stats.drop(dropSendFailed)
	}
}

// addOther adds OTHER-ADDRESS to an answer (RFC 5780, section 7.4), where it stays short enough, also with a FINGERPRINT: the address and the port that the
// request did not come to. A server with one address names that with the other port.
func (m *mirror) addOther(w *stun.Builder, r *request, atOther bool) {
	v4 := m.gate.sock.local.Addr().Is4()
	address, port := m.server.reach.Load().public[v4], m.sock.local.Port()
	if other := m.server.others[v4]; other.IsValid() && r.local != other {
		address = other
	}
	if atOther {
		port = m.gate.sock.local.Port()
	}
	a := address.AsSlice()
	if !address.IsValid() || len(w.Bytes())+8+len(a)+8 > maxAmplification*r.size {
		return
	}
	family := byte(2) // IPv6, RFC 8489, section 14.1
	if address.Is4() {
		family = 1
	}
	w.Add(stun.OtherAddress, append(binary.BigEndian.AppendUint16([]byte{0, family}, port), a...))
}

// otherLocal is the address to send from instead of local; invalid: there is none.
func (m *mirror) otherLocal(local netip.Addr) netip.Addr {
	v4 := m.gate.sock.local.Addr().Is4()
	other := m.server.others[v4]
	if other.IsValid() && local == other {
		return m.server.reach.Load().bind[v4]
	}
	return other
}

// withOther is the answer p of the first port to a Binding request with OTHER-ADDRESS; it may use out.
func (m *mirror) withOther(out, p []byte, r *request) []byte {
	w := stun.Edit(rewrite(out, p, withoutFingerprint))
	m.addOther(&w, r, false)
	if stun.Find(p, stun.Fingerprint) != nil {
		w.Fingerprint()
	}
	return w.Bytes()
}

// withoutFingerprint leaves out FINGERPRINT, which is to be made anew.
func withoutFingerprint(kind stun.Attr, value []byte) ([]byte, bool) {
	return value, kind != stun.Fingerprint
}
