package uapi

// This file is the `set` of the text protocol: lines become a setRequest, off the control goroutine, and a setRequest
// becomes edits, on it.

import (
	"bytes"
	"encoding/hex"
	"fmt"
	"net/netip"
	"strconv"

	"github.com/sluice-vpn/sluice/crypto"
	"github.com/sluice-vpn/sluice/pipeline/udp"
)

// setRequest is a parsed set. The zero value is empty.
type setRequest struct {
	device []func(editor) error
	peers  []*peerRequest
	known  map[crypto.PublicKey]struct{} // keys of peers
	keys   []*crypto.PrivateKey          // which device refers to
	err    error                         // of the first bad line; what stands before it is applied
}

// peerRequest is what follows one public_key line. Its flags hold for all of its lines.
type peerRequest struct {
	key                crypto.PublicKey
	remove, updateOnly bool
	edits              []func(peerEditor)
	keys               []*crypto.PresharedKey // which edits refer to
}

// readSet reads the lines of a set up to the empty one. A line that is wrong is kept in the request; an error means that
// there is no request to apply.
func readSet(lines *lineReader) (*setRequest, error) {
	req := &setRequest{known: make(map[crypto.PublicKey]struct{})}
	for {
		line, err := lines.next()
		if err != nil && err != errLineTooLong {
			req.wipe()
			return nil, err
		}
		if err == nil && len(line) == 0 {
			return req, nil
		}
		if req.err == nil && err == nil {
			err = req.parseLine(line)
		}
		if req.err == nil {
			req.err = err
		}
	}
}

// wipe overwrites the keys of a request that was applied or will not be.
func (r *setRequest) wipe() {
	for _, k := range r.keys {
		clear(k[:])
	}
	for _, p := range r.peers {
		for _, k := range p.keys {
			clear(k[:])
		}
	}
}

func (r *setRequest) parseLine(line []byte) error {
	key, value, ok := bytes.Cut(line, []byte{'='})
	if !ok {
		return &protocolError{errnoProtocol, "a line has no '='"}
	}
	name := keyName(key)
	if name == "public_key" {
		return r.parsePeer(value)
	}
	if len(r.peers) == 0 {
		return r.parseDevice(name, value)
	}
	return r.peers[len(r.peers)-1].parse(name, value)
}

func (r *setRequest) parseDevice(key string, value []byte) error {
	switch key {
	case "private_key":
		k := new(crypto.PrivateKey)
		r.keys = append(r.keys, k)
		if err := parseKey(key, k[:], value); err != nil {
			return err
		}
		r.device = append(r.device, func(e editor) error { e.SetPrivateKey(k); return nil })
	case "listen_port":
		port, err := parseNumber(key, value, 16)
		if err != nil {
			return err
		}
		r.device = append(r.device, func(e editor) error { return e.SetListenPort(uint16(port)) })
	case "fwmark":
		mark, err := parseNumber(key, value, 32)
		if err != nil {
			return err
		}
		r.device = append(r.device, func(e editor) error { return e.SetMark(uint32(mark)) })
	case "replace_peers":
		if err := parseTrue(key, value); err != nil {
			return err
		}
		r.device = append(r.device, func(e editor) error { e.RemovePeers(); return nil })
	default:
		return unknownKey("of the device", key)
	}
	return nil
}

func (r *setRequest) parsePeer(value []byte) error {
	p := new(peerRequest)
	if err := parseKey("public_key", p.key[:], value); err != nil {
		return err
	}
	if _, repeated := r.known[p.key]; repeated {
		return &protocolError{errnoInvalid, "public_key occurs twice in one request"}
	}
	r.known[p.key] = struct{}{}
	r.peers = append(r.peers, p)
	return nil
}

func (p *peerRequest) parse(key string, value []byte) error {
	switch key {
	case "preshared_key":
		k := new(crypto.PresharedKey)
		p.keys = append(p.keys, k)
		if err := parseKey(key, k[:], value); err != nil {
			return err
		}
		p.edits = append(p.edits, func(pe peerEditor) { pe.SetPresharedKey(k) })
		return nil
	case "remove":
		p.remove = true
		return parseTrue(key, value)
	case "update_only":
		p.updateOnly = true
		return parseTrue(key, value)
	case "protocol_version":
		if string(value) != "1" {
			return badValue(key, value, "only 1 is known")
		}
		return nil
	}
	edit, err := parsePeerEdit(key, value)
	if err == nil {
		p.edits = append(p.edits, edit)
	}
	return err
}

func parsePeerEdit(key string, value []byte) (func(peerEditor), error) {
	switch key {
	case "endpoint":
		endpoint, err := parseEndpoint(key, value)
		return func(p peerEditor) { p.SetEndpoint(endpoint) }, err
	case "persistent_keepalive_interval":
		seconds, err := parseNumber(key, value, 16)
		return func(p peerEditor) { p.SetPersistentKeepalive(uint16(seconds)) }, err
	case "replace_allowed_ips":
		return func(p peerEditor) { p.RemoveAllowedIPs() }, parseTrue(key, value)
	case "allowed_ip":
		text, removal := bytes.CutPrefix(value, []byte{'-'})
		prefix, err := netip.ParsePrefix(string(text))
		if err != nil {
			return nil, badValue(key, value, "not IP/bits")
		}
		prefix = prefix.Masked()
		if removal {
			return func(p peerEditor) { p.RemoveAllowedIP(prefix) }, nil
		}
		return func(p peerEditor) { p.AddAllowedIP(prefix) }, nil
	}
	return nil, unknownKey("of a peer", key)
}

// parseKey decodes 64 hexadecimal digits; its errors never hold them.
func parseKey(key string, dst, value []byte) error {
	if len(value) != hex.EncodedLen(len(dst)) {
		return &protocolError{errnoInvalid, fmt.Sprintf("%s has %d digits, not %d", key, len(value), hex.EncodedLen(len(dst)))}
	}
	if _, err := hex.Decode(dst, value); err != nil {
		clear(dst)
		return &protocolError{errnoInvalid, key + " is not hexadecimal"}
	}
	return nil
}

func parseNumber(key string, value []byte, bits int) (uint64, error) {
	n, err := strconv.ParseUint(string(value), 10, bits)
	if err != nil {
		return 0, badValue(key, value, fmt.Sprintf("not a number of %d bits", bits))
	}
	return n, nil
}

func parseTrue(key string, value []byte) error {
	if string(value) != "true" {
		return badValue(key, value, "only true is known")
	}
	return nil
}

func parseEndpoint(key string, value []byte) (netip.AddrPort, error) {
	endpoint, err := netip.ParseAddrPort(string(value))
	if err != nil || endpoint.Port() == 0 {
		return netip.AddrPort{}, badValue(key, value, "not IP:port or [IP]:port with a port above 0")
	}
	addr, err := udp.ResolveZone(endpoint.Addr().Unmap())
	if err != nil {
		return netip.AddrPort{}, badValue(key, value, err.Error())
	}
	return netip.AddrPortFrom(addr, endpoint.Port()), nil
}

func badValue(key string, value []byte, why string) error {
	const enough = 64
	return &protocolError{errnoInvalid, fmt.Sprintf("%s %q: %s", key, value[:min(len(value), enough)], why)}
}

// keyName is key as text, "" where it does not look like one: a bare secret in base64 has a '=' too.
func keyName(key []byte) string {
	for _, c := range key {
		if c != '_' && (c < 'a' || c > 'z') {
			return ""
		}
	}
	return string(key[:min(len(key), 40)])
}

func unknownKey(where, key string) error {
	if key == "" {
		return &protocolError{errnoInvalid, "unknown key " + where}
	}
	return &protocolError{errnoInvalid, fmt.Sprintf("unknown key %s: %q", where, key)}
}

// apply runs on the control goroutine.
func (r *setRequest) apply(e editor) error {
	for _, edit := range r.device {
		if err := edit(e); err != nil {
			return err
		}
	}
	for _, p := range r.peers {
		p.apply(e)
	}
	return r.err
}

func (p *peerRequest) apply(e editor) {
	if p.remove {
		e.RemovePeer(p.key)
		return
	}
	pe := e.peer(p.key, !p.updateOnly)
	if pe == nil {
		return
	}
	for _, edit := range p.edits {
		edit(pe)
	}
}
