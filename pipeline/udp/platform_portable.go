//go:build !linux

package udp

// openNative is the portable opener where there is no other.
var openNative = openPortable

// openRoutes opens none.
func openRoutes(uint16) (Routes, error) { return nil, nil }

// addSpares adds none: what systems do with a full buffer differs, and a portable port cannot be shared.
func addSpares(Config, []Pair) {}
