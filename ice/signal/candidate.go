package signal

import (
	"net/netip"
	"slices"
	"strconv"
	"strings"
)

// Filter says which candidates are taken from a message. The zero value leaves out loopback, multicast, broadcast,
// unspecified and IPv6 link-local addresses (those mean nothing without a zone, which cannot be sent). It is frozen.
type Filter struct {
	// AllowLoopback is for tests on one machine.
	AllowLoopback bool
}

// Keep returns the candidates that may be used, in their order, and how many were left out. list is owned by Keep, which
// returns a part of it.
func (f *Filter) Keep(list []string) (kept []string, dropped int) {
	kept = slices.DeleteFunc(list, func(c string) bool {
		addr, ok := candidateAddress(c)
		return !ok || !f.allowed(addr)
	})
	return kept, len(list) - len(kept)
}

// Allowed reports whether an address may be that of a candidate: ours before it is sent, or a peer's.
func (f *Filter) Allowed(addr netip.Addr) bool { return addr.IsValid() && f.allowed(addr.Unmap()) }

func (f *Filter) allowed(addr netip.Addr) bool {
	switch {
	case addr.Zone() != "", addr.IsUnspecified(), addr.IsMulticast(), addr.Is6() && addr.IsLinkLocalUnicast():
		return false
	case addr.IsLoopback():
		return f.AllowLoopback
	case addr.Is4() && (addr.As4()[0] == 0 || addr.As4() == [4]byte{255, 255, 255, 255}):
		return false // "this network" and broadcast (RFC 6890, table 1 and 16)
	}
	return true
}

// candidateAddress returns the address of a UDP candidate, unmapped, if c is one of the form (RFC 8839, section 5.1)
//
//	foundation component "udp" priority address port "typ" type ["raddr" address "rport" port]
//
// Names (mDNS), TCP and extensions are not taken.
func candidateAddress(c string) (addr netip.Addr, ok bool) {
	f := strings.Split(c, " ")
	if len(f) != 8 && len(f) != 12 {
		return addr, false
	}
	addr, err := netip.ParseAddr(f[4])
	priority, errPriority := strconv.ParseUint(f[3], 10, 31)
	ok = err == nil && errPriority == nil && priority > 0 && foundation(f[0]) && f[1] == "1" && strings.EqualFold(f[2], "udp") &&
		port(f[5], 1) && f[6] == "typ" && slices.Contains([]string{"host", "srflx", "prflx", "relay"}, f[7])
	if ok && len(f) == 12 {
		_, err := netip.ParseAddr(f[9])
		// A privacy-minded agent sends 0.0.0.0 and port 0 or 9 (RFC 8839, section 5.1).
		ok = f[8] == "raddr" && err == nil && f[10] == "rport" && port(f[11], 0)
	}
	return addr.Unmap(), ok
}

// foundation: 1 to 32 ice-chars. A leading minus sign is taken too: pion/ice prints some checksums as signed numbers.
func foundation(s string) bool {
	return len(s) <= 32 && iceChars(strings.TrimPrefix(s, "-"), 1)
}

func port(s string, least uint64) bool {
	n, err := strconv.ParseUint(s, 10, 16)
	return err == nil && n >= least
}
