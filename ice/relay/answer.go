package relay

import (
	"encoding/binary"
	"net"
	"net/netip"
	"time"

	"github.com/sluice-vpn/sluice/ice/stun"
	"github.com/sluice-vpn/sluice/pipeline/frame"
)

// maxAmplification is how many times longer than the request an answer to somebody unauthenticated may be, in bytes of UDP
// payload.
const maxAmplification = 3

// WriteTo sends what pion has for a client: answers from the goroutine that reads, data from others. A ChannelData message is
// looked for first: it may be shorter than a STUN header, and its channel number may look like the class of an answer.
func (g *gate) WriteTo(p []byte, addr net.Addr) (int, error) {
	udpAddr, ok := addr.(*net.UDPAddr)
	switch {
	case !ok:
	case isChannelData(p): // a channel was bound while the datagram was on its way through pion
		if _, data, ok := parseChannelData(p); ok {
			g.sendData(p[:frame.ChannelHeaderSize+len(data)], udpAddr) // no padding over UDP
		}
	default:
		h, ok := stun.ParseHeader(p)
		switch {
		case !ok:
		case h.Class == stun.Success || h.Class == stun.Error:
			g.answer(h, p)
		default:
			zeroPadding(p)
			g.sendData(p, udpAddr)
		}
	}
	return len(p), nil
}

// sendData sends to the client of an allocation, from the address that the client knows.
func (g *gate) sendData(p []byte, client *net.UDPAddr) {
	dst := stun.Unmap(client.AddrPort())
	var local netip.Addr
	if a := g.find(dst); a != nil {
		local = a.local
	}
	g.send(p, dst, local)
}

func (g *gate) send(p []byte, dst netip.AddrPort, local netip.Addr) {
	if err := g.sock.sendOne(p, dst, local); err != nil {
		g.server.stats.drop(dropSendFailed)
	}
}

// answer finishes pion's answer to the present request and sends it.
func (g *gate) answer(h stun.Header, p []byte) {
	r := &g.now
	if !r.active || h.ID != r.ID || r.Class != stun.Request {
		return
	}
	r.answered = true
	switch {
	case h.Class == stun.Success && r.Method == stun.Binding:
		g.server.stats.answers[answerBinding].Add(1)
		if m := g.server.mirrors[g]; m != nil {
			p = m.withOther(g.work.out[:0], p, r)
		}
	case h.Class == stun.Success:
		g.server.stats.answers[answerSuccess].Add(1)
		g.noteLifetime(p)
		if r.Has(stun.EvenPort) && stun.Find(p, stun.ReservationToken) != nil { // nothing was reserved, and pion promises it all the same
			p = sign(rewrite(nil, p, withoutToken), r.key)
		}
	case r.authenticated:
		p = g.refuseClient(p)
	default:
		if p = g.refuseStranger(p); p == nil {
			return
		}
	}
	g.send(p, r.src, r.local)
}

// noteLifetime keeps until when an allocation lives, as pion tells the client. An Allocate that is repeated is answered alike,
// and prolongs nothing.
func (g *gate) noteLifetime(p []byte) {
	a, lifetime := g.find(g.now.src), stun.Find(p, stun.Lifetime)
	if a != nil && (a.expires == 0 || g.now.Method == stun.Refresh) && len(lifetime) == 4 {
		a.expires = g.server.since() + int64(binary.BigEndian.Uint32(lifetime))*int64(time.Second)
	}
}

// refuseClient finishes an error response to a request that was authenticated. RFC 8489 section 9.2.4: any response to it
// carries MESSAGE-INTEGRITY; pion leaves it out of most of these.
func (g *gate) refuseClient(p []byte) []byte {
	r := &g.now
	code := stun.CodeOf(p)
	switch {
	case r.code != 0:
		code = r.code
	case code == stun.CodeUnauthorized: // what pion says to a ChannelBind whose peer is not permitted
		code = stun.CodeForbidden
	}
	g.server.stats.answers[answerOf(code)].Add(1)
	if code != stun.CodeOf(p) {
		return g.errorResponse(code)
	}
	if stun.Find(p, stun.Integrity) != nil {
		return p
	}
	p = append(g.work.out[:0], p...)
	zeroPadding(p)
	return sign(p, r.key)
}

// errorResponse is an error response to the present request, which was authenticated.
func (g *gate) errorResponse(code int) []byte {
	w := g.errorOf(code, reasons[code])
	w.Sign(g.now.key)
	return w.Bytes()
}

// refuseStranger finishes an error response to a request that was not authenticated, or returns nil if it must not be sent.
func (g *gate) refuseStranger(p []byte) []byte {
	r := &g.now
	if r.Has(stun.Integrity) && !g.mayRefuse(r) { // a request without integrity was counted when it came
		return nil
	}
	if r.judged {
		// RFC 8489 section 9.2.4: an unknown USERNAME or a wrong MESSAGE-INTEGRITY is a 401 with REALM and NONCE; pion says 400.
		// The nonce of the request was good, so it may be used again.
		w := g.errorOf(stun.CodeUnauthorized, "")
		w.Text(stun.Realm, g.server.cfg.Realm)
		w.Add(stun.Nonce, r.Get(stun.Nonce))
		p = w.Bytes()
	}
	if len(p) > maxAmplification*r.size {
		p = rewrite(g.work.out[:0], p, withoutReason)
	}
	zeroPadding(p)
	if len(p) > maxAmplification*r.size {
		g.server.stats.drop(dropAmplification)
		return nil
	}
	g.server.stats.answers[answerOf(stun.CodeOf(p))].Add(1)
	return p
}

// settle answers the last request if pion did not, though it was authenticated: pion drops requests for an allocation that is
// not there or another's.
func (g *gate) settle() {
	r := &g.now
	if !r.active {
		return
	}
	if r.authenticated && !r.answered && r.Method != stun.Allocate {
		a := g.find(r.src)
		code := 0
		switch {
		case a == nil:
			// RFC 8656 section 7.3 and others: no allocation for the 5-tuple is a 437 (Allocation Mismatch).
			code = stun.CodeMismatch
		case a.user != r.user:
			// RFC 8656 section 5: "if ... the request does not use the same username as used to create the allocation, then
			// the request MUST be rejected with a 441 (Wrong Credentials) error". See userOf.
			code = stun.CodeWrongCredentials
		}
		if code != 0 {
			g.server.stats.answers[answerOf(code)].Add(1)
			g.send(g.errorResponse(code), r.src, r.local)
		}
	}
	*r = request{}
}
