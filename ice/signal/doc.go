// Package signal carries the small messages by which two nodes arrange a connection: an offer and an answer with the
// public key, the ICE credentials and the candidates of a node, and a bye that says why a connection ended.
//
// Signaling must work exactly when nodes are out of step about each other's keys, so nothing in it depends on WireGuard:
// messages are plain JSON inside TLS, and who wrote one is known from the subject it came on, which the broker lets only
// that node publish. The payload does not name its sender.
//
//	sig.<to>.<from>               a message; only <from> may publish it, only <to> may subscribe to it
//	_INBOX_<to>.ack.<from>.<id>   <from> confirms message <id> of <to>; nothing else is told by it
//	_INBOX_<name>.>               other answers for <name>, such as the portal's
//	portal.<name>.<verb>          a request of <name> to the portal
//
// A message is confirmed by the node that queued it, so that Send knows: nil means that the peer has it, [ErrAbsent] that
// the broker has nobody under this name (known at once), [ErrUnanswered] that the peer or the broker went silent, [ErrDown]
// that the portal cannot be reached. The broker's own way to permit answers (a subscriber may publish once to whatever reply
// subject a message bears) is not used: two nodes that may talk to one another could name any subject in it, and so write
// in the name of a third. See [Permissions].
//
// A [Bus] is a node's connection to the broker. It owns one goroutine that connects, waits for the end of the connection
// and connects again; nothing is kept for later while the portal is away, because an old offer is worth nothing. Existing
// tunnels do not notice. [Memory] is the same thing inside one process, with seeded faults, for tests.
//
//	                  Send --encode--> sig.<to>.<from> ~~broker~~> decode --filter--> queue --> Recv
//	nil or a sentinel <----- id ------ _INBOX_<from>.ack.<to>.<id> <------ confirm -----'
//
// Messages may be lost, repeated and reordered. [Generations] tells which of them still matter.
package signal
