package protocol

import (
	"errors"
	"fmt"
	"net/netip"
	"slices"
)

// This file is the policy of a pair of nodes, which both ends enforce: who may open connections to which networks. A client may open
// them to the networks that the portal has approved of a gateway, two gateways to those of one another, and nobody to a
// client. A node may use tunnel addresses of the overlay only.

// OfferState is what the portal has decided about a network that a gateway offers.
type OfferState string

// The states of an offer. Only what is approved is told to others, and may be forwarded to. What is pending waits for the
// operator, or for another gateway to leave; what is refused stays so until the operator decides anew.
const (
	Approved OfferState = "approved"
	Pending  OfferState = "pending"
	Refused  OfferState = "refused"
)

// Offer is one network that a gateway offers. If it is not approved, Why says so in words, and Remedy is the command for the
// portal's machine that approves it, empty where none does.
type Offer struct {
	Prefix netip.Prefix `json:"prefix"`
	State  OfferState   `json:"state"`
	Why    string       `json:"why,omitempty"`
	Remedy string       `json:"remedy,omitempty"`
}

func (o *Offer) validate() error {
	if o.State != Approved && o.State != Pending && o.State != Refused || !printable(o.Why, maxText) || !printable(o.Remedy, maxText) {
		return errors.New("an invalid offer")
	}
	return validatePrefixes([]netip.Prefix{o.Prefix}, 1)
}

// Offers are all that a gateway offers.
type Offers []Offer

// Approved lists the networks that the portal has approved.
func (list Offers) Approved() (approved []netip.Prefix) {
	for _, o := range list {
		if o.State == Approved {
			approved = append(approved, o.Prefix)
		}
	}
	return approved
}

// What is as good as a default route has fewer bits than these.
const (
	leastBits4 = 8
	leastBits6 = 16
)

// Broad reports whether p is as good as a default route: no overlay is, since none takes the Internet for itself.
func Broad(p netip.Prefix) bool {
	return p.Bits() < leastBits4 || p.Addr().Is6() && p.Bits() < leastBits6
}

// Within reports whether p is one of list or within one.
func Within(list []netip.Prefix, p netip.Prefix) bool {
	return slices.ContainsFunc(list, func(o netip.Prefix) bool { return o.Bits() <= p.Bits() && o.Overlaps(p) })
}

// validateOverlay checks the prefixes of tunnel addresses and the node's own.
func (s *Sync) validateOverlay() error {
	if len(s.Overlay) == 0 {
		return errors.New("no overlay")
	}
	for _, o := range s.Overlay {
		if Broad(o) {
			return fmt.Errorf("%v is too large for tunnel addresses", o)
		}
	}
	for _, a := range s.Addresses {
		if !Within(s.Overlay, a) {
			return fmt.Errorf("the tunnel address %v is not of the overlay %v", a, s.Overlay)
		}
	}
	return nil
}

// validatePeer checks what leads to a peer: single addresses of the overlay, and behind a gateway networks outside of it.
func (s *Sync) validatePeer(p *Peer) error {
	for _, a := range p.AllowedIPs {
		switch inside := Within(s.Overlay, a); {
		case inside && a.IsSingleIP():
		case inside, p.Role != Gateway:
			return fmt.Errorf("%v is no tunnel address for peer %s", a, p.Name)
		case a.Bits() > 0 && slices.ContainsFunc(s.Overlay, a.Overlaps):
			return fmt.Errorf("%v behind peer %s overlaps the tunnels' own addresses", a, p.Name)
		}
	}
	return nil
}
