//go:build !linux && !windows

package ice

// silentBell is the bell of a system where nothing tells of changes.
type silentBell struct{ closed chan struct{} }

func newBell() (bell, error) { return silentBell{make(chan struct{})}, nil }

func (b silentBell) ring() bool {
	<-b.closed
	return false
}

func (silentBell) routes() string { return "" }

func (b silentBell) close() { close(b.closed) }
