//go:build !soak && linux

package edge

// scaleClients is how many clients TestScale has; more under the tag soak, which also waits until all are idle.
const (
	scaleClients = 50
	scaleIdle    = false
)
