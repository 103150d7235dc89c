// Package ice is the connectivity edge: it finds the path on which WireGuard datagrams reach a peer.
//
// An [Agent] is a pion agent that looks for a path to one peer (RFC 8445), as package link wants one: usually one for a connection;
// after a network change, or to leave a relay, a second one beside the first, and the connection moves when the second has selected a
// pair. What was found is told as a [pipeline.Path]. ICE never carries a WireGuard datagram.
//
// All agents share the UDP sockets of the pipeline through one [Mux]: datagrams that are not WireGuard come in by
// Receive, checks and answers leave through a [Sender]. Requests are routed by USERNAME and local address, answers by
// transaction id. Remote addresses play no part, so neither address translation nor a second agent can confuse it. A
// [Prober] asks STUN servers for the addresses that the sockets have behind a NAT; those are only signaled.
//
// Nothing that a stranger sends reaches pion: validate.go is strict about form, mux.go about belonging, and a request
// must carry the right MESSAGE-INTEGRITY. And nothing that a peer names makes us flood it: pace.go bounds the checks
// towards an address that does not answer.
//
// Goroutines: pion has some for each agent; callbacks only fill a [Mailbox], which the owner of the agents empties
// when it wishes. No lock is held while a datagram is sent, and Receive, which a shard calls, takes none that is held
// while pion is waited for.
package ice
