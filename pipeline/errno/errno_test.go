package errno

import (
	"errors"
	"net"
	"os"
	"testing"
)

// TestMeaning: what the system says of a port that is taken, of one where nobody listens and of a pipe without a reader.
func TestMeaning(t *testing.T) {
	l, err := net.Listen("tcp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	at := l.Addr().String()
	if _, err := net.Listen("tcp", at); !InUse(err) || Refused(err) {
		t.Errorf("a port that is taken: %v", err)
	}
	l.Close()
	if _, err := net.Dial("tcp", at); !Refused(err) || InUse(err) || Unreached(err) {
		t.Errorf("nobody listens: %v", err)
	}
	u, err := net.ListenUDP("udp", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer u.Close()
	if _, err := net.ListenUDP("udp", u.LocalAddr().(*net.UDPAddr)); !InUse(err) {
		t.Errorf("a UDP port that is taken: %v", err)
	}
	r, w, err := os.Pipe()
	if err != nil {
		t.Fatal(err)
	}
	defer w.Close()
	r.Close()
	if _, err := w.Write([]byte("x")); !BrokenPipe(err) {
		t.Errorf("a pipe that nobody reads: %v", err)
	}
	if err := errors.New("something else"); InUse(err) || Refused(err) || Unreached(err) || BrokenPipe(err) || InUse(nil) {
		t.Errorf("%v means something", err)
	}
}
