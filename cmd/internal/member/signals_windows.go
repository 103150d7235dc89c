package member

// onHangUp does nothing: there is no such signal.
func onHangUp(func()) (stop func()) { return func() {} }
