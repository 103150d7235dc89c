package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"syscall"
	"text/tabwriter"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/sluice-vpn/sluice/ice/portal"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
)

// deskName is the local socket in the state folder, by which `portal node` reaches the running portal.
const deskName = "portal.sock"

// maxSocketPath is what sockaddr_un holds on every system (unix(7): 108 bytes, less elsewhere).
const maxSocketPath = 100

// newNode is what is asked to add a node.
type newNode struct {
	Name  string        `json:"name"`
	Role  protocol.Role `json:"role"`
	Allow []string      `json:"allow,omitempty"`
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
					&cli.StringFlag{Name: "role", Value: "client", Usage: "`ROLE`: client or gateway"},
					&cli.StringSliceFlag{
						Name: "allow", Usage: "`NAMES` of the gateways that it may reach; a client without it reaches all, a gateway none",
					},
				},
				Action: func(ctx context.Context, cmd *cli.Command) error {
					return withName(cmd, func(name string) error {
						n := newNode{Name: name, Role: protocol.Role(cmd.String("role")), Allow: cmd.StringSlice("allow")}
						if err := printToken(ctx, cmd, "POST", "/nodes", n); err != nil {
							return err
						}
						return warnOfUnknown(ctx, cmd, n.Allow)
					})
				},
			},
			{
				Name: "token", Usage: "give a node another token and print it; the old one and what runs with it are refused from then on", ArgsUsage: "NAME",
				Action: func(ctx context.Context, cmd *cli.Command) error {
					return withName(cmd, func(name string) error { return printToken(ctx, cmd, "POST", "/nodes/"+name+"/token", nil) })
				},
			},
			{
				Name: "remove", Usage: "forget a node and end its connections", ArgsUsage: "NAME",
				Action: func(ctx context.Context, cmd *cli.Command) error {
					return withName(cmd, func(name string) error {
						return askDesk(ctx, cmd.String("state"), "DELETE", "/nodes/"+name, nil, new(string))
					})
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

// withName runs f with the one argument.
func withName(cmd *cli.Command, f func(name string) error) error {
	if cmd.NArg() != 1 || strings.ContainsAny(cmd.Args().First(), "/?#%") {
		return usageError{fmt.Sprintf("%s takes one NAME", cmd.FullName())}
	}
	return f(cmd.Args().First())
}

func printToken(ctx context.Context, cmd *cli.Command, method, path string, body any) error {
	var token string
	if err := askDesk(ctx, cmd.String("state"), method, path, body, &token); err != nil {
		return err
	}
	return printSecret(cmd, token)
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
		if !slices.ContainsFunc(nodes, func(n portal.NodeStatus) bool { return n.Name == name }) {
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
		encoder := json.NewEncoder(out)
		encoder.SetIndent("", "\t")
		return encoder.Encode(nodes)
	}
	w := tabwriter.NewWriter(out, 0, 0, 2, ' ', 0)
	fmt.Fprintln(w, "NAME\tROLE\tADDRESSES\tONLINE\tROUTES\tPROGRAM\tREMARKS")
	for _, n := range nodes {
		fmt.Fprintf(w, "%s\t%s\t%s\t%s\t%s\t%s\t%s\n",
			n.Name, n.Role, joined(n.Addresses), onlineText(n), joined(n.Routes), n.Program, remarks(n))
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
	case n.Online && !n.Since.IsZero():
		return "since " + n.Since.Local().Format(time.DateTime) + " from " + strings.Join(n.From, " ")
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
		list = append(list, fmt.Sprintf("%d connections: the token is in use twice, or one is dead and not missed yet", n.Connections))
	}
	if n.Refused != "" {
		list = append(list, "refused: "+n.Refused)
	}
	if len(n.Allow) > 0 {
		list = append(list, "may reach "+strings.Join(n.Allow, " "))
	}
	return strings.Join(list, "; ")
}
