// Package ip reads and writes the headers of IPv4, IPv6, TCP and UDP packets in place.
//
// A header view is a byte slice with named fields ([IPv4], [IPv6], [TCP], [UDP]). A view comes out of its Parse function,
// which has checked every length that the methods rely on; a view of anything else may panic. Views borrow the
// packet's bytes and change them only in methods called Set.
//
// Beside the views stand what a tunnel needs of the IP layer: the Internet checksum (RFC 1071) with a fast and a plain
// implementation, the two ICMP errors that it answers with ([AppendUnreachable], [AppendTooBig]), and the rules by which
// a congestion mark crosses it ([DecapsulateECN], RFC 6040).
//
// Nothing here keeps state, allocates (the Append functions grow dst only when it is too small) or returns an error:
// a packet is valid or it is not.
package ip
