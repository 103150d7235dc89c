package relay

import (
	"encoding/binary"
	"net"
	"net/netip"
	"time"
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
			g.sendData(p[:channelHead+len(data)], udpAddr) // no padding over UDP
		}
	case len(p) < headerSize:
	default:
		if _, class := parseType(binary.BigEndian.Uint16(p)); class == classSuccess || class == classError {
			g.answer(p)
		} else {
			zeroPadding(p)
			g.sendData(p, udpAddr)
		}
	}
	return len(p), nil
}

// sendData sends to the client of an allocation, from the address that the client knows.
func (g *gate) sendData(p []byte, client *net.UDPAddr) {
	dst := unmap(client.AddrPort())
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
func (g *gate) answer(p []byte) {
	r := &g.now
	if !r.active || [12]byte(p[8:headerSize]) != r.id {
		return
	}
	if r.class != classRequest {
		// RFC 8489 section 6.3.2: "If the indication contains unknown comprehension-required attributes, the indication is
		// discarded"; pion answers it.
		g.server.stats.drop(dropMalformed)
		return
	}
	r.answered = true
	_, class := parseType(binary.BigEndian.Uint16(p))
	switch {
	case class == classSuccess && r.method == methodBinding:
		g.server.stats.answers[answerBinding].Add(1)
	case class == classSuccess:
		g.server.stats.answers[answerSuccess].Add(1)
		g.noteLifetime(p)
		if r.evenPort && hasAttr(p, attrReservationToken) { // nothing was reserved, and pion promises it all the same
			p = appendIntegrity(without(nil, without(nil, p, attrReservationToken), attrIntegrity), r.key)
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
	if a := g.find(g.now.src); a != nil && (a.expires == 0 || g.now.method == methodRefresh) {
		eachAttr(p, func(kind uint16, value, _ []byte) {
			if kind == attrLifetime && len(value) == 4 {
				a.expires = g.server.since() + int64(binary.BigEndian.Uint32(value))*int64(time.Second)
			}
		})
	}
}

// refuseClient finishes an error response to a request that was authenticated. RFC 8489 section 9.2.4: any response to it
// carries MESSAGE-INTEGRITY; pion leaves it out of most of these.
func (g *gate) refuseClient(p []byte) []byte {
	r := &g.now
	code := errorOf(p)
	switch {
	case r.code != 0:
		code = r.code
	case code == codeUnauthorized: // what pion says to a ChannelBind whose peer is not permitted
		code = codeForbidden
	}
	g.server.stats.answers[answerOf(code)].Add(1)
	if code != errorOf(p) {
		return g.errorResponse(code)
	}
	if hasAttr(p, attrIntegrity) {
		return p
	}
	p = append(g.work.out[:0], p...)
	zeroPadding(p)
	return appendIntegrity(p, r.key)
}

// errorResponse is an error response to the present request, which was authenticated.
func (g *gate) errorResponse(code int) []byte {
	r := &g.now
	p := appendHeader(g.work.out[:0], r.method, classError, &r.id)
	return appendIntegrity(appendError(p, code, reasons[code]), r.key)
}

// refuseStranger finishes an error response to a request that was not authenticated, or returns nil if it must not be sent.
func (g *gate) refuseStranger(p []byte) []byte {
	r := &g.now
	if r.integrity && !g.mayRefuse(r) { // a request without integrity was counted when it came
		return nil
	}
	if r.judged {
		// RFC 8489 section 9.2.4: an unknown USERNAME or a wrong MESSAGE-INTEGRITY is a 401 with REALM and NONCE; pion says 400.
		// The nonce of the request was good, so it may be used again.
		p = appendError(appendHeader(g.work.out[:0], r.method, classError, &r.id), codeUnauthorized, "")
		p = appendAttr(appendAttr(p, attrRealm, []byte(g.server.cfg.Realm)), attrNonce, r.nonce)
	}
	if len(p) > maxAmplification*r.size {
		p = withoutReason(g.work.out[:0], p)
	}
	zeroPadding(p)
	if len(p) > maxAmplification*r.size {
		g.server.stats.drop(dropAmplification)
		return nil
	}
	g.server.stats.answers[answerOf(errorOf(p))].Add(1)
	return p
}

// settle answers the last request if pion did not, though it was authenticated: pion drops requests for an allocation that is
// not there or another's.
func (g *gate) settle() {
	r := &g.now
	if !r.active {
		return
	}
	if r.authenticated && !r.answered && r.method != methodAllocate {
		a := g.find(r.src)
		code := 0
		switch {
		case a == nil:
			// RFC 8656 section 7.3 and others: no allocation for the 5-tuple is a 437 (Allocation Mismatch).
			code = codeMismatch
		case a.user != r.user:
			// RFC 8656 section 5: "if ... the request does not use the same username as used to create the allocation, then
			// the request MUST be rejected with a 441 (Wrong Credentials) error". See userOf.
			code = codeWrongCredentials
		}
		if code != 0 {
			g.server.stats.answers[answerOf(code)].Add(1)
			g.send(g.errorResponse(code), r.src, r.local)
		}
	}
	*r = request{}
}
