package uapi

import (
	"errors"
	"net"

	"golang.zx2c4.com/wireguard/ipc"
)

// What wg.exe is told, positive: Linux numbers, which is what it knows.
const (
	errnoNotPermitted = 1
	errnoIO           = int(-ipc.IpcErrorIO)
	errnoInvalid      = int(-ipc.IpcErrorInvalid)
	errnoProtocol     = int(-ipc.IpcErrorProtocol)
	errnoAddressInUse = int(-ipc.IpcErrorPortInUse)
)

// Listen makes the configuration pipe of an interface, \\.\pipe\ProtectedPrefix\Administrators\WireGuard\NAME, which
// only administrators may open. A pipe of that name that exists is an error.
func Listen(name string) (net.Listener, error) {
	return ipc.UAPIListen(name)
}

// Adopt would serve an inherited socket; a Windows pipe cannot be inherited.
func Adopt(uintptr) (net.Listener, error) {
	return nil, errors.New("uapi: a pipe cannot be inherited on Windows")
}
