//go:build !soak

package pipeline

// How much of everything the scale tests take; more under the tag soak.
const (
	idlePeers   = 2_000
	comingPeers = 20_000
	deadPeers   = 1_000
)
