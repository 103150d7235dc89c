package member

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"strings"
	"syscall"
	"time"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/signal"
)

// checkTime is how long the portal may take to say whom a token stands for.
const checkTime = 10 * time.Second

// SignedIn is what the portal says of a token that was stored.
type SignedIn struct {
	Name   string        `json:"name"`
	Role   protocol.Role `json:"role"`
	Portal string        `json:"portal"` // host:port
	File   string        `json:"token_file"`
}

// SignIn stores a token in a state folder, where nodes that run find it, once its portal has said that it is good. Mark is the fwmark
// by which the question goes past a tunnel. folder may depend on the role. The error says what to do, and nothing has changed then.
func SignIn(ctx context.Context, t protocol.Token, folder func(protocol.Role) string, mark uint32) (SignedIn, error) {
	who, err := askPortal(ctx, t, protocol.WhoVerb, mark)
	if err != nil {
		return SignedIn{}, fmt.Errorf("%w; nothing was stored", err)
	}
	path := TokenPath(folder(who.Role))
	if err := store(path, t); err != nil {
		return SignedIn{}, fmt.Errorf("the token is good, but cannot be stored: %w", err)
	}
	return SignedIn{who.Name, who.Role, strings.Join(t.Portals, " "), path}, nil
}

// SignOut removes the token of a state folder and tells its portal. Name is "" if there was none, or none that is whole; untold is why the
// portal does not know.
func SignOut(ctx context.Context, folder string, mark uint32) (name string, untold, err error) {
	path := TokenPath(folder)
	t, broken := readStored(path)
	if errors.Is(broken, errNoToken) {
		return "", nil, nil
	}
	if err := os.Remove(path); err != nil {
		return "", nil, fmt.Errorf("%w; run this as the user that the node runs as (sudo)", err)
	}
	if broken != nil {
		return "", fmt.Errorf("the token that was removed could not be used: %w", broken), nil
	}
	_, untold = askPortal(ctx, t, protocol.LeaveVerb, mark)
	return t.Name, untold, nil
}

// askPortal asks the portal of a token whom it stands for, or tells it that the token was taken away.
func askPortal(ctx context.Context, t protocol.Token, verb string, mark uint32) (protocol.Who, error) {
	ctx, cancel := context.WithTimeout(ctx, checkTime)
	defer cancel()
	who, err := protocol.AskWho(ctx, t, verb, dialPast(mark))
	switch {
	case errors.Is(err, signal.ErrRefused):
		return who, fmt.Errorf("%w of %s: it was renewed or the node was removed; make another one with sluice portal node token %[2]s, or node add", signal.ErrRefused, t.Name)
	case errors.Is(err, signal.ErrFingerprint):
		return who, fmt.Errorf("what answers at %s has another certificate than the token says: is the token of another portal, or somebody in between? %w",
			strings.Join(t.Portals, " "), err)
	case err != nil:
		return who, fmt.Errorf("portal %s: %w", strings.Join(t.Portals, " "), err)
	}
	return who, nil
}

// refused tells whether a portal has answered that a token is not good, which trying again does not mend.
func refused(err error) bool {
	return errors.Is(err, signal.ErrRefused) || errors.Is(err, signal.ErrFingerprint)
}

// dialPast connects past a tunnel, where the user may set a mark.
func dialPast(mark uint32) func(context.Context, string, string) (net.Conn, error) {
	marked := (&dialer{mark: mark, last: map[string]string{}}).dial
	return func(ctx context.Context, network, address string) (net.Conn, error) {
		conn, err := marked(ctx, network, address)
		if errors.Is(err, syscall.EPERM) {
			return new(net.Dialer).DialContext(ctx, network, address)
		}
		return conn, err
	}
}
