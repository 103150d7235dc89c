//go:build !amd64 || purego

package ip

// vectors says that there is no vector code.
const vectors = false

func sumVectors([]byte) uint64 { panic("ip: no vector code") }

func copySumVectors(_, _ []byte) uint64 { panic("ip: no vector code") }
