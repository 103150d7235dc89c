package turn

import (
	"net/netip"

	"github.com/sluice-vpn/sluice/ice/stun"
)

// OutputKind says what an Output asks of the owner of the socket, or tells it.
type OutputKind uint8

// The outputs of a Client.
const (
	SendDatagram OutputKind = iota // send Datagram to the server
	Allocated                      // there is an allocation: Relayed and Mapped
	ChannelBound                   // datagrams to Peer may be framed with Channel
	ChannelLost                    // not any more: Reason
	Permitted                      // Send indications to Peer's address pass; its port is 0
	PermitLost                     // not any more: Reason
	Lost                           // the allocation is gone, and with it every channel: Reason
	Failed                         // there is no allocation: Reason, Code
	Released                       // the server has let go of the allocation, or was told to
)

var outputNames = [...]string{
	SendDatagram: "send", Allocated: "allocated", ChannelBound: "channel_bound", ChannelLost: "channel_lost",
	Permitted: "permitted", PermitLost: "permit_lost", Lost: "lost", Failed: "failed", Released: "released",
}

// String returns the kind's name as logs show it.
func (k OutputKind) String() string { return name(outputNames[:], int(k)) }

// Output is one thing that the client wants done, or tells. Which fields are set depends on Kind.
type Output struct {
	Kind OutputKind
	// Datagram of SendDatagram is frozen: a retransmission shows the same bytes again.
	Datagram []byte
	// Relayed and Mapped of Allocated: the relayed transport address, and ours as the server sees it.
	Relayed, Mapped netip.AddrPort
	// Peer and Channel of the four outputs on channels and permissions.
	Peer    netip.AddrPort
	Channel uint16
	// Reason of Lost, Failed, ChannelLost and PermitLost, and the server's error code or 0.
	Reason Reason
	Code   int
	// Final of Failed: trying again is not likely to help before SetCredentials; the client does so only every few minutes.
	Final bool
}

// Reason is why there is no allocation, channel or permission (any more).
type Reason uint8

// The reasons.
const (
	ReasonNone        Reason = iota
	ReasonSilent             // the server did not answer for SilentAfter, or a request never
	ReasonMismatch           // 437: the server has no such allocation, or another one
	ReasonMapped             // our mapped address changed
	ReasonExpired            // the lifetime ended without a refresh
	ReasonCredentials        // 401 to an authenticated request, or 441
	ReasonStale              // 438 again and again
	ReasonForbidden          // 403
	ReasonCapacity           // 486, 508
	ReasonFamily             // 440, 443: the server, or the relayed address, is not of this family
	ReasonRefused            // another error; pion/turn answers 400 to a wrong user or password
	ReasonIdle               // the channel was not used, so it was not refreshed
)

var reasonNames = [...]string{
	ReasonNone: "none", ReasonSilent: "silent", ReasonMismatch: "allocation_mismatch",
	ReasonMapped: "mapped_address_changed", ReasonExpired: "expired", ReasonCredentials: "credentials",
	ReasonStale: "stale_nonce", ReasonForbidden: "forbidden", ReasonCapacity: "capacity", ReasonFamily: "address_family",
	ReasonRefused: "refused", ReasonIdle: "idle",
}

// String returns the reason's name as logs and status show it.
func (r Reason) String() string { return name(reasonNames[:], int(r)) }

// reasonOf names an error code (RFC 8489, section 14.8; RFC 8656, section 19).
func reasonOf(code int) Reason {
	switch code {
	case stun.CodeUnauthorized, stun.CodeWrongCredentials:
		return ReasonCredentials
	case stun.CodeForbidden:
		return ReasonForbidden
	case stun.CodeMismatch:
		return ReasonMismatch
	case stun.CodeStaleNonce:
		return ReasonStale
	case stun.CodeFamily, stun.CodePeerFamily:
		return ReasonFamily
	case stun.CodeQuota, stun.CodeInsufficient:
		return ReasonCapacity
	}
	return ReasonRefused
}

// final tells whether asking again for an allocation cannot help until something is configured otherwise.
func final(code int) bool {
	switch code {
	case stun.CodeUnauthorized, stun.CodeWrongCredentials, stun.CodeForbidden, stun.CodeFamily,
		stun.CodeTransport, stun.CodeUnknownAttribute, stun.CodeBadRequest:
		return true
	}
	return false
}

// Why says what a timeout is for.
type Why uint8

// The timeouts of a Client.
const (
	WhyNothing    Why = iota
	WhyRetransmit     // a request was not answered (RFC 8489, section 6.2.1)
	WhyRefresh        // the allocation is at half of its life
	WhyKeepalive      // the NAT's mapping needs a datagram
	WhySilence        // the server has been silent for SilentAfter
	WhyRetry          // the back-off before the next Allocate request ends
	WhyBinding        // a channel or permission is due for refresh, or ends
)

var whyNames = [...]string{
	WhyNothing: "nothing", WhyRetransmit: "retransmit", WhyRefresh: "refresh", WhyKeepalive: "keepalive",
	WhySilence: "silence", WhyRetry: "retry", WhyBinding: "binding",
}

// String returns the name as logs show it.
func (w Why) String() string { return name(whyNames[:], int(w)) }

// Drop is why a datagram was dropped.
type Drop uint8

// The reasons to drop a datagram.
const (
	DropNone          Drop = iota
	DropStranger           // not from the server
	DropNotSTUN            // neither STUN nor ChannelData
	DropLength             // the length is not the header's, or no multiple of 4
	DropAttribute          // an attribute reaches out of the message, or there are too many
	DropAddress            // an address attribute has an impossible length or family
	DropValue              // an attribute's length or value is impossible
	DropUnknown            // an attribute that must be understood is not (RFC 8489, section 6.3.3)
	DropOrder              // an attribute after MESSAGE-INTEGRITY or FINGERPRINT
	DropFingerprint        // FINGERPRINT is wrong
	DropIntegrity          // MESSAGE-INTEGRITY is wrong, or is missing in a success response
	DropRequest            // a request, on a socket that serves none
	DropIndication         // an indication other than Data
	DropTransaction        // a response to nothing that we asked
	DropIncomplete         // a response without the attributes that it must have
	DropChannelLength      // ChannelData claims more bytes than there are
	DropChannel            // ChannelData on a channel that nobody holds
	DropPermission         // a Data indication from a peer that nobody permits

	// DropCount is the number of reasons.
	DropCount
)

var dropNames = [DropCount]string{
	DropNone: "none", DropStranger: "stranger", DropNotSTUN: "not_stun", DropLength: "length",
	DropAttribute: "attribute", DropAddress: "address", DropValue: "value", DropUnknown: "unknown_attribute",
	DropOrder: "attribute_order", DropFingerprint: "fingerprint", DropIntegrity: "integrity", DropRequest: "request",
	DropIndication: "indication", DropTransaction: "unknown_transaction", DropIncomplete: "incomplete",
	DropChannelLength: "channel_length", DropChannel: "unbound_channel", DropPermission: "no_permission",
}

// String returns the counter's name.
func (d Drop) String() string { return name(dropNames[:], int(d)) }

func name(names []string, i int) string {
	if i >= len(names) {
		return "unknown"
	}
	return names[i]
}
