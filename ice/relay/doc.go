// Package relay is a STUN and TURN server (RFC 8489, RFC 8656) for UDP over IPv4 and IPv6: the last way for two nodes that
// no direct path joins.
//
// # The way of a datagram
//
//	client --> gate --+-- ChannelData ------------------> allocation --> peer
//	                  +-- STUN, checked --> pion/turn --> allocation --> peer (Send indications)
//
//	client <-- gate <-+-- ChannelData <------------------ allocation <-- peer
//	                  +-- STUN, finished <- pion/turn <-- allocation <-- peer (Data indications)
//
// pion/turn keeps the books of TURN: nonces, allocations, permissions, channel bindings and their lifetimes. It never touches
// a socket. On the client's side it reads from and writes to a gate, our filtering net.PacketConn; on the peer's side it is
// given an allocation, which is a net.PacketConn too.
//
// The gate lets only messages through that passed a strict check (package stun), and that the rate limits of their source
// allow. What pion answers passes the gate again: an answer to a stranger is at most three times as long as what
// the stranger sent, an answer to an authenticated client carries MESSAGE-INTEGRITY, and where pion stays silent
// (437, 441) the gate answers.
//
// What one allocation sends to the relayed address of another is handed over inside the process (inside.go), with all checks of
// both: a NAT in front of this machine need not lead our public address back to us.
//
// ChannelData, which is nearly all traffic, does not enter pion: gate and allocation relay it themselves, as UDP_GRO and
// UDP_SEGMENT runs where the kernel has them.
//
// Binding requests are also answered at and from another port, and another address if there is one, for clients that look at their NATs
// (reflect.go).
//
// # Who may be reached
//
// An open relay is a way into the network it stands in. So a peer must be a public unicast address (peers.go) unless the
// configuration says otherwise, and that is asked three times: when a permission is made, when a channel is bound, and
// for each datagram, in both directions.
//
// # State
//
// Nothing is kept for a client before it has authenticated; the rate limits live in a table of fixed size. An
// authenticated client is bounded by quotas. Credentials are those of the TURN REST convention: anybody who knows the shared
// secret can issue them, and the relay keeps no list of them.
//
// # What is left out
//
// TCP and TLS to the client, TCP allocations (RFC 6062: answered with 442), the reservation of a second port (508), mobility,
// and MESSAGE-INTEGRITY-SHA256. A LIFETIME of less than an hour is granted as it is asked for, also where RFC 8656 section 7.2
// would raise it to the default of ten minutes; one of an hour or more gets the default.
package relay
