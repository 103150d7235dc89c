package stun

import "github.com/sluice-vpn/sluice/pipeline/frame"

// Attr is the type of an attribute.
type Attr uint16

// The attributes that somebody here reads, writes or hands to pion (RFC 8489, section 18.3; RFC 8656, section 18; RFC 8445, section
// 16.1; RFC 5780, section 7). An attribute up to 0x7FFF is comprehension-required: who does not know it must not go on as if it
// were not there (RFC 8489, section 14).
const (
	MappedAddress      Attr = 0x0001
	ChangeRequest      Attr = 0x0003
	SourceAddress      Attr = 0x0004 // of RFC 3489, as the next: old servers add them to their answers
	ChangedAddress     Attr = 0x0005
	Username           Attr = 0x0006
	Integrity          Attr = 0x0008 // MESSAGE-INTEGRITY
	ErrorCode          Attr = 0x0009
	UnknownAttributes  Attr = 0x000A
	ChannelNumber      Attr = 0x000C
	Lifetime           Attr = 0x000D
	XORPeerAddress     Attr = 0x0012
	Data               Attr = 0x0013
	Realm              Attr = 0x0014
	Nonce              Attr = 0x0015
	XORRelayedAddress  Attr = 0x0016
	RequestedFamily    Attr = 0x0017 // REQUESTED-ADDRESS-FAMILY
	EvenPort           Attr = 0x0018
	RequestedTransport Attr = 0x0019
	DontFragment       Attr = 0x001A
	IntegritySHA256    Attr = 0x001C // MESSAGE-INTEGRITY-SHA256; its form is looked at, its value is not
	XORMappedAddress   Attr = 0x0020
	ReservationToken   Attr = 0x0022
	Priority           Attr = 0x0024
	UseCandidate       Attr = 0x0025
	AdditionalFamily   Attr = 0x8000 // ADDITIONAL-ADDRESS-FAMILY
	XORMappedOld       Attr = 0x8020 // of a draft; pion takes it for XOR-MAPPED-ADDRESS
	Software           Attr = 0x8022
	AlternateServer    Attr = 0x8023
	Fingerprint        Attr = 0x8028
	ICEControlled      Attr = 0x8029
	ICEControlling     Attr = 0x802A
	ResponseOrigin     Attr = 0x802B
	OtherAddress       Attr = 0x802C
)

// required reports whether an attribute "MUST be understood" (RFC 8489, section 14): "Attributes with type values between 0x0000 and
// 0x7FFF are comprehension-required attributes".
func (a Attr) required() bool { return a < 0x8000 }

// Longest values in bytes.
const (
	maxUsername = 508 // RFC 8489, section 14.3: "fewer than 509 bytes"
	maxText     = 763 // sections 14.9, 14.10 and 14.14, and the reason phrase of 14.8: "can be as long as 763 bytes"
	maxValue    = 0xFFFF
)

const sizeIntegrity = 20

// shape is what the value of an attribute must be, and who knows the attribute. One that is comprehension-required and not known is as
// one that is not in the table, but its form is checked all the same, since pion reads it.
type shape struct {
	min, max, step uint16 // of the length in bytes
	address        bool   // 8 bytes of IPv4 or 20 of IPv6, see frame.AddressFits
	known          policies
}

// slots is the size of the table: the lowest 48 attributes of either half of the type's range. 0 belongs to no attribute.
const (
	slots     = 2 * slotsHalf
	slotsHalf = 0x30
	upper     = 0x8000 - slotsHalf // what an attribute that is not comprehension-required has more than its slot
)

// slot is where an attribute stands in the table, 0 if it is not in there.
func (a Attr) slot() int {
	switch {
	case a < slotsHalf:
		return int(a)
	case a >= 0x8000 && a < 0x8000+slotsHalf:
		return int(a) - upper
	}
	return 0
}

var shapes = [slots]shape{
	MappedAddress:      {address: true, known: all},
	ChangeRequest:      {4, 4, 1, false, server}, // RFC 5780, section 7.2
	SourceAddress:      {address: true, known: client},
	ChangedAddress:     {address: true, known: client},
	Username:           {0, maxUsername, 1, false, all},
	Integrity:          {sizeIntegrity, sizeIntegrity, 1, false, all},
	ErrorCode:          {4, 4 + maxText, 1, false, all},
	UnknownAttributes:  {0, maxValue, 2, false, all},
	ChannelNumber:      {4, 4, 1, false, client | server},
	Lifetime:           {4, 4, 1, false, client | server},
	XORPeerAddress:     {address: true, known: client | server},
	Data:               {0, maxValue, 1, false, client | server},
	Realm:              {0, maxText, 1, false, all},
	Nonce:              {0, maxText, 1, false, all},
	XORRelayedAddress:  {address: true, known: client | server},
	RequestedFamily:    {4, 4, 1, false, client | server},
	EvenPort:           {1, 1, 1, false, client | server},
	RequestedTransport: {4, 4, 1, false, client | server},
	DontFragment:       {0, 0, 1, false, client | server},
	// RFC 8489, section 14.6: "The value will be at most 32 bytes, but it MUST be at least 16 bytes and MUST be a multiple of 4 bytes".
	IntegritySHA256:          {16, 32, 4, false, all},
	XORMappedAddress:         {address: true, known: all},
	ReservationToken:         {8, 8, 1, false, client | server},
	Priority:                 {4, 4, 1, false, peer | server},
	UseCandidate:             {0, 0, 1, false, peer | server},
	AdditionalFamily - upper: {4, 4, 1, false, all},
	XORMappedOld - upper:     {address: true, known: all},
	Software - upper:         {0, maxText, 1, false, all},
	AlternateServer - upper:  {address: true, known: all},
	Fingerprint - upper:      {4, 4, 1, false, all},
	ICEControlled - upper:    {8, 8, 1, false, all},
	ICEControlling - upper:   {8, 8, 1, false, all},
	ResponseOrigin - upper:   {address: true, known: all},
	OtherAddress - upper:     {address: true, known: all},
}

// fits judges a value.
func (s *shape) fits(kind Attr, v []byte) Drop {
	switch n := len(v); {
	case s.known == 0: // not in the table
		return DropNone
	case s.address:
		if !frame.AddressFits(v) {
			return DropAddress
		}
	case n < int(s.min) || n > int(s.max) || n%int(s.step) != 0:
		return DropValue
	case kind == ErrorCode && !codeFits(v):
		return DropValue
	}
	return DropNone
}

// codeFits: "The Class represents the hundreds digit of the error code. The value MUST be between 3 and 6. The Number [...]
// MUST be between 0 and 99" (RFC 8489, section 14.8).
func codeFits(v []byte) bool {
	class, number := v[2]&7, v[3]
	return class >= 3 && class <= 6 && number < 100
}
