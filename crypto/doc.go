// Package crypto is the WireGuard protocol core: handshakes, sessions, cookies, replay and every timer, without a socket,
// a goroutine or a clock. It is written after the WireGuard paper (https://www.wireguard.com/papers/wireguard.pdf; section
// numbers here are the paper's) and behaves like the Linux kernel's drivers/net/wireguard where the paper leaves room.
//
// # The story of a session
//
// A [Local] has our private key and the peers. Somebody has a packet for a [Peer] and there is no session, so the data
// plane stages the packet and control calls [Peer.Want]. That begins a series: an initiation comes out of [Peer.Poll],
// and [Peer.NextTimeout] says when the next one is due should no response come, and when the series' lifetime ends.
//
// The initiation reaches the other side's [Local.Handle]. Its mac1 shows that the sender knows our public key; three
// Diffie-Hellman steps show who it is, its timestamp that it is new. The response comes out of that peer's Poll, and the
// session, a [Keypair], goes into the peer's next slot: its index is in the [IndexTable], it can receive, but it must not
// send, since the initiation might be all that the initiator ever sent.
//
// The response reaches our Handle. The session becomes the current one and is published ([Peer.Sending]); the output
// [SessionUp] has the data plane send what is staged, or an empty packet. When that is opened on the other side, its lane
// wins [Keypair.MarkConfirmed] and control calls [Peer.Confirm], so the session is current there as well.
//
// From then on lanes reserve counters ([Keypair.Reserve]), seal, open, ask the replay window and note stamps; control
// reads the stamps as [Activity] when a deadline falls due. After 120 s the initiator wants another session, which takes
// the place of this one; this one moves to the previous slot, for packets still under way, and is retired by the next
// rotation. What was retired is out of the table, and its owner calls [Keypair.Wipe] when no lane holds it any more.
//
// If no response comes before the lifetime ends, the series is over at that very moment: no more initiations, the
// handshake's secrets wiped, and one output of kind [SeriesExpired], with the counters that tell the cause.
//
// # How to call it
//
// now is a time.Duration since any origin, on a clock that also runs in suspend; it is above 0 and does not go back.
// 0 means never. After each input drain Poll, then set the one timer from NextTimeout. All of Local and Peer belongs to
// one goroutine, but for [IndexTable.Lookup], [Peer.Sending] and the methods of Keypair.
//
// # Where each rule is
//
//	message.go    formats, exact lengths, reserved bytes: 5.4.2, 5.4.3, 5.4.6, 5.4.7; validate_header_len
//	noise.go      Noise_IKpsk2 symmetric state, HKDF, zero Diffie-Hellman results: 5.4; kdf, mix_dh
//	handshake.go  initiation and response, TAI64N check, 20 ms, silence: 5.1 to 5.4.5; wg_noise_handshake_*
//	tai64n.go     timestamps, rounded to 2^24 ns: 5.1; tai64n_now
//	cookie.go     mac1, mac2, cookie reply, under load: 5.3, 5.4.4, 5.4.7, 6.6; cookie.c, wg_receive_handshake_packet
//	ratelimit.go  20 a second by IPv4 address, IPv6 /64, or port or channel of a relay: 5.3; ratelimiter.c
//	session.go    previous, current, next: 6.3; add_new_keypair, wg_noise_received_with_keypair
//	keypair.go    counters, ages: 5.4.6, 6.1, 6.2; keep_key_fresh
//	index.go      random indices: 5.4.2; peerlookup.c
//	series.go     retries, lifetime, unanswered data, keepalives, zeroing: 6.1 to 6.5; timers.c
//	local.go      static key, peers, the order of the checks: netlink.c, receive.c
//	replay/       the sliding window of RFC 6479: counter_validate
//
// # Where it differs from the kernel
//
//   - The end of a series is a deadline ([PeerConfig.HandshakeLifetime]) and not a count of attempts, which overshoots.
//   - With FastRetry, on paths that are known to work, initiations leave at 0, 1, 3, 6 and 10 s while no session exists.
//   - Of two initiations that cross, the one by the greater public key stays, so that its response makes the session. The
//     kernel forgets both, and the retries may cross again.
//   - A retry that would come less than 5 s after a response of ours is put off, not dropped. So is a session that is
//     wanted too early.
//   - Our timestamps always grow, also when the wall clock is set back.
//   - Cookie replies, responses and initiations that fail are counted by reason and by peer ([Tally]).
//   - A failed series forgets its handshake at once, not after 540 s. Sessions still live until they are rejected.
//
// # What is left out
//
// Padding, the lengths of inner packets, allowed IPs, staged packets, endpoints and ECN are the data plane's. There is
// no early drop of handshake messages by a full queue: whoever keeps the queue drops, and tells [Local.NoteQueue].
//
// # What becomes of secret keys
//
// A key that is in use stands in memory once: the private key in [Local], the preshared and the static-static key in [Peer],
// those of a session in its ciphers. A key that is retired is overwritten by its owner: when the private key is replaced, the
// peer removed, the preshared key changed, the session out of its slots and let go of ([Keypair.Wipe]), the handshake done.
// What is computed with them lives on the stack and in vector registers, which secret.Do overwrites, and package aead after each
// run; no signal, which would have the system and the Go runtime save the registers, reaches the thread in secret.Do. That is
// why X25519 is our own: the one of crypto/ecdh leaves private keys and results on the heap. A test of cmd/sluice-wg reads the
// memory of the program a second after: no retired key, ephemeral key, Diffie-Hellman result, chaining or session key, and each
// one in use once.
//
// Go leaves these, which no program can overwrite:
//
//   - A signal that comes while packets are sealed or opened, and the Go runtime sends some, has the system save the vector
//     registers of the thread. These may hold pieces of 16 bytes of a session key, never all of it, which stay until the thread's
//     next signal. The test found 0 in 50 searches and permits 16. Outside Linux that is so while a handshake is computed, too, and
//     of all of a key; only on amd64 are registers overwritten.
//   - A garbage collection that begins while packets are sealed or opened may move the stack, and leave the old one. A handshake
//     uses too much of its stack to be moved.
//   - Without assembly (other processors than amd64, and the tag purego) x/crypto puts the session key on the heap with every
//     packet. Cookies, which prove an address for two minutes, are in x/crypto's BLAKE2s, also on the heap.
//   - What arrives as text or in JSON belongs to the library that parses it: in sluice the token, and the preshared keys
//     that the portal gives out.
//
// With GOEXPERIMENT=runtimesecret the runtime also erases registers and what was left on the heap by a handshake.
package crypto
