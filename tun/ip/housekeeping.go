package ip

// IsHousekeeping reports whether a packet, for which [Length] was ok, is one that a host sends to its link of its own accord when an
// interface comes up or joins a group: a router solicitation (RFC 4861, section 4.1) or a multicast listener's report or
// query (RFC 2710, RFC 3810; IGMP, RFC 3376), to a group that stays on the link.
func IsHousekeeping(packet []byte) bool {
	if packet[0]>>4 == 4 {
		const protocolIGMP = 2
		to := Destination(packet).As4()
		return packet[9] == protocolIGMP && to[0] == 224
	}
	if packet[24] != 0xff || packet[25]&15 != 2 { // link-local scope, RFC 4291, section 2.7
		return false
	}
	t, ok := FindTransport(packet)
	if !ok || !t.First || t.Protocol != ProtocolICMPv6 || len(packet) <= t.Offset {
		return false
	}
	switch packet[t.Offset] {
	case 130, 131, 132, 133, 143:
		return true
	}
	return false
}
