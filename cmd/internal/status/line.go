package status

import (
	"fmt"

	"github.com/sluice-vpn/sluice/ice/edge"
)

// Line says how a node is in one line, for a service manager.
func Line(s edge.Status) string {
	if s.SignIn.Reason != "" {
		return fmt.Sprintf("%s: signed out (%s): %s", s.Role, s.SignIn.Reason, s.SignIn.Why)
	}
	if !Serves(s) {
		if s.Portal.Why == "" {
			return fmt.Sprintf("%s %s: signing in", s.Role, s.Name)
		}
		return fmt.Sprintf("%s %s: not signed in, tries again: %s", s.Role, s.Name, s.Portal.Why)
	}
	up, relayed := 0, 0
	for i := range s.Connections {
		switch c := &s.Connections[i]; {
		case c.State != "up" && c.State != "idle":
		case c.Via == "relay":
			relayed++
			fallthrough
		default:
			up++
		}
	}
	line := fmt.Sprintf("%s %s on %s: connected to %d of %d peers", s.Role, s.Name, s.Interface, up, len(s.Connections))
	if relayed > 0 {
		line += fmt.Sprintf(", %d of them over a relay", relayed)
	}
	if s.Portal.Why != "" {
		line += "; the portal: " + s.Portal.Why
	}
	if s.Problem != "" {
		line += "; PROBLEM: " + s.Problem
	}
	return line
}

// Serves reports whether the node has its interface up and its UDP socket bound, so that peers can connect to it.
func Serves(s edge.Status) bool { return s.ListenPort != 0 && len(s.Addresses) > 0 }
