package speedtest

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"net"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"time"

	"github.com/sluice-vpn/sluice/bench/lab"
	"github.com/sluice-vpn/sluice/ice/edge"
)

// This file starts a portal, a client (A) and a gateway (B), which find each other as they would on the internet.

// membersStartLimit is how long that may take, with everything that ICE tries before it takes the relay.
const membersStartLimit = 30 * time.Second

// startMembers starts the three and waits until a packet came back through the tunnel.
func startMembers(ctx context.Context, bed *testbed, impl implementation, dir string) (*tunnel, error) {
	ctx, cancel := context.WithTimeoutCause(ctx, membersStartLimit, errors.New("not ready after "+membersStartLimit.String()))
	defer cancel()
	t := &tunnel{}
	err := t.join(ctx, bed, impl, dir)
	if err == nil {
		return t, nil
	}
	for _, n := range append(t.nodes[:len(t.nodes):len(t.nodes)], t.portal) {
		if n != nil && n.stderr.lastLine() != "" {
			err = fmt.Errorf("%w; it said: %s", err, n.stderr.lastLine())
			break
		}
	}
	t.stop()
	return nil, fmt.Errorf("%s: %w", impl.name, err)
}

func (t *tunnel) join(ctx context.Context, bed *testbed, impl implementation, dir string) (err error) {
	state := filepath.Join(dir, "portal")
	if err := os.RemoveAll(state); err != nil { // of the measurement before
		return err
	}
	hub := bed.internet.Hub
	t.portal, err = startProgram(hub, 0, "portal", impl, dir, "portal", "-public", lab.HubAddr.String(), "-state", state,
		"-relay-allow", lab.PublicNet.String(), "-log-level", "error")
	if err != nil {
		return err
	}
	desk := filepath.Join(state, "portal.sock")
	if err := t.portal.await(ctx, "the portal", func() bool { return answers(desk) }); err != nil {
		return err
	}
	var sockets [2]string
	for i, role := range [2]string{"client", "gateway"} {
		token, err := addMember(ctx, hub, impl, state, role)
		if err != nil {
			return err
		}
		sockets[i] = filepath.Join(dir, sideNames[i]+".sock")
		file := filepath.Join(dir, sideNames[i]+".token")
		if err := os.WriteFile(file, token, 0o600); err != nil {
			return err
		}
		t.nodes[i], err = startProgram(bed.ends[i], side(i), "speed"+sideNames[i], impl, dir, role, "-token-file", file,
			"-interface", "speed"+sideNames[i], "-socket", sockets[i], "-port", strconv.Itoa(listenPort), "-log-level", "error", "-log-dir", "none")
		if err != nil {
			return err
		}
	}
	for i, n := range t.nodes {
		up := func() bool {
			s, err := statusOf(ctx, sockets[i])
			if err != nil || len(s.Addresses) == 0 {
				return false
			}
			t.inner[i] = s.Addresses[0].Addr()
			for _, c := range s.Connections {
				if c.State == "up" {
					return true
				}
			}
			return false
		}
		if err := n.await(ctx, "the connection", up); err != nil {
			return err
		}
	}
	return t.awaitRoundTrip(ctx, bed)
}

// addMember makes a node at the portal and returns its token.
func addMember(ctx context.Context, hub *lab.Namespace, impl implementation, state, role string) ([]byte, error) {
	cmd := exec.CommandContext(ctx, impl.command[0], "portal", "node", "add", "-state", state, "-role", role, "speed-"+role)
	out := &tail{}
	cmd.Stdout, cmd.Stderr = out, os.Stderr
	if err := hub.Start(cmd); err != nil {
		return nil, err
	}
	if err := cmd.Wait(); err != nil {
		return nil, fmt.Errorf("portal node add: %w", err)
	}
	return out.text, nil
}

// statusOf asks a node by its status socket.
func statusOf(ctx context.Context, socket string) (s edge.Status, err error) {
	client := http.Client{Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", socket)
		},
	}}
	defer client.CloseIdleConnections()
	request, err := http.NewRequestWithContext(ctx, http.MethodGet, "http://node/status", nil)
	if err != nil {
		return s, err
	}
	response, err := client.Do(request)
	if err != nil {
		return s, err
	}
	defer response.Body.Close()
	return s, json.NewDecoder(response.Body).Decode(&s)
}
