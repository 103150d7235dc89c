package tun

import (
	"errors"
	"testing"
)

// TestUpAtOnce: a Wintun interface is up from the beginning, although nothing tells; else no socket would ever be opened.
func TestUpAtOnce(t *testing.T) {
	p := newPipe()
	d := newPortable(p, "sluice0", 1400)
	if e := <-d.Events(); e != EventUp {
		t.Errorf("event %v, want that it is up", e)
	}
	if err := d.Close(); err != nil {
		t.Fatal(err)
	}
	if _, err := d.Read(nil); !errors.Is(err, ErrClosed) {
		t.Errorf("read after Close: %v", err)
	}
}
