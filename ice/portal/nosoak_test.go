//go:build !soak

package portal

const soak = false
