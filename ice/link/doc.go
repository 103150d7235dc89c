// Package link decides about connections: when a peer is tried, which agents look for a path, what is told to the peer, what a
// connection is worth, and when it is over.
//
// A [Link] keeps all there is of one named peer beside its WireGuard core, and runs on the pipeline's control goroutine. It is
// sans-IO: inputs note what happened, HandleView draws the conclusions, Poll says what control is to do, a [Task] what somebody is to
// do who may wait, and NextTimeout when to look again, and what for. It never reads a clock, and knows neither ICE nor sockets nor the
// portal: whoever carries out tasks does, and tells what came of it.
//
//	control: cores, lanes --View, Verdict--> Link --Order--> control
//	agents, signaling, portal, relays --Handle...--> Link --Task--> the connectivity edge
//
// Nouns:
//
//	attempt     one try to reach a peer, numbered by both sides together; with a session it is a connection
//	agent       one ICE agent of an attempt, numbered by both sides together: the first, and others that are to take over
//	path        where the connection's datagrams go, numbered by each side for itself
//	wish        somebody wants the peer; granted when the back-off allows it
//	deadline    a moment at which something is decided; each has a name, see deadlines.go
//	task        what the link wants of the outside
//	order       what it wants of control
//
// Order of the files: links.go says what is asked and told, link.go is a link as control sees it, begin.go how an attempt begins,
// signaling.go what peers tell one another, connection.go what becomes of an attempt. Its parts have a file each: agents.go,
// handshake.go, confirm.go, idle.go, quiet.go, upgrade.go; then deadlines.go, reason.go.
package link
