package names

import (
	"cmp"
	"context"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"time"

	"github.com/godbus/dbus/v5"
)

const (
	resolvedName  = "org.freedesktop.resolve1"
	resolvedPath  = "/org/freedesktop/resolve1"
	resolvedCalls = resolvedName + ".Manager."
	// callLimit is how long the bus, and what is on it, may take.
	callLimit = 3 * time.Second
)

// errAbsent: there is nobody to tell.
var errAbsent = errors.New("systemd-resolved does not answer on the system bus")

// resolved is systemd-resolved, at the end of a connection to the system bus. It belongs to one goroutine.
type resolved struct {
	conn    *dbus.Conn
	changes chan *dbus.Signal // it came, went, or the connection is lost (closed)
}

// dialResolved connects to the system bus, whether systemd-resolved is on it or not.
func dialResolved(ctx context.Context) (*resolved, error) {
	living, end := context.WithCancel(context.Background())
	limit := time.AfterFunc(callLimit, end)
	stop := context.AfterFunc(ctx, end)
	conn, err := dbus.ConnectSystemBus(dbus.WithContext(living))
	if inTime := limit.Stop(); (!inTime || !stop()) && err == nil {
		conn.Close()
		err = cmp.Or(ctx.Err(), context.DeadlineExceeded)
	}
	if err != nil {
		end()
		return nil, fmt.Errorf("%w: %w", errAbsent, err)
	}
	// The library sends to it while there is room, and one is enough to look.
	r := &resolved{conn: conn, changes: make(chan *dbus.Signal, 16)}
	conn.Signal(r.changes)
	calling, stopCalling := context.WithTimeout(ctx, callLimit)
	defer stopCalling()
	err = conn.AddMatchSignalContext(calling, dbus.WithMatchInterface("org.freedesktop.DBus"), dbus.WithMatchMember("NameOwnerChanged"),
		dbus.WithMatchArg(0, resolvedName))
	if err != nil {
		conn.Close()
		return nil, err
	}
	return r, nil
}

// alive tells whether the connection is there.
func (r *resolved) alive() bool { return r.conn.Connected() }

func (r *resolved) close() { r.conn.Close() }

// owner is who systemd-resolved is now: another one after each of its starts. It is not started for it. One in another network namespace
// knows other links by the same numbers.
func (r *resolved) owner(ctx context.Context) (string, error) {
	ctx, stop := context.WithTimeout(ctx, callLimit)
	defer stop()
	bus := r.conn.BusObject()
	var owner string
	if err := bus.CallWithContext(ctx, "org.freedesktop.DBus.GetNameOwner", 0, resolvedName).Store(&owner); err != nil {
		return "", fmt.Errorf("%w: %w", errAbsent, err)
	}
	var pid uint32
	if err := bus.CallWithContext(ctx, "org.freedesktop.DBus.GetConnectionUnixProcessID", 0, owner).Store(&pid); err != nil {
		return "", fmt.Errorf("%w: %w", errAbsent, err)
	}
	own, err := os.Readlink("/proc/self/ns/net")
	theirs, err2 := os.Readlink(fmt.Sprintf("/proc/%d/ns/net", pid))
	if err == nil && err2 == nil && own != theirs { // else this user may not look
		return "", fmt.Errorf("%w of this network namespace", errAbsent)
	}
	return owner, nil
}

// linkServer is a name server of a link's, as SetLinkDNSEx has it.
type linkServer struct {
	Family  int32
	Address []byte
	Port    uint16
	Name    string // of TLS
}

// linkAddress is one with the usual port, as SetLinkDNS has it.
type linkAddress struct {
	Family  int32
	Address []byte
}

// linkDomain is a domain of a link's.
type linkDomain struct {
	Domain      string
	RoutingOnly bool // not tried after single labels
}

// Address families of Linux, which is where there is systemd.
const afInet, afInet6 = 2, 10

// set has what is below Domain asked at the servers, over a link, and nothing else; or everything, in place of all other links' servers.
func (r *resolved) set(ctx context.Context, link int, servers []netip.AddrPort, all bool) error {
	ctx, stop := context.WithTimeout(ctx, callLimit)
	defer stop()
	var ports []linkServer
	var plain []linkAddress
	for _, s := range servers {
		family := int32(afInet6)
		if s.Addr().Is4() {
			family = afInet
		}
		ports = append(ports, linkServer{Family: family, Address: s.Addr().AsSlice(), Port: s.Port()})
		if s.Port() == dnsPort {
			plain = append(plain, linkAddress{family, s.Addr().AsSlice()})
		}
	}
	// The domain comes first: a link with servers and no domain is asked for everything.
	domains := []linkDomain{{Domain, true}}
	if all {
		domains = append(domains, linkDomain{".", true})
	}
	err := r.call(ctx, "SetLinkDomains", int32(link), domains)
	switch {
	case err != nil:
	case len(plain) == len(ports):
		err = r.call(ctx, "SetLinkDNS", int32(link), plain)
	default: // since systemd 246
		err = r.call(ctx, "SetLinkDNSEx", int32(link), ports)
	}
	if err != nil {
		_ = r.call(ctx, "RevertLink", int32(link))
		return err
	}
	// Nobody signs this zone, and nobody speaks TLS here, whatever the machine has for other servers. Old versions do not know them all.
	_ = r.call(ctx, "SetLinkDNSSEC", int32(link), "no")
	_ = r.call(ctx, "SetLinkDNSOverTLS", int32(link), "no")
	return nil
}

// revert has the link as it was.
func (r *resolved) revert(ctx context.Context, link int) error {
	ctx, stop := context.WithTimeout(ctx, callLimit)
	defer stop()
	return r.call(ctx, "RevertLink", int32(link))
}

func (r *resolved) call(ctx context.Context, method string, args ...any) error {
	err := r.conn.Object(resolvedName, resolvedPath).CallWithContext(ctx, resolvedCalls+method, dbus.FlagNoAutoStart, args...).Err
	var refused dbus.Error
	if errors.As(err, &refused) && (refused.Name == "org.freedesktop.DBus.Error.AccessDenied" ||
		refused.Name == "org.freedesktop.DBus.Error.InteractiveAuthorizationRequired") {
		return fmt.Errorf("systemd-resolved refuses %s (%w): a user other than root needs a polkit rule for the actions of %s", method, err, resolvedName)
	}
	if err != nil {
		return fmt.Errorf("systemd-resolved: %s: %w", method, err)
	}
	return nil
}
