package udp

import (
	"errors"
	"fmt"
	"math"
	"syscall"
)

const (
	// defaultReceiveBuffer is 10 ms at 3 Gbit/s: longer queues only add delay.
	defaultReceiveBuffer = 4 << 20
	// defaultSendBuffer is no bound at all, as in the kernel's WireGuard (INT_MAX, socket.c, set_sock_opts): all peers share the
	// socket, so it must never be full. The queue of the device that is too slow drops, and only for those who go that way.
	defaultSendBuffer = math.MaxInt32 / 2
	// portTries bounds the search for a port that is free in both families.
	portTries = 64
)

// family is an address family; the opener of a platform maps it to its own constants.
type family int

const (
	v4 family = 4
	v6 family = 6
)

// opener opens one socket. share tells that the port is shared with sockets that Listen opened before; the first of a
// family is opened alone, so that a port which another program holds is seen as taken even where both would share it.
// Errors: errFamily if the machine lacks the family, EADDRINUSE if the port is taken.
type opener func(cfg Config, f family, port uint16, share bool) (Socket, error)

// errFamily says that this one family is missing.
var errFamily = errors.New("address family missing")

// Listen opens cfg.Shards pairs of sockets, IPv4 and IPv6 (IPv6 only), all on one port. It returns a single pair where a
// port cannot be shared among sockets (the portable socket). A family that the machine lacks is nil in every pair;
// [ErrNoFamily] is returned if both are missing. A taken port is EADDRINUSE, for errors.Is, on every system. On error nothing
// stays open.
func Listen(cfg Config) ([]Pair, error) {
	cfg = withDefaults(cfg)
	if cfg.Portable || portableOnly {
		cfg.Shards = 1
		return listen(cfg, openPortable) // which tells and takes no local addresses, so that routes do not matter
	}
	pairs, err := listen(cfg, openNative)
	if err != nil {
		return nil, err
	}
	addSpares(cfg, pairs)
	if cfg.Routes {
		pairs[0].Routes, pairs[0].NoRoutes = openRoutes(pairs[0].LocalPort())
	}
	return pairs, nil
}

func withDefaults(cfg Config) Config {
	cfg.Shards = max(1, cfg.Shards)
	if cfg.ReceiveBuffer <= 0 {
		cfg.ReceiveBuffer = defaultReceiveBuffer
	}
	if cfg.SendBuffer <= 0 {
		cfg.SendBuffer = defaultSendBuffer
	}
	return cfg
}

func listen(cfg Config, open opener) ([]Pair, error) {
	first, err := openFirst(cfg, open)
	if err != nil {
		return nil, fmt.Errorf("udp: listen on port %d: %w", cfg.Port, err)
	}
	pairs := []Pair{first}
	port := first.port()
	for len(pairs) < cfg.Shards {
		var next Pair
		if first.V4 != nil {
			next.V4, err = open(cfg, v4, port, true)
		}
		if err == nil && first.V6 != nil {
			next.V6, err = open(cfg, v6, port, true)
		}
		pairs = append(pairs, next)
		if err != nil {
			closeAll(pairs)
			return nil, fmt.Errorf("udp: listen on port %d, shard %d: %w", port, len(pairs)-1, err)
		}
	}
	return pairs, nil
}

// openFirst opens the pair that decides the port. With port 0 the kernel's choice for the first family may be taken in
// the other; then it is tried again.
func openFirst(cfg Config, open opener) (Pair, error) {
	for tries := 1; ; tries++ {
		p, err := openPair(cfg, open)
		if err == nil {
			return p, nil
		}
		if cfg.Port != 0 || tries == portTries || !errors.Is(err, syscall.EADDRINUSE) {
			return Pair{}, err
		}
	}
}

func openPair(cfg Config, open opener) (Pair, error) {
	var p Pair
	var err error
	port := cfg.Port
	if p.V4, err = open(cfg, v4, port, false); err == nil {
		port = p.V4.LocalPort()
	} else if p.V4 = nil; !errors.Is(err, errFamily) {
		return Pair{}, err
	}
	if p.V6, err = open(cfg, v6, port, false); err == nil {
		return p, nil
	}
	p.V6 = nil
	switch {
	case !errors.Is(err, errFamily):
		closeAll([]Pair{p})
		return Pair{}, err
	case p.V4 == nil:
		return Pair{}, ErrNoFamily
	}
	return p, nil
}

// of is the pair's socket of a family, nil if there is none.
func (p Pair) of(f family) Socket {
	if f == v6 {
		return p.V6
	}
	return p.V4
}

func (p Pair) port() uint16 {
	if p.V4 != nil {
		return p.V4.LocalPort()
	}
	return p.V6.LocalPort()
}

func closeAll(pairs []Pair) {
	for _, p := range pairs {
		for _, s := range []Socket{p.V4, p.V6} {
			if s != nil {
				_ = s.Close() // the error that made us close counts more
			}
		}
	}
}
