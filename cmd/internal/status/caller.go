package status

import (
	"context"
	"net"
	"net/http"
)

// Caller is the process that has opened a connection to the socket.
type Caller struct{ UID, PID int }

type callerKey struct{}

// NoteCaller notes who has opened a connection; it is for http.Server.ConnContext.
func NoteCaller(ctx context.Context, conn net.Conn) context.Context {
	if c, ok := callerOf(conn); ok {
		return context.WithValue(ctx, callerKey{}, c)
	}
	return ctx
}

// CallerOf is who sends a request. Not ok: the system does not tell.
func CallerOf(r *http.Request) (c Caller, ok bool) {
	c, ok = r.Context().Value(callerKey{}).(Caller)
	return c, ok
}
