package ice

import (
	"net"

	"github.com/pion/logging"
	"github.com/pion/transport/v2"
)

// NoNet is the transport.Net of agents without a relay: they have the mux and need no network, and an agent does not list the
// interfaces for itself. Who gives them something of a network embeds it. All methods fail.
type NoNet struct{}

func (NoNet) ListenPacket(string, string) (net.PacketConn, error) {
	return nil, transport.ErrNotSupported
}

func (NoNet) ListenUDP(string, *net.UDPAddr) (transport.UDPConn, error) {
	return nil, transport.ErrNotSupported
}

func (NoNet) ListenTCP(string, *net.TCPAddr) (transport.TCPListener, error) {
	return nil, transport.ErrNotSupported
}

func (NoNet) Dial(string, string) (net.Conn, error) { return nil, transport.ErrNotSupported }

func (NoNet) DialUDP(string, *net.UDPAddr, *net.UDPAddr) (transport.UDPConn, error) {
	return nil, transport.ErrNotSupported
}

func (NoNet) DialTCP(string, *net.TCPAddr, *net.TCPAddr) (transport.TCPConn, error) {
	return nil, transport.ErrNotSupported
}

func (NoNet) ResolveIPAddr(string, string) (*net.IPAddr, error) {
	return nil, transport.ErrNotSupported
}

func (NoNet) ResolveUDPAddr(string, string) (*net.UDPAddr, error) {
	return nil, transport.ErrNotSupported
}

func (NoNet) ResolveTCPAddr(string, string) (*net.TCPAddr, error) {
	return nil, transport.ErrNotSupported
}

func (NoNet) Interfaces() ([]*transport.Interface, error) { return nil, nil }

func (NoNet) InterfaceByIndex(int) (*transport.Interface, error) {
	return nil, transport.ErrInterfaceNotFound
}

func (NoNet) InterfaceByName(string) (*transport.Interface, error) {
	return nil, transport.ErrInterfaceNotFound
}

func (NoNet) CreateDialer(*net.Dialer) transport.Dialer { return noDialer{} }

type noDialer struct{}

func (noDialer) Dial(string, string) (net.Conn, error) { return nil, transport.ErrNotSupported }

// silent is pion's logger: what it would say of single datagrams is counted by the mux, and what it would say of its
// state comes as events.
type silent struct{}

func (silent) NewLogger(string) logging.LeveledLogger { return silent{} }

func (silent) Trace(string)          {}
func (silent) Tracef(string, ...any) {}
func (silent) Debug(string)          {}
func (silent) Debugf(string, ...any) {}
func (silent) Info(string)           {}
func (silent) Infof(string, ...any)  {}
func (silent) Warn(string)           {}
func (silent) Warnf(string, ...any)  {}
func (silent) Error(string)          {}
func (silent) Errorf(string, ...any) {}
