package node

import (
	"bytes"
	"testing"

	"github.com/sluice-vpn/sluice/crypto/aead"
)

// TestNullCipher holds the copy to the shape of the real one: padding, tag, in place and out of place.
func TestNullCipher(t *testing.T) {
	c := newNullCipher(nil)
	plain := []byte("some packet")
	sealed := bytes.Repeat([]byte{0xff}, 16+aead.Overhead)
	c.Seal([]aead.Packet{{Dst: sealed, Src: plain}})
	if want := append([]byte("some packet"), make([]byte, 5+aead.Overhead)...); !bytes.Equal(sealed, want) {
		t.Errorf("sealed %q", sealed)
	}
	run := []aead.Packet{{Dst: sealed[:16], Src: sealed}, {Src: make([]byte, aead.Overhead-1)}, {Src: make([]byte, aead.Overhead)}}
	if n := c.Open(run); n != 2 || !run[0].OK || run[1].OK || !run[2].OK {
		t.Errorf("%d opened: %v %v %v", n, run[0].OK, run[1].OK, run[2].OK)
	}
	if !bytes.HasPrefix(run[0].Dst, plain) {
		t.Errorf("opened %q", run[0].Dst)
	}
	c.Wipe()
}
