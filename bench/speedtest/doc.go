// Package speedtest measures WireGuard programs on this machine, beside each other and beside the limits of the machine.
//
// [Run] lays a cable between two network namespaces, A and B (package lab). For each measurement it starts a program twice,
// one process in each namespace, which makes a TUN device and a UAPI socket; it configures both over the socket, gives
// the devices inner addresses, and sends a load through: TCP flows, UDP packets, or round-trip probes. The load comes
// from threads of this process with raw system calls, large reads and writes and no allocation, so that two CPUs are left to
// what is measured. Then the processes end. Nothing is left on the machine, also not after a crash.
//
//	load -> TUN -> program A -> UDP over the cable -> program B -> TUN -> load
//
// What is measured, an implementation, is one of:
//
//   - sluice: our node;
//   - null: our node with the AEAD replaced by a copy: what is beyond it is the price of the cipher;
//   - bare: the same load over the cable, no tunnel at all, the limit of the kernel and of the load generator;
//   - wireguard-go, tailscale or any program that keeps the contract of sluice-wg (PROG -f IFNAME), with -against.
//
// Implementations are interleaved (A B A B), so that a machine that slows down slows all of them, and compared by medians
// over the rounds.
//
// # Cases
//
// See [Cases]. A measurement lasts the configured duration after a short warm-up. Rates are of what arrived.
//
// # The JSON report
//
// [Report] is the object that -json prints; its fields and those of [Machine] and [Result] say their units. Fields that have
// no meaning for a case or an implementation are left out.
//
// # What the figures are not
//
// Both tunnel ends, sender and receiver share one machine. A veth cable passes superpackets on whole, which flatters
// programs that use UDP_SEGMENT; -segment switches that off. A round of three seconds says nothing about drift or rekeys.
package speedtest
