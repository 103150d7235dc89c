package pipeline

import (
	"errors"
	"net"

	"golang.zx2c4.com/wireguard/ipc"
)

// What wg.exe is told, positive: Linux numbers, which is what it knows.
const (
	uapiNotPermitted = 1
	uapiIO           = int(-ipc.IpcErrorIO)
	uapiInvalid      = int(-ipc.IpcErrorInvalid)
	uapiProtocol     = int(-ipc.IpcErrorProtocol)
	uapiAddressInUse = int(-ipc.IpcErrorPortInUse)
)

// ListenUAPI makes the configuration pipe of an interface, \\.\pipe\ProtectedPrefix\Administrators\WireGuard\NAME, which
// only administrators may open. A pipe of that name that exists is an error.
func ListenUAPI(name string) (net.Listener, error) {
	return ipc.UAPIListen(name)
}

// AdoptUAPI would serve an inherited socket; a Windows pipe cannot be inherited.
func AdoptUAPI(uintptr) (net.Listener, error) {
	return nil, errors.New("uapi: a pipe cannot be inherited on Windows")
}
