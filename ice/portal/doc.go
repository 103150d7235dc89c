// Package portal is where nodes sign in: it embeds the signaling broker and a relay, and knows of each node its role, key,
// addresses and routes, and which nodes may reach which.
//
//	nodes --TLS--> broker (ice/signal/broker) --offers, answers, byes--> nodes
//	                  |
//	                sync requests --> Portal --> answers, at once or when something has changed
//	                  |                 |
//	               JetStream KV <-- state        relay (ice/relay): STUN and TURN over UDP
//
// All state is in one folder: the certificate and its key, and the broker's JetStream store with one bucket: a record for each
// node, and the portal's own settings. Changes are written there first and only then take effect. Of tokens only hashes of
// what nodes sign in with are kept, so nobody who reads the folder signs in as a node, or has its identity (protocol.Identity).
// A store that has failed, on a full disk for example, is opened anew as soon as the disk takes data, and gets what it lacks;
// until then nodes that change nothing are served, and /readyz says why the others are not. Backup is all of it as one document, of
// which Restore makes a folder. One process uses the folder at a time. A state that is not whole is an error at the start, and never an empty portal.
//
// Several portals may be one cluster (Cluster): their brokers pass messages on to one another, and the bucket is at three of them. Every
// change is then a compare-and-set, every portal follows the bucket and answers from memory, and what is known goes on where no majority
// is there to take changes. Who is signed in where they tell one another without the bucket (presence).
//
// Requests of nodes are bounded: one of each node waits, and who asks or changes too often is dropped or told to wait, and in
// the end disconnected. Where two programs use one token, the one that connected last is served and the other is told.
//
// A node that is removed, or gets another token, is refused from then on, by the portal's own relay too, and its connection is
// ended. What a node may do is enforced by the broker's permissions (signal.Permissions): it can write only to nodes that it
// is linked with, and nobody can write in its name.
package portal
