// Package edge is the connectivity edge of a node: it carries out what links want (link.Task), finds paths with ICE agents over the
// pipeline's sockets, keeps TURN allocations, carries messages between links and peers, and follows what the portal says about peers.
//
//	links --Task--> mailbox ------------+
//	ICE agents --Event--> mailbox ------+
//	signaling --offer, answer, bye------+--> the owner's goroutine --Pipeline.Tell--> links, on control's goroutine
//	portal --Sync-----------------------+                          --> relays, host
//	relays, network, timers ------------+
//
// Links decide when a peer is tried, what its connection is worth and when it is over. The edge decides nothing but how
// to carry that out: all its state is rebuilt from what the portal and the peers say, but for the identities of peers, which are
// pinned when they are met (see identity.go). Signaling does not depend on WireGuard keys: an offer is taken from the sender that
// the portal vouches for, and the key to use is the portal's, so that two nodes that are out of step still meet, and learn from the
// failed handshake what is wrong.
//
// One goroutine owns everything (Run). It may wait for control, and control never waits for it. Work that waits for others (a request
// to the portal, a message to a peer, the end of an agent) runs in goroutines of its own, which tell what came of it.
package edge
