package names

import (
	"net/netip"
	"strings"

	"golang.org/x/net/dns/dnsmessage"

	"github.com/sluice-vpn/sluice/ice/signal"
)

// Domain is what the names of nodes end with. It is no name of the public DNS, and no name of its is asked for there.
const Domain = "sluice"

const (
	// ttl is for how many seconds an answer may be kept. A node's address is its own for long, but the portal may be made anew.
	ttl = 10
	// mostQuery is the most bytes of a query that is read: a name of 255 bytes with an OPT record is far below.
	mostQuery = 1232
)

// Zone has the tunnel addresses of nodes by name, frozen. A name that is no valid one of a node is never answered.
type Zone map[string][]netip.Addr

// Lookup finds a name of the zone's, with the dot at its end and in any case. What is outside is not inside, what nobody has is not known.
func (z Zone) Lookup(name string) (addrs []netip.Addr, inside, known bool) {
	name = strings.ToLower(strings.TrimSuffix(name, "."))
	if name == Domain {
		return nil, true, true
	}
	label, inside := strings.CutSuffix(name, "."+Domain)
	if !inside || !signal.ValidName(label) {
		return nil, inside, false
	}
	addrs, known = z[label]
	return addrs, true, known
}

// outside tells whether a query is a good one, for a name that is none of the zone's.
func (z Zone) outside(query []byte) bool {
	q, code, ok := parse(query)
	if !ok || code != dnsmessage.RCodeSuccess {
		return false
	}
	_, inside, _ := z.Lookup(q.asked.Name.String())
	return !inside
}

// question is what there is to answer in a query.
type question struct {
	header dnsmessage.Header
	asked  dnsmessage.Question
	edns   bool // it has an OPT record (RFC 6891), so the answer must
}

// parse reads a query. Without ok it is none, and gets no answer; with a code that is no success that is the answer.
func parse(query []byte) (q question, code dnsmessage.RCode, ok bool) {
	var p dnsmessage.Parser
	header, err := p.Start(query)
	if err != nil || header.Response {
		return q, 0, false
	}
	q.header = header
	if header.OpCode != 0 {
		return q, dnsmessage.RCodeNotImplemented, true
	}
	if q.asked, err = p.Question(); err != nil {
		return q, dnsmessage.RCodeFormatError, true
	}
	if _, err := p.Question(); err != dnsmessage.ErrSectionDone { // two are nobody's (RFC 9619)
		return question{header: header}, dnsmessage.RCodeFormatError, true
	}
	if p.SkipAllAnswers() != nil || p.SkipAllAuthorities() != nil {
		return q, dnsmessage.RCodeFormatError, true
	}
	for {
		h, err := p.AdditionalHeader()
		if err == dnsmessage.ErrSectionDone {
			return q, dnsmessage.RCodeSuccess, true
		}
		if err != nil || p.SkipAdditional() != nil {
			return q, dnsmessage.RCodeFormatError, true
		}
		q.edns = q.edns || h.Type == dnsmessage.TypeOPT
	}
}

// Answer makes the answer to a query; nil: there is none, since it is no query. Negative answers have no SOA record, so that nobody keeps
// them (RFC 2308, section 5): a node that is added is found at once. It has two addresses at most, and fits any datagram.
func (z Zone) Answer(query []byte) []byte {
	q, code, ok := parse(query)
	if !ok {
		return nil
	}
	var addrs []netip.Addr
	if code == dnsmessage.RCodeSuccess {
		found, inside, known := z.Lookup(q.asked.Name.String())
		switch {
		case !inside || q.asked.Class != dnsmessage.ClassINET && q.asked.Class != dnsmessage.ClassANY:
			code = dnsmessage.RCodeRefused
		case !known:
			code = dnsmessage.RCodeNameError
		default:
			addrs = found
		}
	}
	b := dnsmessage.NewBuilder(nil, dnsmessage.Header{
		ID: q.header.ID, Response: true, OpCode: q.header.OpCode, RecursionDesired: q.header.RecursionDesired, RCode: code,
		Authoritative: code == dnsmessage.RCodeSuccess || code == dnsmessage.RCodeNameError,
	})
	b.EnableCompression()
	if q.asked.Name.Length > 0 {
		// An error is one of the builder's order, which is fixed here, or of a name that was parsed.
		_ = b.StartQuestions()
		_ = b.Question(q.asked)
	}
	_ = b.StartAnswers()
	for _, a := range addrs {
		h := dnsmessage.ResourceHeader{Name: q.asked.Name, Class: dnsmessage.ClassINET, TTL: ttl}
		switch asks := q.asked.Type; {
		case a.Is4() && (asks == dnsmessage.TypeA || asks == dnsmessage.TypeALL):
			_ = b.AResource(h, dnsmessage.AResource{A: a.As4()})
		case a.Is6() && (asks == dnsmessage.TypeAAAA || asks == dnsmessage.TypeALL):
			_ = b.AAAAResource(h, dnsmessage.AAAAResource{AAAA: a.As16()})
		}
	}
	if q.edns {
		var h dnsmessage.ResourceHeader
		_ = h.SetEDNS0(mostQuery, dnsmessage.RCodeSuccess, false)
		_ = b.StartAdditionals()
		_ = b.OPTResource(h, dnsmessage.OPTResource{})
	}
	answer, err := b.Finish()
	if err != nil {
		return nil
	}
	return answer
}
