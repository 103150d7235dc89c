//go:build !linux

package secret

// signalMask is for Linux.
type signalMask struct{}

func (*signalMask) hold()    {}
func (*signalMask) release() {}
