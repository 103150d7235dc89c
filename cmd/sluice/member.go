package main

import (
	"context"
	"fmt"
	"net/netip"
	"os"
	"slices"
	"strings"

	"github.com/urfave/cli/v3"

	"github.com/sluice-vpn/sluice/cmd/internal/logs"
	"github.com/sluice-vpn/sluice/cmd/internal/member"
	"github.com/sluice-vpn/sluice/cmd/internal/names"
	"github.com/sluice-vpn/sluice/cmd/internal/version"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/tun/host"
)

func gatewayCommand() *cli.Command {
	return &cli.Command{
		Name:  "gateway",
		Usage: "let clients reach the networks behind this machine",
		Description: "Signs in at the portal, makes the interface, forwards what comes through the tunnel to the networks that it offers" +
			"\n(and to no others), and hides it behind this machine's own addresses (masquerade), so that nothing there needs a" +
			"\nroute back. What a firewall of this machine drops on the way is told by sluice status. With -userspace it makes no interface, forwards" +
			"\nnothing and needs no rights: it dials for its peers, TCP and UDP only.\n\n" +
			"   sluice gateway -token-file /etc/sluice/token -routes 10.0.0.0/24,fd09::/64" + memberText + "." + configText,
		Flags: append(memberFlags(),
			&cli.StringFlag{Name: "routes", Usage: "`PREFIXES` to offer, with commas between; the portal says who may use them"},
			&cli.StringFlag{Name: "dns", Usage: "`ADDRESSES` of name servers, with commas between, that clients use while their default route leads here"},
			&cli.BoolFlag{Name: "userspace", Usage: "make no interface, and need no rights: what comes through the tunnel is dialed from here, TCP and UDP only"},
			&cli.BoolFlag{Name: "no-masquerade", Usage: "keep the tunnel's addresses: the networks behind need routes back"},
		),
		Before: noArguments,
		Action: func(ctx context.Context, cmd *cli.Command) error { return runMember(ctx, cmd, protocol.Gateway) },
	}
}

func clientCommand() *cli.Command {
	return &cli.Command{
		Name:  "client",
		Usage: "reach gateways and the networks behind them",
		Description: "Signs in at the portal, makes the interface, and routes what the portal lets it reach through the tunnel. A default route" +
			"\nthat a gateway offers is taken too; private networks on this machine's own links stay reachable (-keep for others), and" +
			"\nnothing else leads past the tunnel then, not even the family that there is no default route for. Routes that could take" +
			"\nthese networks away, or lead elsewhere than to a network, are refused (-accept-routes). Nobody opens connections to this machine by the" +
			"\ntunnel (-accept-incoming). Name servers stay as they are, but for NAME.sluice (-names)." +
			clearText + memberText + `; with -userspace none of that.

With -userspace there is no interface and nothing of the machine is changed: programs reach the tunnel by a SOCKS5 server (-socks5), an HTTP
proxy (-http-proxy) or forwarded ports (-forward), and what is not routed through the tunnel is refused there. NAME.sluice leads to nodes;
other names are asked for as this machine does.` + userSocketText + `

   sluice client -token-file client.token -userspace -socks5 1080
   curl -x socks5h://127.0.0.1:1080 http://gate.sluice/` + configText,
		Flags: append(memberFlags(),
			&cli.BoolFlag{Name: "accept-incoming", Usage: "let in connections that nobody on this machine has begun, and echo requests (sluice ping)"},
			&cli.BoolFlag{Name: "fail-closed", Usage: "let nothing leave this machine past the tunnel but for its own local networks, also after the program's end" +
				" or a kill, until -release"},
			&cli.BoolFlag{Name: "userspace", Usage: "make no interface, and need no rights: programs reach the tunnel by what the next three flags name"},
			&cli.StringFlag{Name: "socks5", Usage: "with -userspace, serve SOCKS5 at `ADDRESS`: PORT, which is on 127.0.0.1, or HOST:PORT"},
			&cli.StringFlag{Name: "http-proxy", Usage: "with -userspace, be an HTTP proxy at `ADDRESS`"},
			&cli.StringFlag{Name: "forward", Usage: "with -userspace, lead `LOCAL=HOST:PORT`, or several with commas between, from a local PORT or ADDRESS:PORT" +
				" to a port behind the tunnel"},
			&cli.BoolFlag{Name: "release", Usage: "only end what -fail-closed began, whether a client runs or not, with the same -interface, -socket, -table and -mark"},
		),
		Before: noArguments,
		Action: func(ctx context.Context, cmd *cli.Command) error { return runMember(ctx, cmd, protocol.Client) },
	}
}

func memberFlags() []cli.Flag {
	return append(configFlags(),
		&cli.StringFlag{Name: "token-file", Usage: "read the token from `FILE`; - is standard input"},
		stateFlag(),
		&cli.StringFlag{Name: "interface", Usage: "`NAME` of the interface to make", Value: member.DefaultInterface},
		&cli.IntFlag{Name: "port", Usage: "UDP `PORT`; 0 chooses one"},
		&cli.IntFlag{Name: "mtu", Usage: "of the interface, in `BYTES`", Value: member.DefaultMTU},
		&cli.IntFlag{Name: "table", Usage: "routing table `NUMBER` for what goes through the tunnel", Value: host.DefaultTable},
		&cli.UintFlag{Name: "mark", Usage: "fwmark `NUMBER` of the program's own packets, which never go through the tunnel", Value: host.DefaultMark},
		&cli.StringFlag{Name: "accept-routes", Usage: "`PREFIXES`, with commas between, to take of gateways though they are inside a network of this" +
			" machine's own, link-local or single addresses"},
		&cli.StringFlag{Name: "keep", Usage: "`NETWORKS`, with commas between, that stay outside of the tunnel where a link leads to them; ::/0 (0.0.0.0/0) has" +
			" all IPv6 (IPv4) go past it"},
		&cli.BoolFlag{Name: "no-default-route", Usage: "refuse 0.0.0.0/0 and ::/0, and what is as good as one: shorter than /8, of IPv6 than /16"},
		&cli.StringFlag{Name: "socket", Usage: "`PATH` of the status socket (default: " + socketText + ")"},
		&cli.StringFlag{Name: "pins", Usage: "keep the identities of peers in `FILE` (default: pins-NAME.json in the state folder)"},
		&cli.StringFlag{Name: "names", Usage: "lead NAME.sluice to the tunnel addresses of nodes, by `MODE`: resolved has systemd-resolved ask here, auto does" +
			" where it runs, hosts keeps a hosts file, serve only answers at this node's own address, off does nothing", Value: namesMode},
		&cli.StringFlag{Name: "names-file", Usage: "the hosts file is `FILE`", Value: names.HostsFile},
		&cli.StringFlag{Name: "ops", Usage: opsUsage},
		memoryFlag(false),
		&cli.StringFlag{Name: "log-dir", Usage: "keep the log in the folder `DIR` too, or nowhere: none (default: see sluice logs -h)"},
		&cli.StringFlag{Name: "log-level", Usage: "`LEVEL`: " + logs.Levels + " (default: info, or LOG_LEVEL)"},
	)
}

func runMember(ctx context.Context, cmd *cli.Command, role protocol.Role) error {
	c, err := configure(cmd)
	if err != nil {
		return err
	}
	o, err := memberOptions(cmd, role)
	if err == nil {
		err = checkServed(cmd)
	}
	if err = c.located(err); cmd.Bool("check") {
		if err == nil {
			err = checkToken(cmd)
		}
		return checked(cmd, err)
	}
	if err != nil {
		return err
	}
	if cmd.Bool("release") {
		return member.Release(ctx, o)
	}
	limitMemory(cmd)
	if o.Token, o.TokenSource, err = member.ReadToken(cmd.String("token-file"), cmd.Root().Reader); err == nil {
		o.Log = openLog(cmd, role)
		if err = managed(ctx, cmd, func(ctx context.Context) error { return member.Run(ctx, o) }); err != nil {
			o.Log.File().Error(oneLine(err))
		}
	}
	return told(cmd, err)
}

// openLog begins the log of a client or gateway, with which build it is.
func openLog(cmd *cli.Command, role protocol.Role) *logs.Log {
	f, ok := cmd.Root().ErrWriter.(*os.File)
	if !ok {
		f = os.Stderr
	}
	text := cmd.String("log-level")
	if text == "" {
		text = os.Getenv("LOG_LEVEL")
	}
	level, err := logs.ParseLevel(text)
	log := logs.Open(f, logs.Caller(os.Getenv).PlaceOf(cmd.String("log-dir")), level)
	if err != nil {
		log.Warn("LOG_LEVEL is not understood, and counts as info", "error", err)
	}
	log.Info("version", "program", "sluice "+string(role), "version", version.String(), "commit", version.Commit())
	return log
}

// Limits of flags. 1280 is the least MTU of IPv6 (RFC 8200, section 5); tables are those that iproute2 leaves to others.
const (
	leastMTU, greatestMTU = 1280, 65535 - 84
	greatestTable         = 1<<31 - 1
)

func memberOptions(cmd *cli.Command, role protocol.Role) (o member.Options, err error) {
	o = member.Options{
		Role: role, Interface: cmd.String("interface"), Socket: cmd.String("socket"), Pins: cmd.String("pins"), State: cmd.String("state"), Ops: cmd.String("ops"),
		Names: cmd.String("names"), NamesFile: cmd.String("names-file"),
		NoMasquerade: cmd.Bool("no-masquerade"), MTU: cmd.Int("mtu"), Table: cmd.Int("table"), Mark: uint32(cmd.Uint("mark")),
	}
	switch port := cmd.Int("port"); {
	case port < 0 || port > 65535:
		return o, usageError{fmt.Sprintf("-port %d: want 0 to 65535", port)}
	case o.MTU < leastMTU || o.MTU > greatestMTU:
		return o, usageError{fmt.Sprintf("-mtu %d: want %d (IPv6 needs it) to %d", o.MTU, leastMTU, greatestMTU)}
	case o.Table < 1 || o.Table > greatestTable || o.Table >= 253 && o.Table <= 255:
		return o, usageError{fmt.Sprintf("-table %d: want 1 or more, and none of the system's (253 to 255)", o.Table)}
	case cmd.Uint("mark") < 1 || cmd.Uint("mark") > 1<<32-1:
		return o, usageError{fmt.Sprintf("-mark %d: want 1 to 4294967295", cmd.Uint("mark"))}
	case !names.ValidMode(o.Names):
		return o, usageError{fmt.Sprintf("-names %q: want one of %s", o.Names, names.Modes)}
	case o.Names != names.Hosts && cmd.IsSet("names-file"):
		return o, usageError{"-names-file is for -names hosts"}
	case o.Interface == "" || strings.ContainsAny(o.Interface, "/%"):
		return o, usageError{fmt.Sprintf("-interface %q: want a name like sluice0", o.Interface)}
	default:
		o.Port = uint16(port)
	}
	if _, err := logs.ParseLevel(cmd.String("log-level")); err != nil {
		return o, usageError{"-log-level " + err.Error()}
	}
	if o.Routes, err = parseRoutes("-routes", cmd.String("routes")); err != nil {
		return o, err
	}
	o.NoDefault = cmd.Bool("no-default-route")
	if o.DNS, err = parseDNS(cmd.String("dns"), o.Routes); err != nil {
		return o, err
	}
	if o.Keep, err = parsePrefixes("-keep", cmd.String("keep")); err != nil {
		return o, err
	}
	if o.Accepted, err = parsePrefixes("-accept-routes", cmd.String("accept-routes")); err != nil {
		return o, err
	}
	if o.Userspace, err = userspaceOptions(cmd); err != nil {
		return o, err
	}
	if o.Userspace != nil && !cmd.IsSet("interface") {
		o.Interface = member.UserspaceInterface
	}
	o.AcceptIncoming = cmd.Bool("accept-incoming")
	o.FailClosed = cmd.Bool("fail-closed")
	if cmd.Bool("release") && o.FailClosed {
		return o, usageError{"-release ends what -fail-closed begins; give one of them"}
	}
	for _, p := range o.Keep {
		if o.FailClosed && p.Bits() == 0 {
			return o, usageError{fmt.Sprintf("-keep %v and -fail-closed contradict one another", p)}
		}
	}
	for _, p := range o.Accepted {
		if o.NoDefault && p.Bits() == 0 {
			return o, usageError{fmt.Sprintf("-accept-routes %v and -no-default-route contradict one another", p)}
		}
	}
	return o, nil
}

// parseRoutes reads networks that a gateway may offer; flag begins errors.
func parseRoutes(flag, text string) ([]netip.Prefix, error) {
	routes, err := parsePrefixes(flag, text)
	if err != nil {
		return nil, err
	}
	if err := protocol.ValidateRoutes(routes); err != nil {
		return nil, usageError{flag + ": " + err.Error()}
	}
	return routes, nil
}

// parseDNS reads the name servers of a gateway that offers these routes.
func parseDNS(text string, routes []netip.Prefix) (list []netip.Addr, err error) {
	for word := range strings.SplitSeq(text, ",") {
		if word = strings.TrimSpace(word); word == "" {
			continue
		}
		a, err := netip.ParseAddr(word)
		if err != nil {
			return nil, usageError{fmt.Sprintf("-dns: %q is no address of a name server", word)}
		}
		if !slices.ContainsFunc(routes, func(p netip.Prefix) bool { return p.Bits() == 0 && p.Addr().Is6() == a.Is6() }) {
			return nil, usageError{fmt.Sprintf("-dns: %v is for clients whose default route leads here: offer it, with -routes 0.0.0.0/0,::/0", a)}
		}
		list = append(list, a)
	}
	if err := protocol.ValidateDNS(list); err != nil {
		return nil, usageError{"-dns: " + err.Error()}
	}
	return list, nil
}

// parsePrefixes reads networks with commas between.
func parsePrefixes(flag, text string) ([]netip.Prefix, error) {
	var routes []netip.Prefix
	for word := range strings.SplitSeq(text, ",") {
		if word = strings.TrimSpace(word); word == "" {
			continue
		}
		p, err := netip.ParsePrefix(word)
		if err != nil {
			if a, err := netip.ParseAddr(word); err == nil && a.Zone() == "" {
				return nil, usageError{fmt.Sprintf("%s: %s has no prefix length; did you mean %s/%d?", flag, a, a, a.BitLen())}
			}
			return nil, usageError{fmt.Sprintf("%s: %q is no prefix; want ones like 10.0.0.0/24 or fd09::/64, with commas between", flag, word)}
		}
		if p != p.Masked() {
			return nil, usageError{fmt.Sprintf("%s: %s has host bits; did you mean %s?", flag, p, p.Masked())}
		}
		routes = append(routes, p)
	}
	return routes, nil
}
