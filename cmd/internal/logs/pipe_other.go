//go:build !unix

package logs

func ignoreBrokenPipe() {}
