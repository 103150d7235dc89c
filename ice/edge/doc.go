// Package edge is the connectivity edge of a node: it carries out what control asks (link.Request), finds paths with ICE
// agents over the pipeline's sockets, keeps TURN allocations, exchanges offers and answers with peers, and follows what the
// portal says about them.
//
//	control --Request--> mailbox --+
//	ICE agents --Event--> mailbox -+
//	signaling --offer, answer, bye-+--> the owner's goroutine --> link.Attempt, ice.Connection, signal.Signaler
//	portal --Sync------------------+
//	relays, network, timers -------+
//
// Control decides when a peer is tried, what its connection is worth and when it is over. The edge decides nothing but how
// to carry that out: all its state is rebuilt from what the portal and the peers say, but for the identities of peers, which are
// pinned when they are met (see identity.go). Signaling does not depend on WireGuard keys: an offer is taken from the sender that
// the portal vouches for, and the key to use is the portal's, so that two nodes that are out of step still meet, and learn from the
// failed handshake what is wrong.
//
// One goroutine owns everything (Run). Work that waits for others (a request to the portal, a message to a peer, the end of
// an agent) runs in goroutines of its own, which post what came of it.
package edge
