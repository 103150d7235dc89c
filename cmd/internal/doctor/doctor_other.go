//go:build !linux

package doctor

import "runtime"

// Examine knows nothing about other systems yet.
func Examine() Facts { return Facts{OS: runtime.GOOS, Links: []Link{}} }
