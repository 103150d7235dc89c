package crypto

import (
	"encoding/binary"
	"fmt"
	"testing"
)

// Kernel receive.c, validate_header_len: the 32-bit type word and the exact length, or nothing.
func TestClassify(t *testing.T) {
	sizes := map[MessageType]int{MessageInitiation: 148, MessageResponse: 92, MessageCookieReply: 64}
	for kind := range MessageType(7) {
		for n := range 300 {
			b := make([]byte, n)
			if n > 0 {
				b[0] = byte(kind)
			}
			want := n >= 4 && (n == sizes[kind] && sizes[kind] > 0 || kind == MessageTransport && n >= 32)
			got, ok := Classify(b)
			if ok != want || ok && got != kind {
				t.Fatalf("type %d, %d bytes: %d %v, want %v", kind, n, got, ok, want)
			}
			if !want {
				continue
			}
			for i := 1; i < 4; i++ { // reserved bytes
				b[i] = 1
				if _, ok := Classify(b); ok {
					t.Fatalf("type %d: reserved byte %d accepted", kind, i)
				}
				b[i] = 0
			}
		}
	}
}

// Section 5.4.6: type, three zero bytes, receiver, counter, little endian.
func TestTransportHeader(t *testing.T) {
	b := make([]byte, SizeKeepalive)
	PutTransportHeader(b, 0x04030201, 0x0c0b0a0908070605)
	if got := fmt.Sprintf("%x", b[:16]); got != "04000000"+"01020304"+"05060708090a0b0c" {
		t.Fatal(got)
	}
	index, counter, ok := ParseTransport(b)
	if !ok || index != 0x04030201 || counter != 0x0c0b0a0908070605 {
		t.Fatal(index, counter, ok)
	}
	for n := range SizeKeepalive {
		if _, _, ok := ParseTransport(b[:n]); ok {
			t.Fatalf("%d bytes accepted", n)
		}
	}
	binary.LittleEndian.PutUint32(b, 1)
	if _, _, ok := ParseTransport(b); ok {
		t.Fatal("an initiation is no transport data")
	}
}

func TestNames(t *testing.T) {
	seen := make(map[string]bool)
	for r := range ReasonCount {
		if name := r.String(); name == "" || name == "unknown" || seen[name] {
			t.Errorf("reason %d is called %q", r, name)
		} else {
			seen[name] = true
		}
	}
	for w := WhyNothing; w <= WhyZero; w++ {
		if w.String() == "" || w.String() == "unknown" {
			t.Errorf("timeout %d has no name", w)
		}
	}
	for k := SendMessage; k <= SeriesExpired; k++ {
		if k.String() == "" || k.String() == "unknown" {
			t.Errorf("output %d has no name", k)
		}
	}
	if ReasonCount.String() != "unknown" || Why(99).String() != "unknown" || OutputKind(99).String() != "unknown" {
		t.Error("what is not one has a name")
	}
}
