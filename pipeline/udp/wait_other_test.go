//go:build !linux

package udp

import "time"

func waitReadable(s Socket) { waitChannel(s.Ready()) }

func waitWritable(s Socket) { waitChannel(s.Writable()) }

func waitChannel(c <-chan struct{}) {
	select {
	case <-c:
	case <-time.After(time.Second):
	}
}
