// Package crypto is the WireGuard protocol core.
package crypto
