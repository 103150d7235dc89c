package tun

import "testing"

func TestPost(t *testing.T) {
	events := make(chan Event, 2)
	for _, e := range []Event{EventUp, EventDown, EventMTU, EventGone} {
		post(events, e)
	}
	if a, b := <-events, <-events; a != EventMTU || b != EventGone {
		t.Errorf("%d and %d wait, want the newest two", a, b)
	}
}
