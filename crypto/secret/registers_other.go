//go:build !amd64 || purego

package secret

// eraseRegisters is for amd64: elsewhere there is no assembly of ours.
func eraseRegisters() {}
