package netcheck

import (
	"context"
	"crypto/rand"
	"errors"
	"net"
	"net/netip"
	"slices"
	"sync"
	"time"

	"github.com/sluice-vpn/sluice/ice/stun"
)

// tries are the waits after each request that is not answered, scaled to Config.Wait: together all of it.
var tries = [...]float64{1. / 12, 2. / 12, 3. / 12, 6. / 12}

// elsewhere are addresses of documentation (RFC 5737, RFC 3849): they tell whether there is a way to the rest of the world.
var elsewhere = map[string]netip.AddrPort{
	"udp4": netip.MustParseAddrPort("192.0.2.1:9"), "udp6": netip.MustParseAddrPort("[2001:db8::1]:9"),
}

// family asks the servers of one family from one socket, and then what the NATs do.
func (c *Config) family(ctx context.Context, network string, servers []Server) (f Family, reports []ServerReport) {
	f = Family{
		UDP: Untested, Mapped: []netip.AddrPort{}, Mapping: Unknown, MappingEvidence: NoAnswer, Filtering: Unknown, FilteringEvidence: NoAnswer,
	}
	to := elsewhere[network]
	if len(servers) > 0 {
		to = servers[0].Addr
	}
	f.Address, f.Via = c.source(ctx, network, to)
	if len(servers) == 0 {
		return f, nil
	}
	s, err := c.listen(ctx, network)
	if err != nil {
		f.UDP = Failed
		for _, server := range servers {
			reports = append(reports, ServerReport{Name: server.Name, Server: server.Addr, Error: err.Error()})
		}
		return f, reports
	}
	defer s.close()
	reports = make([]ServerReport, len(servers))
	var tasks sync.WaitGroup
	for i, server := range servers {
		tasks.Go(func() {
			reports[i] = ServerReport{Name: server.Name, Server: server.Addr}
			a, err := s.ask(ctx, server.Addr, 0, c.Wait)
			if err != nil {
				reports[i].Error = err.Error()
				return
			}
			reports[i].Answered, reports[i].RTTS, reports[i].Mapped, reports[i].Other = true, a.took.Seconds(), a.mapped, a.other
		})
	}
	tasks.Wait()
	f.UDP = Blocked
	if f.Address == (netip.Addr{}) {
		f.UDP = Failed // no route
	}
	for _, r := range reports {
		if r.Answered {
			f.UDP = Works
			if !slices.Contains(f.Mapped, r.Mapped) {
				f.Mapped = append(f.Mapped, r.Mapped)
			}
		}
	}
	if f.UDP == Works {
		c.behavior(ctx, &f, network, s, reports)
	}
	return f, reports
}

// behavior finds out what the NATs do, by the server that can tell most.
func (c *Config) behavior(ctx context.Context, f *Family, network string, s *socket, reports []ServerReport) {
	first := slices.IndexFunc(reports, func(r ServerReport) bool { return r.Answered })
	best := slices.IndexFunc(reports, func(r ServerReport) bool { return r.Answered && r.Other.IsValid() && r.Other.Addr() != r.Server.Addr() })
	if best < 0 {
		best = slices.IndexFunc(reports, func(r ServerReport) bool { return r.Answered && r.Other.IsValid() && r.Other != r.Server })
	}
	f.PortKept = reports[first].Mapped.Port() == s.port
	if reports[first].Mapped == netip.AddrPortFrom(f.Address, s.port) {
		f.Mapping, f.MappingEvidence = NoNAT, OneServer
	} else {
		f.Mapping, f.MappingEvidence = compare(reports)
		if best >= 0 {
			f.Mapping, f.MappingEvidence = c.mapping(ctx, s, &reports[best])
		}
	}
	f.Filtering, f.FilteringEvidence = Unknown, OneServer
	if best >= 0 {
		f.Filtering, f.FilteringEvidence = c.filtering(ctx, network, &reports[best])
	}
}

// compare tells the mapping by what several servers see.
func compare(reports []ServerReport) (Behavior, Evidence) {
	var one *ServerReport
	addresses := false // of several servers
	for i := range reports {
		switch r := &reports[i]; {
		case !r.Answered:
		case one == nil:
			one = r
		case r.Mapped != one.Mapped:
			return Dependent, OtherServers
		default:
			addresses = addresses || r.Server.Addr() != one.Server.Addr()
		}
	}
	if addresses {
		return EndpointIndependent, OtherServers
	}
	return Unknown, OneServer
}

// mapping is RFC 5780, section 4.3, as far as the server has other addresses: r is test I.
func (c *Config) mapping(ctx context.Context, s *socket, r *ServerReport) (Behavior, Evidence) {
	if r.Other.Addr() == r.Server.Addr() {
		second, err := s.ask(ctx, r.Other, 0, c.Wait)
		switch {
		case err != nil:
			return Unknown, OneServer
		case second.mapped == r.Mapped:
			return NotPortDependent, OtherPort
		}
		return AddressAndPortDependent, OtherPort
	}
	second, err := s.ask(ctx, netip.AddrPortFrom(r.Other.Addr(), r.Server.Port()), 0, c.Wait)
	switch {
	case err != nil:
		return Unknown, OneServer
	case second.mapped == r.Mapped:
		return EndpointIndependent, OtherAddress
	}
	third, err := s.ask(ctx, r.Other, 0, c.Wait)
	switch {
	case err != nil:
		return Dependent, OtherAddress
	case third.mapped == second.mapped:
		return AddressDependent, OtherAddress
	}
	return AddressAndPortDependent, OtherAddress
}

// Flags of CHANGE-REQUEST (RFC 5780, section 7.2).
const changeAddress, changePort = 0x4, 0x2

// filtering is RFC 5780, section 4.4, from a socket that has sent to nobody but the server's first address. An answer that does not come
// may also be one that was lost; the request is sent four times.
func (c *Config) filtering(ctx context.Context, network string, r *ServerReport) (Behavior, Evidence) {
	s, err := c.listen(ctx, network)
	if err != nil {
		return Unknown, OneServer
	}
	defer s.close()
	if _, err := s.ask(ctx, r.Server, 0, c.Wait); err != nil {
		return Unknown, OneServer
	}
	evidence := OtherPort
	if r.Other.Addr() != r.Server.Addr() {
		evidence = OtherAddress
		if _, err := s.ask(ctx, r.Server, changeAddress|changePort, c.Wait); err == nil {
			return EndpointIndependent, evidence
		}
	}
	switch _, err := s.ask(ctx, r.Server, changePort, c.Wait); {
	case err != nil:
		return AddressAndPortDependent, evidence
	case evidence == OtherPort:
		return NotPortDependent, evidence
	}
	return AddressDependent, evidence
}

// socket is a UDP socket whose answers go to who asked. Its methods may be called by any goroutine.
type socket struct {
	conn  *net.UDPConn
	port  uint16
	ended chan struct{}

	mu      sync.Mutex // a leaf
	waiting map[stun.ID]asked
}

// asked is a request that waits. told has room for the answers to all tries.
type asked struct {
	at   time.Time
	told chan answer
}

// answer is what a server says.
type answer struct {
	mapped, other netip.AddrPort
	took          time.Duration
}

func (c *Config) listen(ctx context.Context, network string) (*socket, error) {
	conn, err := (&net.ListenConfig{Control: c.Control}).ListenPacket(ctx, network, ":0")
	if err != nil {
		return nil, err
	}
	s := &socket{
		conn: conn.(*net.UDPConn), port: uint16(conn.LocalAddr().(*net.UDPAddr).Port), ended: make(chan struct{}),
		waiting: map[stun.ID]asked{},
	}
	go s.receive()
	return s, nil
}

func (s *socket) close() {
	s.conn.Close()
	<-s.ended
}

// receive hands answers on until the socket is closed. The transaction, 96 random bits, is what an answer is known by, since with
// CHANGE-REQUEST it comes from elsewhere.
func (s *socket) receive() {
	defer close(s.ended)
	buffer := make([]byte, 1500)
	var m stun.Message
	for {
		n, err := s.conn.Read(buffer)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil {
			continue // what the network says of earlier datagrams
		}
		if m.Parse(buffer[:n], stun.Client) != stun.DropNone || m.Class != stun.Success || m.Method != stun.Binding || !m.Has(stun.XORMappedAddress) {
			continue
		}
		now := time.Now()
		a := answer{mapped: m.Mapped(), other: stun.Unmap(m.Address(stun.OtherAddress))}
		s.mu.Lock()
		of, known := s.waiting[m.ID]
		delete(s.waiting, m.ID)
		s.mu.Unlock()
		if known {
			a.took = now.Sub(of.at)
			of.told <- a
		}
	}
}

// errSilent: no answer came.
var errSilent = errors.New("no answer")

// ask sends requests until one is answered, for wait at most. change are flags of CHANGE-REQUEST.
func (s *socket) ask(ctx context.Context, to netip.AddrPort, change uint32, wait time.Duration) (a answer, err error) {
	told := make(chan answer, len(tries))
	var ids []stun.ID
	defer func() {
		s.mu.Lock()
		defer s.mu.Unlock()
		for _, id := range ids {
			delete(s.waiting, id)
		}
	}()
	err = errSilent
	for _, part := range tries {
		var id stun.ID
		rand.Read(id[:]) // never fails
		ids = append(ids, id)
		s.mu.Lock()
		s.waiting[id] = asked{time.Now(), told}
		s.mu.Unlock()
		if _, e := s.conn.WriteToUDPAddrPort(request(id, change), to); e != nil {
			err = e
		}
		timer := time.NewTimer(time.Duration(part * float64(wait)))
		select {
		case a = <-told:
			timer.Stop()
			return a, nil
		case <-ctx.Done():
			timer.Stop()
			return a, ctx.Err()
		case <-timer.C:
		}
	}
	return a, err
}

// request is a Binding request, with CHANGE-REQUEST if anything is to change.
func request(id stun.ID, change uint32) []byte {
	w := stun.Build(nil, stun.Request, stun.Binding, id)
	if change != 0 {
		w.Uint32(stun.ChangeRequest, change)
	}
	w.Fingerprint()
	return w.Bytes()
}
