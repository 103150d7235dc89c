// Package turn is a TURN client (RFC 8656 on RFC 8489). Its core, Client, is a sans-IO state machine: it owns no socket,
// starts no goroutine and no timer, and reads no clock. Relays drives a Client for each server. One Client stands for one
// allocation, that is for one socket of ours and one server; all ICE agents and connections of the process share it.
//
// The story of an allocation: Start asks for it without credentials, the server answers 401 with a realm and a nonce, and the
// request is made again with MESSAGE-INTEGRITY. Allocated reports the relayed transport address, which is signaled to peers
// as a relayed candidate. Bind asks for a channel to one peer; ChannelBound reports its number, and from then on whoever
// owns the socket frames datagrams as ChannelData by himself (frame.PutChannelHeader, frame.ParseChannelData). The
// binding installs the permission too and is refreshed every four minutes, but only while MarkUsed says that somebody needs
// it. Peers without a channel get Permit and SendIndication.
//
// The allocation is refreshed at half of its life, with newer credentials if there are any; a Binding request every 25
// seconds keeps the NAT's mapping and tells us when it has changed. An allocation is lost when the server says so (437), when
// our mapped address changes, when it runs out, or when a request stays unanswered for eight seconds. Lost reports that at
// once, so that connections can move to another server, and the client asks for a new allocation by itself, with a back-off.
// If the server only was unreachable and still knows the allocation, it is taken up again. Every channel that is held is
// bound again under its old number.
//
// What comes from the network is checked once (stun.Message.Parse), counted by name when it is dropped (Drop), and never becomes an
// error or a log line. Nothing here prints a user name, a password, a nonce or a key.
//
// An agent of pion/ice wants to speak TURN by itself. It gets a Facade, which answers it from the shared allocation:
//
//	pion agent -- its TURN client -- Facade --gate--> Relays -- Client -- SendOne --> server
//	pion agent -- its TURN client -- Facade <--gate-- Relays -- Client -- Receive <-- server
//
// Checks go in Send indications, for which a permission for the peer's address is enough; a channel gets the pair that is about to be
// selected, and no peer more than its ice.Share.
//
// The gate is the mux's (ice.Gate): checks are paced on their way out, and on their way in pion sees none that is not
// well-formed, authentic and for this agent. What connections carry does not come this way: the pipeline frames and strips
// ChannelData by itself, over the channel that Relays.Path names and Relays.Hold keeps.
//
// Left out: TCP and TLS towards the server or the peer, EVEN-PORT and reservations, DONT-FRAGMENT, mobility, ALTERNATE-SERVER
// (a redirect is reported as Failed), and the SHA-256 variants of RFC 8489, section 9.2, which neither pion/turn nor coturn 4.6
// demand.
package turn
