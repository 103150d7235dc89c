package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/netip"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/sluice-vpn/sluice/cmd/internal/status"
	"github.com/sluice-vpn/sluice/ice/portal"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
)

// deskName is the local socket in the state folder, by which `portal node` reaches the running portal.
const deskName = "portal.sock"

// maxSocketPath is what sockaddr_un holds on every system (unix(7): 108 bytes, less elsewhere).
const maxSocketPath = 100

// decision is what is asked about the networks of a gateway.
type decision struct {
	Approve []netip.Prefix `json:"approve,omitempty"`
	Refuse  []netip.Prefix `json:"refuse,omitempty"`
}

// openDesk serves the local socket. Who may open it may do everything: it is the owner's alone.
func openDesk(folder string, p *portal.Portal) (io.Closer, error) {
	path := filepath.Join(folder, deskName)
	if len(path) > maxSocketPath {
		return nil, fmt.Errorf("-state %s: the path is too long for a socket; use a shorter one", folder)
	}
	_ = os.Remove(path) // of a portal that was killed: the folder is this one's alone
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
		n, err := body[portal.NewNode](w, r)
		if err != nil {
			reply(w, nil, err)
			return
		}
		token, err := p.AddNode(r.Context(), n)
		reply(w, tokenText(token, err), err)
	})
	mux.HandleFunc("POST /nodes/{name}/allow", func(w http.ResponseWriter, r *http.Request) {
		allow, err := body[[]string](w, r)
		if err == nil {
			err = p.SetAllow(r.Context(), r.PathValue("name"), allow)
		}
		reply(w, "", err)
	})
	mux.HandleFunc("POST /nodes/{name}/routes", func(w http.ResponseWriter, r *http.Request) {
		d, err := body[decision](w, r)
		if err != nil {
			reply(w, nil, err)
			return
		}
		offers, err := p.Routes(r.Context(), r.PathValue("name"), d.Approve, d.Refuse)
		reply(w, offers, err)
	})
	mux.HandleFunc("POST /nodes/{name}/token", func(w http.ResponseWriter, r *http.Request) {
		token, err := p.RenewToken(r.Context(), r.PathValue("name"))
		reply(w, tokenText(token, err), err)
	})
	mux.HandleFunc("DELETE /nodes/{name}", func(w http.ResponseWriter, r *http.Request) {
		reply(w, "", p.RemoveNode(r.Context(), r.PathValue("name")))
	})
	mux.HandleFunc("GET /backup", func(w http.ResponseWriter, _ *http.Request) {
		text, err := p.Backup()
		reply(w, json.RawMessage(text), err)
	})
	mux.HandleFunc("GET /members", func(w http.ResponseWriter, _ *http.Request) {
		list, trouble, err := p.Members()
		reply(w, members{list, trouble}, err)
	})
	mux.HandleFunc("DELETE /members/{name}", func(w http.ResponseWriter, r *http.Request) {
		reply(w, "", p.RemoveMember(r.Context(), r.PathValue("name")))
	})
	server := &http.Server{Handler: mux, ReadHeaderTimeout: 5 * time.Second}
	go server.Serve(listener) // ends with Close, which removes the socket
	return server, nil
}

// body reads what was asked.
func body[T any](w http.ResponseWriter, r *http.Request) (v T, err error) {
	err = json.NewDecoder(http.MaxBytesReader(w, r.Body, 64<<10)).Decode(&v)
	return v, err
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
			nodeAddCommand(), nodeSetCommand(), nodeRoutesCommand(),
			{
				Name: "token", Usage: "give a node another token and print it; the old one and what runs with it are refused from then on", ArgsUsage: "NAME",
				Action: func(ctx context.Context, cmd *cli.Command) error {
					return withName(cmd, func(name string) error { return renewToken(ctx, cmd, name) })
				},
			},
			{
				Name: "remove", Usage: "forget a node and end its connections", ArgsUsage: "NAME",
				Action: func(ctx context.Context, cmd *cli.Command) error {
					return withName(cmd, func(name string) error { return removeNode(ctx, cmd, name) })
				},
			},
			{
				Name: "list", Usage: "list the nodes", Before: noArguments,
				Flags:  []cli.Flag{&cli.BoolFlag{Name: "json", Usage: "print JSON"}},
				Action: listNodes,
			},
		},
	}
}

func nodeAddCommand() *cli.Command {
	return &cli.Command{
		Name: "add", Usage: "make a node and print its token, once", ArgsUsage: "NAME",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "role", Value: "client", Usage: "`ROLE`: client or gateway"},
			&cli.StringSliceFlag{
				Name: "allow", Usage: "`NAMES` of the gateways that it may reach, or all or none; a client without it reaches all, a gateway none",
			},
			&cli.StringFlag{
				Name: "routes", Usage: "`PREFIXES` that a gateway may offer; without it private networks that no other gateway has",
			},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			return withName(cmd, func(name string) error {
				n := portal.NewNode{Name: name, Role: protocol.Role(cmd.String("role")), Allow: cmd.StringSlice("allow")}
				if cmd.IsSet("routes") {
					routes, err := parseRoutes("-routes", cmd.String("routes"))
					if err != nil {
						return err
					}
					n.Routes = append([]netip.Prefix{}, routes...)
				}
				if err := printToken(ctx, cmd, "POST", "/nodes", n); errors.Is(err, errToken) {
					return errors.Join(err, removeNode(ctx, cmd, name)) // of no use to anybody
				} else if err != nil {
					return err
				}
				return warnOfUnknown(ctx, cmd, n.Allow)
			})
		},
	}
}

func nodeSetCommand() *cli.Command {
	return &cli.Command{
		Name: "set", Usage: "change which gateways a node may reach; connections that stay allowed go on", ArgsUsage: "NAME",
		Flags: []cli.Flag{&cli.StringSliceFlag{Name: "allow", Required: true, Usage: "`NAMES` of the gateways, or all or none"}},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			return withName(cmd, func(name string) error {
				allow := cmd.StringSlice("allow")
				if err := askDesk(ctx, cmd.String("state"), "POST", "/nodes/"+name+"/allow", allow, new(string)); err != nil {
					return err
				}
				return warnOfUnknown(ctx, cmd, allow)
			})
		},
	}
}

func nodeRoutesCommand() *cli.Command {
	return &cli.Command{
		Name: "routes", Usage: "list the networks that a gateway offers, and approve or refuse some", ArgsUsage: "NAME",
		Description: "What is approved is told to the nodes that may reach the gateway; also what is not offered yet may be approved. Without\n" +
			"any approval a gateway is granted private networks that no other gateway has. With the first one the operator takes\n" +
			"over: what is granted stays, and all else waits.",
		Flags: []cli.Flag{
			&cli.StringFlag{Name: "approve", Usage: "`PREFIXES` that it may offer, each with what is within; 0.0.0.0/0 stands for itself only"},
			&cli.StringFlag{Name: "refuse", Usage: "`PREFIXES` that it may not offer, each with what is within"},
			&cli.BoolFlag{Name: "json", Usage: "print JSON"},
		},
		Action: func(ctx context.Context, cmd *cli.Command) error {
			return withName(cmd, func(name string) error { return nodeRoutes(ctx, cmd, name) })
		},
	}
}

// withName runs f with the one argument.
func withName(cmd *cli.Command, f func(name string) error) error {
	if cmd.NArg() != 1 || strings.ContainsAny(cmd.Args().First(), "/?#%") {
		return usageError{fmt.Sprintf("%s takes one NAME", cmd.FullName())}
	}
	return f(cmd.Args().First())
}

func nodeRoutes(ctx context.Context, cmd *cli.Command, name string) (err error) {
	var d decision
	if d.Approve, err = parseRoutes("-approve", cmd.String("approve")); err != nil {
		return err
	}
	if d.Refuse, err = parseRoutes("-refuse", cmd.String("refuse")); err != nil {
		return err
	}
	var offers protocol.Offers
	if err := askDesk(ctx, cmd.String("state"), "POST", "/nodes/"+name+"/routes", d, &offers); err != nil {
		return err
	}
	out := cmd.Root().Writer
	if cmd.Bool("json") {
		return printJSON(out, offers)
	}
	if len(offers) == 0 {
		fmt.Fprintf(out, "%s offers no network yet.\n", name)
	}
	for _, o := range offers {
		fmt.Fprintln(out, strings.Join(offerLines(o, "", ""), "\n"))
	}
	return nil
}

// offerLines say what has become of an offer, and what may be done. indent is before the first.
func offerLines(o protocol.Offer, first, indent string) []string {
	text := fmt.Sprintf("%s %s", o.Prefix, o.State)
	if o.Why != "" {
		text += ": " + o.Why
	}
	lines := status.Wrap(text, first, indent+"  ", status.Columns)
	if o.Remedy != "" {
		lines = append(lines, status.WrapCommand(o.Remedy, indent+"  ", indent+"    ", status.Columns)...)
	}
	return lines
}

func printJSON(w io.Writer, v any) error {
	encoder := json.NewEncoder(w)
	encoder.SetIndent("", "\t")
	return encoder.Encode(v)
}

func printToken(ctx context.Context, cmd *cli.Command, method, path string, body any) error {
	var token string
	if err := askDesk(ctx, cmd.String("state"), method, path, body, &token); err != nil {
		return err
	}
	if err := printSecret(cmd, token); err != nil {
		return fmt.Errorf("%w: %w; try again where there is room", errToken, err)
	}
	return nil
}

// errToken: the portal has made a token that nobody has got.
var errToken = errors.New("the token could not be written")

// renewToken says beforehand what comes of it.
func renewToken(ctx context.Context, cmd *cli.Command, name string) error {
	var nodes []portal.NodeStatus
	if err := askDesk(ctx, cmd.String("state"), "GET", "/nodes", nil, &nodes); err != nil {
		return err
	}
	if slices.ContainsFunc(nodes, func(n portal.NodeStatus) bool { return n.Name == name }) {
		fmt.Fprintf(cmd.Root().ErrWriter, "sluice: the token brings another identity: peers that have met %s have no session with it"+
			" until each has run sluice trust %s\n", name, name)
	}
	return printToken(ctx, cmd, "POST", "/nodes/"+name+"/token", nil)
}

func removeNode(ctx context.Context, cmd *cli.Command, name string) error {
	return askDesk(ctx, cmd.String("state"), "DELETE", "/nodes/"+name, nil, new(string))
}

// warnOfUnknown tells which names stand for no gateway. They may be added later, so that is no error.
func warnOfUnknown(ctx context.Context, cmd *cli.Command, names []string) error {
	if len(names) == 0 {
		return nil
	}
	var nodes []portal.NodeStatus
	if err := askDesk(ctx, cmd.String("state"), "GET", "/nodes", nil, &nodes); err != nil {
		return err
	}
	for _, name := range names {
		if name != portal.AllowAll && name != portal.AllowNone && !slices.ContainsFunc(nodes, func(n portal.NodeStatus) bool { return n.Name == name }) {
			fmt.Fprintf(cmd.Root().ErrWriter, "sluice: warning: there is no node called %s yet\n", name)
		}
	}
	return nil
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
	case errors.Is(err, os.ErrNotExist), errors.Is(err, syscall.ECONNREFUSED):
		return fmt.Errorf("no portal runs with -state %s; start it: sluice portal -public ADDRESS -state %s", folder, folder)
	case err != nil:
		return fmt.Errorf("the portal with -state %s: %w", folder, errors.Unwrap(err)) // without the URL
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
		return printJSON(out, nodes)
	}
	_, err := io.WriteString(out, nodeTable(nodes, time.Now()))
	return err
}

// nodeTable is a line for each node, with what does not fit there below it.
func nodeTable(nodes []portal.NodeStatus, now time.Time) string {
	rows := [][]string{{"NAME", "ROLE", "ONLINE", "ADDRESSES"}}
	for _, n := range nodes {
		rows = append(rows, []string{n.Name, string(n.Role), onlineText(n, now), joined(n.Addresses)})
	}
	table := status.Table(rows, status.Columns)
	var b strings.Builder
	fmt.Fprintln(&b, table[0])
	for i, n := range nodes {
		fmt.Fprintln(&b, table[i+1])
		for _, text := range remarks(n) {
			fmt.Fprintln(&b, strings.Join(status.Wrap(text, "  ", "    ", status.Columns), "\n"))
		}
		for _, o := range n.Offers {
			if o.State != protocol.Approved {
				fmt.Fprintln(&b, strings.Join(offerLines(o, "  offers ", "  "), "\n"))
			}
		}
	}
	return b.String()
}

// joined lists addresses and networks; a single address is shown as such.
func joined(list []netip.Prefix) string {
	var texts []string
	for _, p := range list {
		if p.IsSingleIP() {
			texts = append(texts, p.Addr().String())
		} else {
			texts = append(texts, p.String())
		}
	}
	return strings.Join(texts, " ")
}

func onlineText(n portal.NodeStatus, now time.Time) string {
	switch {
	case n.Online && !n.Since.IsZero():
		return "for " + status.Span(now.Sub(n.Since))
	case n.Online:
		return "yes"
	case !n.SignedOut.IsZero():
		return "no, signed out " + status.Span(now.Sub(n.SignedOut)) + " ago"
	case n.Seen.IsZero():
		return "no"
	}
	return "no, " + status.Span(now.Sub(n.Seen)) + " ago"
}

// remarks are what else there is to say of a node.
func remarks(n portal.NodeStatus) (list []string) {
	if from := strings.Join(n.From, " "); from != "" {
		if n.Program != "" {
			from += ", " + n.Program
		}
		list = append(list, "from "+from)
	}
	if approved := n.Offers.Approved(); len(approved) > 0 {
		list = append(list, "leads to "+joined(approved))
	}
	if len(n.Allow) > 0 {
		list = append(list, "may reach "+strings.Join(n.Allow, " "))
	}
	if n.Connections > 1 {
		list = append(list, fmt.Sprintf("%d connections: the token is in use twice, or one is dead and not missed yet", n.Connections))
	}
	if n.Outdated {
		list = append(list, "its token is of an older version and not taken; make another one: sluice portal node token "+n.Name)
	}
	if n.Refused != "" {
		list = append(list, "REFUSED: "+n.Refused)
	}
	return list
}
