// Package stun is the one alphabet of STUN and TURN messages (RFC 8489, RFC 8656) for the agents, the TURN client, the relay and
// netcheck: a view of a message that allocates nothing (Message), what makes one (Builder), and the keys of MESSAGE-INTEGRITY (Key).
// Who reads is an argument (Policy); what he does with a message that he does not take is his business, as are the names that he counts
// it under. ChannelData is in pipeline/frame, below both, since lanes strip and write it and pipeline knows nothing of ICE.
//
// # Each datagram is checked once
//
// That is a call of Message.Parse. What stands behind it on the way reads the view, or was given bytes that have passed it:
//
//	from the network, at a node
//	    of a relay, ChannelData      the lane strips it (frame.ParseChannelData): WireGuard goes on, a check as below
//	    answer to a probe            ice.Mux.Probed, policy Client; whether it is one is told by its transaction ID alone
//	    of a relay, else             turn.Client.Handle, policy Client
//	      a peer's check within      turn.Relays, policy Peer, once for all agents that it may be for; then ice.Gate
//	    check, answer to a check     ice.Mux.Receive, policy Peer
//	    answer to netcheck           netcheck's own socket, policy Client
//	from a client, at a relay        relay's gate, policy Server; ChannelData goes by frame.ParseChannelData and does not enter pion
//	from pion's agent to a server    turn.Facade, policy Server
//
// A lane that gets a Data indication looks into it for WireGuard data only (frame.ParseDataIndication), and believes nothing of it before
// the data has been opened. Messages of our own process, such as what pion wants sent, are read by ParseHeader and Find, and not checked.
//
// # What pion does
//
// pion/ice decides which checks are sent and which pair is selected, and pion/turn keeps a relay's books of allocations, permissions,
// channels and nonces: both are well kept, and decode what we hand them with decoders of their own. Those are no check: pion/stun v0.6.1,
// which pion/ice v2 needs, reads addresses without looking at their length (CVE-2026-54909), and takes attributes behind MESSAGE-INTEGRITY
// for genuine. pion/stun is imported for nothing but the URIs that pion/ice wants its servers named by, and by tests as a witness from
// outside: it allocates a message and a list of attributes for each datagram, has no limits, and comes in a version for each of the two.
//
// # Answering what is not understood
//
// RFC 8489, section 6.3.1, has a request with unknown comprehension-required attributes answered with 420. Where an agent is asked, the mux
// does so, signed, once the request has proven to be the peer's; where a relay is asked, pion/turn does, and the gate limits how often.
//
// # Decisions
//
// Agents, client and relay had a check each before this package. Where they differed, and nowhere else as hundreds of millions of made
// datagrams have shown, this is what counts:
//
//   - of two attributes of a kind the first (RFC 8489, section 14); the agents took none;
//   - MESSAGE-INTEGRITY-SHA256 may follow MESSAGE-INTEGRITY (14.5), nothing but FINGERPRINT may follow it (14.6); the client took the
//     first for unknown, agents and relay let pass the second;
//   - an error code is from 300 to 699 (14.8), an attribute that anybody here knows has the form that it must have, whoever reads it; each
//     looked at those that it knew, and the lanes not at the first byte of an address;
//   - an empty USERNAME, REALM or NONCE is well-formed, and who needs one finds it useless; agents and client took none;
//   - 64 attributes for all, where the client took 32 and the agents any number; 2048 bytes for a client too, as its caller already did;
//   - class and method are looked at before the attributes, so what is wrong in two ways may be counted under the other of two names;
//   - an attribute that must be understood and is not: a request is answered (6.3.1), where agents dropped it; an indication is dropped
//     (6.3.2), which pion answers.
package stun
