package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/http"
	"net/netip"
	"os"
	"os/signal"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/sluice-vpn/sluice/cmd/internal/logs"
	"github.com/sluice-vpn/sluice/ice/portal"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/relay"
)

const defaultState = "/var/lib/sluice"

func portalCommand() *cli.Command {
	return &cli.Command{
		Name:  "portal",
		Usage: "run the portal: sign-in, signaling and a relay for gateways and clients",
		Description: "One process and one folder. Nodes reach it by TCP (TLS) for sign-in and signaling and by UDP for STUN and TURN; both\n" +
			"ports must be open to them. Its first start makes one gateway and one client and prints the lines that start them.",
		Flags: []cli.Flag{
			stateFlag(),
			&cli.StringFlag{Name: "public", Usage: "`ADDRESS` under which nodes reach this machine (needed)"},
			&cli.StringFlag{Name: "listen", Value: fmt.Sprintf(":%d", portal.DefaultPort), Usage: "`ADDRESS` for sign-in and signaling, TCP"},
			&cli.StringFlag{Name: "relay-listen", Value: fmt.Sprintf(":%d", relay.DefaultPort), Usage: "`ADDRESS` for STUN and TURN, UDP; none: no relay here"},
			&cli.StringSliceFlag{Name: "relay-allow", Usage: "let the relay reach peers in `NETWORK` although it is private"},
			&cli.StringSliceFlag{Name: "relay", Usage: "another relay, `NAME=ADDRESS:PORT,FILE`, the file holding its shared secret (sluice portal or coturn)"},
			&cli.StringFlag{Name: "ops", Usage: "serve /healthz, /readyz and /metrics by HTTP at `ADDRESS`, such as 127.0.0.1:9090"},
			&cli.StringFlag{Name: "log-level", Value: "info", Usage: "debug, info, warn or error"},
		},
		Commands: []*cli.Command{portalNodeCommand()},
		Action:   runPortal,
	}
}

func stateFlag() cli.Flag {
	return &cli.StringFlag{Name: "state", Value: defaultState, Usage: "`FOLDER` of the portal's state"}
}

// portalConfig reads the flags.
func portalConfig(cmd *cli.Command, logger *slog.Logger) (portal.Config, error) {
	cfg := portal.Config{Folder: cmd.String("state"), Public: cmd.String("public"), Logger: logger}
	if cfg.Public == "" {
		return cfg, usageError{"-public is missing: the address under which nodes reach this machine, such as 203.0.113.7"}
	}
	addrs, err := publicAddrs(cfg.Public)
	if err != nil {
		return cfg, err
	}
	cfg.Relay.PublicAddrs = addrs
	if cfg.Listen, err = listenAddress("-listen", cmd.String("listen"), netip.IPv6Unspecified()); err != nil {
		return cfg, err
	}
	if at := cmd.String("relay-listen"); at == "none" {
		cfg.NoRelay = true
	} else if cfg.Relay.Listen, err = relayListen(at, addrs); err != nil {
		return cfg, err
	}
	for _, text := range cmd.StringSlice("relay-allow") {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return cfg, usageError{fmt.Sprintf("-relay-allow %q is no network; use one like 10.0.0.0/8", text)}
		}
		cfg.Relay.AllowedPeers = append(cfg.Relay.AllowedPeers, prefix)
	}
	for _, text := range cmd.StringSlice("relay") {
		other, err := otherRelay(text)
		if err != nil {
			return cfg, err
		}
		cfg.Relays = append(cfg.Relays, other)
	}
	return cfg, nil
}

// publicAddrs are the addresses that -public stands for, one of a family.
func publicAddrs(public string) (list []netip.Addr, err error) {
	if addr, err := netip.ParseAddr(public); err == nil {
		return []netip.Addr{addr.Unmap()}, nil
	}
	all, err := net.DefaultResolver.LookupNetIP(context.Background(), "ip", public)
	if err != nil {
		return nil, fmt.Errorf("-public %s: %w; use an address or a name that resolves here", public, err)
	}
	for _, is4 := range []bool{true, false} {
		for _, addr := range all {
			if addr = addr.Unmap(); addr.Is4() == is4 {
				list = append(list, addr)
				break
			}
		}
	}
	return list, nil
}

// listenAddress reads :PORT or ADDRESS:PORT.
func listenAddress(flag, text string, unspecified netip.Addr) (netip.AddrPort, error) {
	host, port, err := net.SplitHostPort(text)
	n, err2 := strconv.ParseUint(port, 10, 16)
	addr := unspecified
	if err == nil && host != "" {
		addr, err = netip.ParseAddr(host)
	}
	if err != nil || err2 != nil {
		return netip.AddrPort{}, usageError{fmt.Sprintf("%s %q: use :PORT or ADDRESS:PORT", flag, text)}
	}
	return netip.AddrPortFrom(addr.Unmap(), uint16(n)), nil
}

// relayListen is a socket of each family that is public.
func relayListen(text string, public []netip.Addr) (list []netip.AddrPort, err error) {
	if host, _, _ := net.SplitHostPort(text); host != "" {
		at, err := listenAddress("-relay-listen", text, netip.Addr{})
		return []netip.AddrPort{at}, err
	}
	for _, addr := range public {
		unspecified := netip.IPv6Unspecified()
		if addr.Is4() {
			unspecified = netip.IPv4Unspecified()
		}
		at, err := listenAddress("-relay-listen", text, unspecified)
		if err != nil {
			return nil, err
		}
		list = append(list, at)
	}
	return list, nil
}

// otherRelay reads NAME=ADDRESS:PORT,FILE.
func otherRelay(text string) (portal.OtherRelay, error) {
	name, rest, ok1 := strings.Cut(text, "=")
	at, file, ok2 := strings.Cut(rest, ",")
	addr, err := netip.ParseAddrPort(at)
	if !ok1 || !ok2 || name == "" || err != nil || addr.Port() == 0 {
		return portal.OtherRelay{}, usageError{fmt.Sprintf("-relay %q: use NAME=ADDRESS:PORT,FILE", text)}
	}
	secret, err := os.ReadFile(file)
	if err != nil {
		return portal.OtherRelay{}, fmt.Errorf("-relay %s: %w", name, err)
	}
	addr = netip.AddrPortFrom(addr.Addr().Unmap(), addr.Port())
	return portal.OtherRelay{Name: name, Addrs: []netip.AddrPort{addr}, Secret: strings.TrimSpace(string(secret))}, nil
}

func runPortal(ctx context.Context, cmd *cli.Command) error {
	if _, err := noArguments(ctx, cmd); err != nil {
		return err
	}
	level, err := logLevel(cmd.String("log-level"))
	if err != nil {
		return err
	}
	logger := logs.New(os.Stderr, level)
	cfg, err := portalConfig(cmd, logger)
	if err != nil {
		return err
	}
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	p, err := portal.Start(cfg)
	if err != nil {
		return err
	}
	defer p.Close()
	desk, err := openDesk(cfg.Folder, p)
	if err != nil {
		return err
	}
	defer desk.Close()
	if at := cmd.String("ops"); at != "" {
		ops, err := openOps(at, p)
		if err != nil {
			return err
		}
		defer ops.Close()
	}
	if len(p.Nodes()) == 0 {
		if err := firstNodes(ctx, cmd.Root().Writer, p); err != nil {
			return err
		}
	}
	logger.Info("portal is ready", "address", p.Addr(), "public", cfg.Public, "nodes", len(p.Nodes()))
	return p.Wait(ctx)
}

func logLevel(text string) (level slog.Level, err error) {
	if err := level.UnmarshalText([]byte(text)); err != nil {
		return level, usageError{fmt.Sprintf("-log-level %q: use debug, info, warn or error", text)}
	}
	return level, nil
}

// firstNodes makes a gateway and a client and prints what starts them.
func firstNodes(ctx context.Context, w io.Writer, p *portal.Portal) error {
	gateway, err := p.AddNode(ctx, "gateway", protocol.Gateway, nil)
	if err != nil {
		return err
	}
	client, err := p.AddNode(ctx, "client", protocol.Client, nil)
	if err != nil {
		return err
	}
	_, err = fmt.Fprintf(w, `This portal is new. It has a gateway and a client; each of these tokens is a secret, and is shown only now.

On the gateway, with the networks behind it in place of 10.0.0.0/24:

    (umask 077; echo '%s' > gateway.token)
    sudo ./sluice gateway -token-file gateway.token -routes 10.0.0.0/24

On the client:

    (umask 077; echo '%s' > client.token)
    sudo ./sluice client -token-file client.token

More nodes: sluice portal node add NAME -role client > NAME.token

`, gateway.Encode(), client.Encode())
	return err
}

// openOps serves what operators ask by HTTP.
func openOps(at string, p *portal.Portal) (io.Closer, error) {
	if p.RelayServer() == nil {
		return nil, usageError{"-ops needs a relay"}
	}
	listener, err := net.Listen("tcp", at)
	if err != nil {
		return nil, fmt.Errorf("-ops: %w", err)
	}
	server := &http.Server{Handler: p.RelayServer().Ops(), ReadHeaderTimeout: 5 * time.Second}
	go server.Serve(listener) // ends with Close
	return server, nil
}

// deskName is the local socket in the state folder, by which `portal node` reaches the running portal.
const deskName = "portal.sock"

// newNode is what is asked to add a node.
type newNode struct {
	Name  string        `json:"name"`
	Role  protocol.Role `json:"role"`
	Allow []string      `json:"allow,omitempty"`
}

// openDesk serves the local socket. Who may open it may do everything: it is the owner's alone.
func openDesk(folder string, p *portal.Portal) (io.Closer, error) {
	path := filepath.Join(folder, deskName)
	if conn, err := net.Dial("unix", path); err == nil {
		conn.Close()
		return nil, fmt.Errorf("a portal runs already with -state %s", folder)
	}
	_ = os.Remove(path) // of a portal that was killed
	listener, err := net.Listen("unix", path)
	if err == nil {
		err = os.Chmod(path, 0o600) // the folder is 0700, so nobody came in between
	}
	if err != nil {
		return nil, fmt.Errorf("portal: %w", err)
	}
	mux := http.NewServeMux()
	mux.HandleFunc("GET /nodes", func(w http.ResponseWriter, _ *http.Request) { reply(w, p.Nodes(), nil) })
	mux.HandleFunc("POST /nodes", func(w http.ResponseWriter, r *http.Request) {
		var n newNode
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10)).Decode(&n); err != nil {
			reply(w, nil, err)
			return
		}
		token, err := p.AddNode(r.Context(), n.Name, n.Role, n.Allow)
		reply(w, tokenText(token, err), err)
	})
	mux.HandleFunc("POST /nodes/{name}/token", func(w http.ResponseWriter, r *http.Request) {
		token, err := p.RenewToken(r.Context(), r.PathValue("name"))
		reply(w, tokenText(token, err), err)
	})
	mux.HandleFunc("DELETE /nodes/{name}", func(w http.ResponseWriter, r *http.Request) {
		reply(w, "", p.RemoveNode(r.Context(), r.PathValue("name")))
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go server.Serve(listener) // ends with Close, which removes the socket
	return server, nil
}

func tokenText(t protocol.Token, err error) string {
	if err != nil {
		return ""
	}
	return t.Encode()
}

// reply answers with JSON, or with an error's text.
func reply(w http.ResponseWriter, v any, err error) {
	if err != nil {
		http.Error(w, err.Error(), http.StatusBadRequest)
		return
	}
	w.Header().Set("Content-Type", "application/json")
	_ = json.NewEncoder(w).Encode(v) // the other side has gone
}

func portalNodeCommand() *cli.Command {
	return &cli.Command{
		Name:  "node",
		Usage: "add, list and remove nodes of the portal that runs on this machine",
		Commands: []*cli.Command{
			{
				Name: "add", Usage: "make a node and print its token, once", ArgsUsage: "NAME",
				Flags: []cli.Flag{
					stateFlag(),
					&cli.StringFlag{Name: "role", Value: "client", Usage: "client or gateway"},
					&cli.StringSliceFlag{Name: "allow", Usage: "`NAMES` of the gateways that it may reach; a client without it reaches all, a gateway none"},
				},
				Action: func(ctx context.Context, cmd *cli.Command) error {
					return withName(cmd, func(name string) error {
						n := newNode{Name: name, Role: protocol.Role(cmd.String("role")), Allow: cmd.StringSlice("allow")}
						return printToken(ctx, cmd, "POST", "/nodes", n)
					})
				},
			},
			{
				Name: "token", Usage: "give a node another token and print it; the old one is refused from then on", ArgsUsage: "NAME",
				Flags: []cli.Flag{stateFlag()},
				Action: func(ctx context.Context, cmd *cli.Command) error {
					return withName(cmd, func(name string) error { return printToken(ctx, cmd, "POST", "/nodes/"+name+"/token", nil) })
				},
			},
			{
				Name: "remove", Usage: "forget a node and end its connections", ArgsUsage: "NAME",
				Flags: []cli.Flag{stateFlag()},
				Action: func(ctx context.Context, cmd *cli.Command) error {
					return withName(cmd, func(name string) error {
						return askDesk(ctx, cmd.String("state"), "DELETE", "/nodes/"+name, nil, new(string))
					})
				},
			},
			{
				Name: "list", Usage: "list the nodes", Before: noArguments,
				Flags:  []cli.Flag{stateFlag(), &cli.BoolFlag{Name: "json", Usage: "print JSON"}},
				Action: listNodes,
			},
		},
	}
}

// withName runs f with the one argument.
func withName(cmd *cli.Command, f func(name string) error) error {
	if cmd.NArg() != 1 || strings.ContainsAny(cmd.Args().First(), "/?#%") {
		return usageError{fmt.Sprintf("%s takes one NAME; flags come before it", cmd.FullName())}
	}
	return f(cmd.Args().First())
}

func printToken(ctx context.Context, cmd *cli.Command, method, path string, body any) error {
	var token string
	if err := askDesk(ctx, cmd.String("state"), method, path, body, &token); err != nil {
		return err
	}
	_, err := fmt.Fprintln(cmd.Root().Writer, token)
	return err
}

// askDesk asks the running portal.
func askDesk(ctx context.Context, folder, method, path string, body, answer any) error {
	client := http.Client{Timeout: 30 * time.Second, Transport: &http.Transport{
		DialContext: func(ctx context.Context, _, _ string) (net.Conn, error) {
			return new(net.Dialer).DialContext(ctx, "unix", filepath.Join(folder, deskName))
		},
	}}
	defer client.CloseIdleConnections()
	text, err := json.Marshal(body)
	if err != nil {
		return err
	}
	request, err := http.NewRequestWithContext(ctx, method, "http://portal"+path, strings.NewReader(string(text)))
	if err != nil {
		return err
	}
	response, err := client.Do(request)
	switch {
	case errors.Is(err, os.ErrPermission):
		return fmt.Errorf("the portal's socket in %s may not be opened; run this as the user who runs the portal (sudo)", folder)
	case err != nil:
		return fmt.Errorf("no portal runs with -state %s; start it: sluice portal -public ADDRESS -state %s", folder, folder)
	}
	defer response.Body.Close()
	if response.StatusCode != http.StatusOK {
		why, _ := io.ReadAll(io.LimitReader(response.Body, 4096))
		return errors.New(strings.TrimSpace(string(why)))
	}
	return json.NewDecoder(response.Body).Decode(answer)
}

func listNodes(ctx context.Context, cmd *cli.Command) error {
	var nodes []portal.NodeStatus
	if err := askDesk(ctx, cmd.String("state"), "GET", "/nodes", nil, &nodes); err != nil {
		return err
	}
	out := cmd.Root().Writer
	if cmd.Bool("json") {
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "\t")
		return encoder.Encode(nodes)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tROLE\tADDRESSES\tONLINE\tROUTES\tREMARKS")
	for _, n := range nodes {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\n", n.Name, n.Role, joined(n.Addresses), onlineText(n), joined(n.Routes), remarks(n))
	}
	return w.Flush()
}

func joined[T fmt.Stringer](list []T) string {
	var texts []string
	for _, v := range list {
		texts = append(texts, v.String())
	}
	return strings.Join(texts, " ")
}

func onlineText(n portal.NodeStatus) string {
	switch {
	case n.Online:
		return "from " + strings.Join(n.From, " ")
	case n.Seen.IsZero():
		return "no"
	}
	return "no, seen " + n.Seen.Local().Format(time.DateTime)
}

func remarks(n portal.NodeStatus) string {
	var list []string
	if n.Connections > 1 {
		list = append(list, fmt.Sprintf("%d connections: the token is in use twice", n.Connections))
	}
	if n.Refused != "" {
		list = append(list, "refused: "+n.Refused)
	}
	if len(n.Allow) > 0 {
		list = append(list, "may reach "+strings.Join(n.Allow, " "))
	}
	return strings.Join(list, "; ")
}
