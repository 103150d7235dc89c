package relay

import (
	"sync/atomic"

	"github.com/sluice-vpn/sluice/ice/stun"
)

// drop is a reason why a datagram or request was not served.
type drop int

const (
	dropOversized drop = iota
	dropSource
	dropNotSTUN
	dropMalformed
	dropMethod
	dropBindingLimited
	dropUnauthorizedLimited
	dropAmplification
	dropDontFragment
	dropExpiring
	dropChannelLength
	dropNoAllocation
	dropNoChannel
	dropNoPermission
	dropPeerDenied
	dropPeerFamily
	dropRate
	dropSendFailed
	dropReceiveFailed
	drops
)

// dropNames are the label values of sluice_relay_drops_total.
var dropNames = [drops]string{
	dropOversized:           "oversized",            // longer than any buffer of the protocol
	dropSource:              "source",               // source port 0, or an address that is no host's
	dropNotSTUN:             "not_stun",             // neither STUN nor ChannelData
	dropMalformed:           "malformed",            // STUN that failed the strict check
	dropMethod:              "method",               // a method or class that no client sends to a relay for UDP
	dropBindingLimited:      "binding_limited",      // too many Binding requests of one source
	dropUnauthorizedLimited: "unauthorized_limited", // too many requests of one source that would be answered with an error
	dropAmplification:       "amplification",        // the answer would be more than three times the request
	dropDontFragment:        "dont_fragment",        // Send indication that asks for a DF bit we do not set
	dropExpiring:            "expiring",             // a permission or channel in the last second of an allocation
	dropChannelLength:       "channel_length",       // ChannelData that says it is longer than its datagram
	dropNoAllocation:        "no_allocation",        // data from a 5-tuple without allocation
	dropNoChannel:           "no_channel",           // ChannelData for a number that is not bound
	dropNoPermission:        "no_permission",        // data to or from a peer without permission
	dropPeerDenied:          "peer_denied",          // data to or from a peer that the policy denies
	dropPeerFamily:          "peer_family",          // data to a peer of the family that the allocation has not
	dropRate:                "rate",                 // more than a user may have relayed in a second
	dropSendFailed:          "send_failed",          // refused by the kernel
	dropReceiveFailed:       "receive_failed",       // errors of receive calls
}

// answer is what a request was answered with, for the metrics.
type answer int

const (
	answerBinding answer = iota
	answerSuccess
	answerUnauthorized
	answerStaleNonce
	answerForbidden
	answerMismatch
	answerWrongCredentials
	answerQuota
	answerOtherError
	answers
)

var answerNames = [answers]string{
	answerBinding: "binding", answerSuccess: "success", answerUnauthorized: "401", answerStaleNonce: "438",
	answerForbidden: "403", answerMismatch: "437", answerWrongCredentials: "441", answerQuota: "486",
	answerOtherError: "other_error",
}

// answerOf maps the code of an error response.
func answerOf(code int) answer {
	switch code {
	case stun.CodeUnauthorized:
		return answerUnauthorized
	case stun.CodeStaleNonce:
		return answerStaleNonce
	case stun.CodeForbidden:
		return answerForbidden
	case stun.CodeMismatch:
		return answerMismatch
	case stun.CodeWrongCredentials:
		return answerWrongCredentials
	case stun.CodeQuota:
		return answerQuota
	}
	return answerOtherError
}

// direction is the way of relayed data.
type direction int

const (
	toPeer direction = iota
	toClient
	directions
)

var directionNames = [directions]string{toPeer: "to_peer", toClient: "to_client"}

// stats are the counters of a Server, all atomic.
type stats struct {
	drops     [drops]atomic.Uint64
	answers   [answers]atomic.Uint64
	datagrams [directions]atomic.Uint64
	bytes     [directions]atomic.Uint64 // payload, without ChannelData headers
	created   atomic.Uint64             // allocations ever made
}

func (s *stats) drop(d drop)         { s.drops[d].Add(1) }
func (s *stats) dropN(d drop, n int) { s.drops[d].Add(uint64(n)) }

func (s *stats) relayed(d direction, datagrams, bytes int) {
	s.datagrams[d].Add(uint64(datagrams))
	s.bytes[d].Add(uint64(bytes))
}

// sent counts datagrams of segment bytes each, the last may be shorter, of which the kernel did not take so many.
func (s *stats) sent(d direction, datagrams, failed, bytes, segment int) {
	s.dropN(dropSendFailed, failed)
	s.relayed(d, datagrams-failed, max(0, bytes-failed*segment))
}
