package status

import (
	"net"

	"golang.org/x/sys/unix"
)

func callerOf(conn net.Conn) (c Caller, ok bool) {
	sock, ok := conn.(*net.UnixConn)
	if !ok {
		return c, false
	}
	raw, err := sock.SyscallConn()
	if err != nil {
		return c, false
	}
	var cred *unix.Ucred
	failed := raw.Control(func(fd uintptr) { cred, err = unix.GetsockoptUcred(int(fd), unix.SOL_SOCKET, unix.SO_PEERCRED) })
	if failed != nil || err != nil {
		return c, false
	}
	return Caller{int(cred.Uid), int(cred.Pid)}, true
}
