package udp

import (
	"errors"
	"fmt"
	"net"
	"slices"
	"syscall"
	"testing"
)

// fakeSocket has a port and remembers Close.
type fakeSocket struct {
	Socket
	port uint16
	open *[]uint16
}

func (f fakeSocket) LocalPort() uint16 { return f.port }

func (f fakeSocket) Close() error {
	i := slices.Index(*f.open, f.port)
	*f.open = slices.Delete(*f.open, i, i+1)
	return nil
}

// fakeOpener opens as asked and counts what is open; ports are chosen from 100 upward.
func fakeOpener(open *[]uint16, fail func(f family, port uint16, share bool) error) opener {
	next := uint16(100)
	return func(_ Config, f family, port uint16, share bool) (Socket, error) {
		if err := fail(f, port, share); err != nil {
			return nil, err
		}
		if port == 0 {
			port = next
			next++
		}
		*open = append(*open, port)
		return fakeSocket{port: port, open: open}, nil
	}
}

func TestListenFamilies(t *testing.T) {
	missing := fmt.Errorf("%w: %w", errFamily, syscall.EAFNOSUPPORT)
	tests := []struct {
		name       string
		fail       func(f family, port uint16, share bool) error
		has4, has6 bool
		want       error
	}{
		{"both", func(family, uint16, bool) error { return nil }, true, true, nil},
		{"no IPv4", func(f family, _ uint16, _ bool) error { return onlyFor(f == v4, missing) }, false, true, nil},
		{"no IPv6", func(f family, _ uint16, _ bool) error { return onlyFor(f == v6, missing) }, true, false, nil},
		{"neither", func(family, uint16, bool) error { return missing }, false, false, ErrNoFamily},
		{"taken in IPv6", func(f family, _ uint16, _ bool) error { return onlyFor(f == v6, syscall.EADDRINUSE) }, false, false, syscall.EADDRINUSE},
		{"third shard", func(f family, _ uint16, share bool) error { return onlyFor(f == v6 && share, syscall.EMFILE) }, false, false, syscall.EMFILE},
	}
	for _, test := range tests {
		var open []uint16
		pairs, err := listen(Config{Port: 7, Shards: 3}, fakeOpener(&open, test.fail))
		if !errors.Is(err, test.want) {
			t.Errorf("%s: %v, want %v", test.name, err, test.want)
		}
		if err != nil {
			if len(open) != 0 || pairs != nil {
				t.Errorf("%s: left %d sockets open", test.name, len(open))
			}
			continue
		}
		for _, p := range pairs {
			if (p.V4 != nil) != test.has4 || (p.V6 != nil) != test.has6 || p.port() != 7 {
				t.Errorf("%s: pair %+v", test.name, p)
			}
		}
		if len(pairs) != 3 {
			t.Errorf("%s: %d pairs", test.name, len(pairs))
		}
	}
}

func onlyFor(yes bool, err error) error {
	if yes {
		return err
	}
	return nil
}

// TestListenFindsAPortFreeInBoth: ports 100 to 104 are taken in IPv6.
func TestListenFindsAPortFreeInBoth(t *testing.T) {
	var open []uint16
	pairs, err := listen(Config{Shards: 1}, fakeOpener(&open, func(f family, port uint16, _ bool) error {
		return onlyFor(f == v6 && port < 105, syscall.EADDRINUSE)
	}))
	if err != nil || pairs[0].port() != 105 || len(open) != 2 {
		t.Fatalf("%v, %v, open %v", pairs, err, open)
	}
	open = nil
	tries := 0
	_, err = listen(Config{Shards: 1}, fakeOpener(&open, func(f family, _ uint16, _ bool) error {
		if f == v6 {
			tries++
		}
		return onlyFor(f == v6, syscall.EADDRINUSE)
	}))
	if !errors.Is(err, syscall.EADDRINUSE) || tries != portTries || len(open) != 0 {
		t.Fatalf("%v after %d tries", err, tries)
	}
}

func TestListenPortTaken(t *testing.T) {
	forEachKind(t, func(t *testing.T, cfg Config) {
		other, err := net.ListenUDP("udp4", &net.UDPAddr{})
		if err != nil {
			t.Fatal(err)
		}
		defer other.Close()
		cfg.Port = uint16(other.LocalAddr().(*net.UDPAddr).Port)
		if _, err := Listen(cfg); !errors.Is(err, syscall.EADDRINUSE) {
			t.Fatalf("Listen on a taken port: %v", err)
		}
	})
}
