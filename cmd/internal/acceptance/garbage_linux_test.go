package acceptance

import (
	"encoding/binary"
	"hash/crc32"
	"math/rand/v2"
	"net"
	"net/netip"
	"time"

	"golang.org/x/sys/unix"

	"github.com/sluice-vpn/sluice/bench/lab"
)

// garbage makes datagrams that look like what Sluice takes, and are not. Not for several goroutines.
type garbage struct{ *rand.Rand }

func newGarbage(seed uint64) garbage { return garbage{rand.New(rand.NewPCG(seed, 1))} }

func (g garbage) bytes(n int) []byte {
	b := make([]byte, n)
	for i := range b {
		b[i] = byte(g.Uint32())
	}
	return b
}

// next is noise, or one of the look-alikes, or the beginning of one.
func (g garbage) next() []byte {
	var b []byte
	switch g.IntN(8) {
	case 0:
		return g.bytes(g.IntN(1400))
	case 1, 2:
		b = g.wireGuard()
	case 3:
		b = g.channelData()
	default:
		b = g.stun()
	}
	if g.IntN(4) == 0 {
		b = b[:g.IntN(len(b)+1)]
	}
	return b
}

// wireGuard is a message of a type and length that exist.
func (g garbage) wireGuard() []byte {
	lengths := [...]int{148, 92, 64, 32 + 16*g.IntN(80)}
	kind := g.IntN(len(lengths))
	b := g.bytes(lengths[kind])
	copy(b, []byte{byte(kind + 1), 0, 0, 0})
	return b
}

// channelData has one of the numbers that clients bind first, and a length that need not be true. WireGuard may be in it.
func (g garbage) channelData() []byte {
	inner := g.bytes(g.IntN(200))
	if g.IntN(2) == 0 {
		inner = g.wireGuard()
	}
	length := len(inner)
	if g.IntN(3) == 0 {
		length += g.IntN(8)
	}
	b := binary.BigEndian.AppendUint16(nil, uint16(0x4000+g.IntN(32)))
	return append(binary.BigEndian.AppendUint16(b, uint16(length)), inner...)
}

// The methods and attributes of STUN and TURN that a stranger could try (RFC 8489, section 18; RFC 8656, section 17).
var (
	stunMethods    = [...]uint16{0x001, 0x003, 0x004, 0x006, 0x007, 0x008, 0x009}
	stunAttributes = [...]uint16{
		0x0001, 0x0006, 0x0008, 0x0009, 0x000A, 0x000C, 0x000D, 0x0012, 0x0013, 0x0014, 0x0015, 0x0016, 0x0017, 0x0018, 0x0019, 0x001A,
		0x0020, 0x0022, 0x0024, 0x0025, 0x7FFF, 0x8020, 0x8022, 0x8023, 0x8029, 0x802A,
	}
	stunLengths = [...]int{0, 1, 2, 3, 4, 7, 8, 12, 20, 20, 31, 64}
)

// stun is a message with the cookie, of any method and class, with attributes of any length; some have a FINGERPRINT that is right.
func (g garbage) stun() []byte {
	method, class := stunMethods[g.IntN(len(stunMethods))], uint16(g.IntN(4))
	b := binary.BigEndian.AppendUint16(nil, method|class&1<<4|class>>1<<8)
	b = binary.BigEndian.AppendUint16(b, 0)
	b = binary.BigEndian.AppendUint32(b, 0x2112A442)
	b = append(b, g.bytes(12)...)
	for range g.IntN(6) {
		value := g.bytes(stunLengths[g.IntN(len(stunLengths))])
		if len(value) > 1 && g.IntN(2) == 0 {
			value[0], value[1] = 0, byte(1+g.IntN(2)) // the family of an address
		}
		b = binary.BigEndian.AppendUint16(b, stunAttributes[g.IntN(len(stunAttributes))])
		b = binary.BigEndian.AppendUint16(b, uint16(len(value)))
		b = append(append(b, value...), make([]byte, -len(value)&3)...)
	}
	print := g.IntN(2) == 0
	length := len(b) - 20
	if print {
		length += 8
	}
	binary.BigEndian.PutUint16(b[2:], uint16(length))
	if print {
		sum := crc32.ChecksumIEEE(b) ^ 0x5354554e
		b = binary.BigEndian.AppendUint32(append(b, 0x80, 0x28, 0, 4), sum)
	}
	return b
}

// datagrams throws n of them at an address, from a socket of a namespace that is bound to no address, some thousand a second.
func (g garbage) datagrams(from *lab.Namespace, to netip.AddrPort, n int) error {
	var conn *net.UDPConn
	err := from.Run(func() (err error) { conn, err = net.ListenUDP("udp4", nil); return err })
	if err != nil {
		return err
	}
	defer conn.Close()
	for i := range n {
		if _, err := conn.WriteToUDPAddrPort(g.next(), to); err != nil {
			return err
		}
		pace(i)
	}
	return nil
}

// forge does so under the address of somebody else.
func (g garbage) forge(from *lab.Namespace, source, to netip.AddrPort, n int) error {
	fd := -1
	err := from.Run(func() (err error) {
		fd, err = unix.Socket(unix.AF_INET, unix.SOCK_RAW|unix.SOCK_CLOEXEC, unix.IPPROTO_RAW)
		return err
	})
	if err != nil {
		return err
	}
	defer unix.Close(fd)
	src, dst := source.Addr().As4(), to.Addr().As4()
	for i := range n {
		data := g.next()
		// raw(7): the kernel fills in the lengths and checksum of the header. A UDP checksum of 0 is none (RFC 768).
		b := []byte{0x45, 0, 0, 0, 0, 0, 0, 0, 64, unix.IPPROTO_UDP, 0, 0}
		b = append(append(b, src[:]...), dst[:]...)
		for _, field := range [...]uint16{source.Port(), to.Port(), uint16(8 + len(data)), 0} {
			b = binary.BigEndian.AppendUint16(b, field)
		}
		if err := unix.Sendto(fd, append(b, data...), 0, &unix.SockaddrInet4{Addr: dst}); err != nil {
			return err
		}
		pace(i)
	}
	return nil
}

func pace(i int) {
	if i%16 == 15 {
		time.Sleep(2 * time.Millisecond)
	}
}

// connections opens n to a TCP port, each of which sends something else than a TLS client would and goes away, or says nothing. Those
// that say nothing stay until the returned function is called.
func (g garbage) connections(from *lab.Namespace, to netip.AddrPort, n int) (closeAll func(), err error) {
	var silent []net.Conn
	closeAll = func() {
		for _, conn := range silent {
			conn.Close()
		}
	}
	for i := range n {
		var conn net.Conn
		err := from.Run(func() (err error) { conn, err = net.DialTimeout("tcp", to.String(), 10*time.Second); return err })
		if err != nil {
			return closeAll, err
		}
		switch i % 4 {
		case 0:
			conn.Write(g.bytes(1 + g.IntN(20000)))
		case 1: // a record of a ClientHello that ends early
			conn.Write(append([]byte{22, 3, 1, 2, 0, 1, 0, 1, 0xFC, 3, 3}, g.bytes(g.IntN(300))...))
		case 2:
			conn.Write([]byte("CONNECT {\"auth_token\":\"sluice\"}\r\nPING\r\n"))
		default:
			silent = append(silent, conn)
			continue
		}
		conn.Close()
	}
	return closeAll, nil
}
