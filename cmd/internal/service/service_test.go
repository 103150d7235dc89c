package service

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"path/filepath"
	"runtime"
	"slices"
	"strings"
	"testing"
	"testing/synctest"
	"time"
)

// TestFollow: ready once, a line when it changes, and no food for the watchdog while nobody answers.
func TestFollow(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		ctx, cancel := context.WithCancel(t.Context())
		defer cancel()
		begin := time.Now()
		answers := func(context.Context) (State, error) {
			switch at := time.Since(begin); {
			case at < time.Second:
				return State{Line: "signing in"}, nil
			case at < 20*time.Second:
				return State{Line: "1 peer\nis up", Ready: true}, nil
			case at < 70*time.Second:
				return State{}, errors.New("no answer")
			}
			return State{Line: "2 peers are up", Ready: false}, nil
		}
		var said []string
		fed := map[int]int{} // by 10 s
		ended := make(chan struct{})
		go func() {
			defer close(ended)
			follow(ctx, 9*time.Second, answers, func(words string) {
				for word := range strings.SplitSeq(words, "\n") {
					if word == "WATCHDOG=1" {
						fed[int(time.Since(begin)/(10*time.Second))]++
						continue
					}
					said = append(said, word)
				}
			})
		}()
		time.Sleep(90 * time.Second)
		cancel()
		<-ended
		want := []string{"STATUS=signing in", "READY=1", "STATUS=1 peer; is up", "STATUS=2 peers are up", "STOPPING=1", "STATUS=ending"}
		if !slices.Equal(said, want) {
			t.Errorf("said %q, want %q", said, want)
		}
		for at := range 9 {
			if dead := at >= 2 && at < 7; dead != (fed[at] == 0) {
				t.Errorf("at %d s the watchdog was fed %d times in 10 s, dead: %v", 10*at, fed[at], dead)
			}
		}
	})
}

// TestSocket: the words arrive at NOTIFY_SOCKET, and without it nothing is asked.
func TestSocket(t *testing.T) {
	if runtime.GOOS == "windows" {
		t.Skip("SKIPPED: this kernel has no datagram sockets of AF_UNIX")
	}
	log := slog.New(slog.DiscardHandler)
	t.Setenv("NOTIFY_SOCKET", "")
	Follow(t.Context(), log, func(context.Context) (State, error) { t.Error("asked for nobody"); return State{}, nil })

	path := filepath.Join(t.TempDir(), "notify")
	manager, err := net.ListenUnixgram("unixgram", &net.UnixAddr{Name: path, Net: "unixgram"})
	if err != nil {
		t.Fatal(err)
	}
	defer manager.Close()
	t.Setenv("NOTIFY_SOCKET", path)
	ctx, cancel := context.WithCancel(t.Context())
	defer cancel()
	ended := make(chan struct{})
	go func() {
		defer close(ended)
		Follow(ctx, log, func(context.Context) (State, error) { return State{"all is well", true}, nil })
	}()
	for _, want := range []string{"READY=1\nSTATUS=all is well", "STOPPING=1\nSTATUS=ending"} {
		buffer := make([]byte, 1000)
		n, err := manager.Read(buffer)
		if got := string(buffer[:n]); err != nil || got != want {
			t.Errorf("the manager reads %q, %v, want %q", got, err, want)
		}
		cancel()
	}
	<-ended
}
