//go:build soak && linux

package edge

const (
	scaleClients = 500
	scaleIdle    = true
)
