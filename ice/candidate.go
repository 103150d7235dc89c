package ice

import (
	"crypto/rand"
	"errors"
	"net/netip"
	"strings"

	"github.com/pion/ice/v2"
)

const (
	// MaxCandidates is how many candidates of a peer are taken for one generation.
	MaxCandidates = 16
	// maxCandidateText bounds a candidate's text; a long one is 150 bytes.
	maxCandidateText = 512
)

// ErrCandidate: a signaled candidate is of a form or at an address that we do not take.
var ErrCandidate = errors.New("ice: candidate refused")

// Credentials are an agent's short-term credentials (RFC 8445, section 5.3). They go to the peer by signaling.
type Credentials struct{ Ufrag, Password string }

// newCredentials makes random ones: 60 bits that nobody guesses or meets twice, and 130 bits (at least 24 and 128).
func newCredentials() Credentials {
	return Credentials{Ufrag: rand.Text()[:12], Password: rand.Text()}
}

// valid checks credentials of a peer: lengths and characters of RFC 8839, section 5.4, with 64 characters at most.
func (c Credentials) valid() bool {
	return iceText(c.Ufrag, 4) && iceText(c.Password, 22)
}

func iceText(s string, least int) bool {
	if len(s) < least || len(s) > 64 {
		return false
	}
	for _, r := range []byte(s) {
		letter := r|0x20 >= 'a' && r|0x20 <= 'z' || r >= '0' && r <= '9'
		if !letter && r != '+' && r != '/' {
			return false
		}
	}
	return true
}

// parseCandidate reads a candidate as a peer signaled it (RFC 8839, section 5.1, without the prefix "candidate:"): UDP, an
// address and not a name, of a type that can be signaled, where checks may go.
func parseCandidate(text string, r *rules) (ice.Candidate, error) {
	if len(text) > maxCandidateText || strings.HasPrefix(text, " ") {
		return nil, ErrCandidate
	}
	c, err := ice.UnmarshalCandidate(text)
	if err != nil {
		return nil, ErrCandidate
	}
	addr, err := netip.ParseAddr(c.Address())
	switch {
	case err != nil || !r.allow(addr) || c.Port() <= 0 || c.Port() > 0xFFFF:
		return nil, ErrCandidate
	case !c.NetworkType().IsUDP() || c.TCPType() != ice.TCPTypeUnspecified || c.Component() != ice.ComponentRTP:
		return nil, ErrCandidate
	}
	return plainCandidate(c, addr)
}

// plainCandidate makes the candidate anew from what matters of it: pion compares addresses as text, so that text must be
// the usual one, and a related address is of no use to us.
func plainCandidate(c ice.Candidate, addr netip.Addr) (ice.Candidate, error) {
	text, port, priority := addr.String(), c.Port(), c.Priority()
	switch c.Type() {
	case ice.CandidateTypeHost:
		return ice.NewCandidateHost(&ice.CandidateHostConfig{
			Network: "udp", Address: text, Port: port, Component: ice.ComponentRTP, Priority: priority,
		})
	case ice.CandidateTypeServerReflexive:
		return ice.NewCandidateServerReflexive(&ice.CandidateServerReflexiveConfig{
			Network: "udp", Address: text, Port: port, Component: ice.ComponentRTP, Priority: priority,
		})
	case ice.CandidateTypeRelay:
		return ice.NewCandidateRelay(&ice.CandidateRelayConfig{
			Network: "udp", Address: text, Port: port, Component: ice.ComponentRTP, Priority: priority,
		})
	default:
		return nil, ErrCandidate
	}
}

// mappedCandidate is the text of a server-reflexive candidate: mapped is what the base looks like to a STUN server.
func mappedCandidate(mapped, base netip.AddrPort) (string, error) {
	c, err := ice.NewCandidateServerReflexive(&ice.CandidateServerReflexiveConfig{
		Network: "udp", Address: mapped.Addr().String(), Port: int(mapped.Port()), Component: ice.ComponentRTP,
		RelAddr: base.Addr().String(), RelPort: int(base.Port()),
	})
	if err != nil {
		return "", err
	}
	return c.Marshal(), nil
}

// candidateAddress is where a candidate of pion's is.
func candidateAddress(c ice.Candidate) (netip.AddrPort, bool) {
	addr, err := netip.ParseAddr(c.Address())
	return netip.AddrPortFrom(addr.Unmap(), uint16(c.Port())), err == nil && c.Port() > 0 && c.Port() <= 0xFFFF
}
