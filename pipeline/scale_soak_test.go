//go:build soak

package pipeline

const (
	idlePeers   = 20_000
	comingPeers = 100_000
	deadPeers   = 5_000
)
