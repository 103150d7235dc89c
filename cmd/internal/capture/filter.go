package capture

import (
	"encoding/binary"
	"fmt"
	"net/netip"
	"strconv"
	"strings"

	"github.com/sluice-vpn/sluice/tun/ip"
)

// FilterWords tells a person what a filter may have.
const FilterWords = "tcp, udp, icmp, ip, ip6, host ADDRESS, net PREFIX, port NUMBER, the last three also with src or dst in front; and, or, not, ( )"

// Bounds on a filter.
const (
	maxFilter      = 1024 // bytes
	maxFilterDepth = 32   // of parentheses and nots
)

// Filter chooses packets. It is frozen: any number of goroutines may use it.
type Filter struct{ root term }

// term is a part of a filter.
type term func(*packet) bool

// packet is what terms ask about.
type packet struct {
	v4       bool
	src, dst netip.Addr
	protocol uint8
	ports    bool // it has some: TCP or UDP, and no later fragment
	from, to uint16
}

// ParseFilter reads a filter in the words of FilterWords, which mean what they mean to tcpdump; icmp is ICMPv6 too. "not" binds
// stronger than "and", which binds stronger than "or". Nil: an empty text, which takes everything. The error says which word is wrong.
func ParseFilter(text string) (*Filter, error) {
	if len(text) > maxFilter {
		return nil, fmt.Errorf("the filter has %d bytes; at most %d are possible", len(text), maxFilter)
	}
	p := &parser{words: strings.Fields(strings.NewReplacer("(", " ( ", ")", " ) ").Replace(text))}
	if len(p.words) == 0 {
		return nil, nil
	}
	root, err := p.or(0)
	if err == nil && p.peek() != "" {
		err = fmt.Errorf("%q stands where and, or, or the end should be", p.peek())
	}
	if err != nil {
		return nil, fmt.Errorf("filter %q: %w; a filter has %s", text, err, FilterWords)
	}
	return &Filter{root}, nil
}

// Match tells whether a packet is to be taken. What is no IP packet is not.
func (f *Filter) Match(b []byte) bool {
	n, ok := ip.Length(b)
	if !ok {
		return false
	}
	b = b[:n]
	p := packet{v4: ip.Version(b) == 4, src: ip.Source(b), dst: ip.Destination(b)}
	if t, ok := ip.FindTransport(b); ok {
		p.protocol = t.Protocol
		if p.ports = t.First && (t.Protocol == ip.ProtocolTCP || t.Protocol == ip.ProtocolUDP) && len(b) >= t.Offset+4; p.ports {
			p.from, p.to = binary.BigEndian.Uint16(b[t.Offset:]), binary.BigEndian.Uint16(b[t.Offset+2:])
		}
	}
	return f.root(&p)
}

// parser goes through the words of a filter.
type parser struct{ words []string }

// peek is the next word, "" at the end.
func (p *parser) peek() string {
	if len(p.words) == 0 {
		return ""
	}
	return p.words[0]
}

func (p *parser) next() string {
	word := p.peek()
	p.words = p.words[min(1, len(p.words)):]
	return word
}

func (p *parser) accept(words ...string) bool {
	for _, word := range words {
		if p.peek() == word {
			p.next()
			return true
		}
	}
	return false
}

func (p *parser) or(depth int) (term, error) {
	left, err := p.and(depth)
	for err == nil && p.accept("or", "||") {
		a := left
		var b term
		b, err = p.and(depth)
		left = func(k *packet) bool { return a(k) || b(k) }
	}
	return left, err
}

func (p *parser) and(depth int) (term, error) {
	left, err := p.not(depth)
	for err == nil && p.accept("and", "&&") {
		a := left
		var b term
		b, err = p.not(depth)
		left = func(k *packet) bool { return a(k) && b(k) }
	}
	return left, err
}

func (p *parser) not(depth int) (term, error) {
	if depth++; depth > maxFilterDepth {
		return nil, fmt.Errorf("it is nested more than %d deep", maxFilterDepth)
	}
	switch {
	case p.accept("not", "!"):
		t, err := p.not(depth)
		return func(k *packet) bool { return !t(k) }, err
	case p.accept("("):
		t, err := p.or(depth)
		if err == nil && !p.accept(")") {
			err = fmt.Errorf("a ) is missing")
		}
		return t, err
	}
	return p.primitive()
}

func (p *parser) primitive() (term, error) {
	word := p.next()
	src, dst := true, true
	if word == "src" || word == "dst" {
		src, dst = word == "src", word == "dst"
		word = p.next()
		if word != "host" && word != "net" && word != "port" {
			return nil, fmt.Errorf("src and dst are followed by host, net or port, not %q", word)
		}
	}
	switch word {
	case "ip":
		return func(k *packet) bool { return k.v4 }, nil
	case "ip6":
		return func(k *packet) bool { return !k.v4 }, nil
	case "icmp":
		return func(k *packet) bool {
			return k.v4 && k.protocol == ip.ProtocolICMP || !k.v4 && k.protocol == ip.ProtocolICMPv6
		}, nil
	case "tcp", "udp":
		protocol := uint8(ip.ProtocolTCP)
		if word == "udp" {
			protocol = ip.ProtocolUDP
		}
		is := func(k *packet) bool { return k.protocol == protocol }
		if next := p.peek(); next != "port" && next != "src" && next != "dst" {
			return is, nil
		}
		port, err := p.primitive() // tcp port 80, as tcpdump has it
		return func(k *packet) bool { return is(k) && port(k) }, err
	case "host":
		text := p.next()
		a, err := netip.ParseAddr(text)
		if err != nil || a.Zone() != "" {
			return nil, fmt.Errorf("%q is no address", text)
		}
		a = a.Unmap()
		return func(k *packet) bool { return src && k.src == a || dst && k.dst == a }, nil
	case "net":
		text := p.next()
		n, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, fmt.Errorf("%q is no prefix like 10.0.0.0/8", text)
		}
		return func(k *packet) bool { return src && n.Contains(k.src) || dst && n.Contains(k.dst) }, nil
	case "port":
		text := p.next()
		n, err := strconv.ParseUint(text, 10, 16)
		if err != nil {
			return nil, fmt.Errorf("%q is no port", text)
		}
		port := uint16(n)
		return func(k *packet) bool { return k.ports && (src && k.from == port || dst && k.to == port) }, nil
	case "":
		return nil, fmt.Errorf("it ends where something should follow")
	}
	return nil, fmt.Errorf("%q is not known", word)
}
