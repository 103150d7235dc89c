package main

import (
	"context"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"net"
	"net/netip"
	"os"
	"os/signal"
	"strconv"
	"strings"
	"sync"
	"time"

	"github.com/urfave/cli/v3"
	"golang.org/x/term"

	"github.com/sluice-vpn/sluice/cmd/internal/environment"
	"github.com/sluice-vpn/sluice/cmd/internal/logs"
	"github.com/sluice-vpn/sluice/cmd/internal/ops"
	"github.com/sluice-vpn/sluice/cmd/internal/service"
	"github.com/sluice-vpn/sluice/cmd/internal/version"
	"github.com/sluice-vpn/sluice/ice/portal"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/relay"
)

// defaultState is the portal's alone: a node on the same machine has /var/lib/sluice, and under systemd another user.
const defaultState = "/var/lib/sluice-portal"

// opsUsage is of all three roles.
const opsUsage = "serve /metrics, /healthz, /readyz and /debug/pprof by HTTP at `ADDRESS`, such as 127.0.0.1:9090; a port alone is on loopback"

func portalCommand() *cli.Command {
	return &cli.Command{
		Name:  "portal",
		Usage: "run the portal: sign-in, signaling and a relay for gateways and clients",
		UsageText: "sluice portal -public ADDRESS [options]\n" +
			"sluice portal node add, list, set, routes, token or remove (see sluice portal node -h)\n" +
			"sluice portal member list, sluice portal member remove NAME\n" +
			"sluice portal backup FILE, sluice portal restore FILE",
		Description: "One process and one folder. Nodes reach it by TCP (TLS) for sign-in and signaling and by UDP for STUN and TURN; both\n" +
			"ports must be open to them. Its first start makes one gateway and one client and prints the lines that start them, with\n" +
			"their tokens where it writes to a terminal or a file." + configText,
		Flags: append(append(configFlags(), clusterFlags()...),
			&cli.StringFlag{Name: "state", Value: defaultState, Usage: "`FOLDER` of the portal's state"}, // of node too
			&cli.StringFlag{Local: true, Name: "public", Usage: "`ADDRESS` under which nodes reach this machine (needed)"},
			&cli.StringFlag{
				Local: true, Name: "listen", Value: fmt.Sprintf(":%d", portal.DefaultPort), Usage: "`ADDRESS` for sign-in and signaling, TCP",
			},
			&cli.StringFlag{
				Local: true, Name: "relay-listen", Value: fmt.Sprintf(":%d", relay.DefaultPort),
				Usage: "`ADDRESS` for STUN and TURN, UDP; none: no relay here",
			},
			&cli.IntFlag{
				Local: true, Name: "relay-other-port", Value: relay.DefaultPort + 1,
				Usage: "a second UDP port for STUN alone, by which sluice netcheck tells what NATs let in; 0: none",
			},
			&cli.StringSliceFlag{
				Local: true, Name: "relay-other-address",
				Usage: "likewise, a second `ADDRESS` of this machine, which no NAT translates; at most one of IPv4 and IPv6",
			},
			&cli.StringSliceFlag{Local: true, Name: "relay-allow", Usage: "let the relay reach peers in `NETWORK` although it is private"},
			&cli.StringSliceFlag{Local: true, Name: "relay-deny", Usage: "keep the relay from reaching peers in `NETWORK`, whatever -relay-allow says"},
			&cli.IntFlag{
				Local: true, Name: "relay-rate",
				Usage: "relay at most `MBIT`/s for one node, in both directions together; 0: no limit (the default)",
			},
			&cli.StringSliceFlag{
				Local: true, Name: "relay",
				Usage: "another relay, `NAME=ADDRESS:PORT,FILE`, the file holding its shared secret (sluice portal or coturn)",
			},
			&cli.StringFlag{
				Local: true, Name: "network",
				Usage: "`PREFIXES` for tunnel addresses, one of IPv4, one of IPv6 or both, such as 10.99.0.0/16; kept, and fixed while there are nodes",
			},
			&cli.StringFlag{Local: true, Name: "ops", Usage: opsUsage},
			memoryFlag(true),
			&cli.StringFlag{Local: true, Name: "log-level", Value: "info", Usage: "`LEVEL`: " + logs.Levels},
		),
		DisableSliceFlagSeparator: true, // -relay has a comma of its own
		Commands:                  []*cli.Command{portalNodeCommand(), portalMemberCommand(), portalBackupCommand(), portalRestoreCommand()},
		Action:                    runPortal,
	}
}

// portalConfig reads the flags.
func portalConfig(cmd *cli.Command, logger *slog.Logger, resolve resolver) (portal.Config, error) {
	cfg := portal.Config{Folder: cmd.String("state"), Public: cmd.String("public"), Logger: logger}
	if cfg.Public == "" {
		return cfg, usageError{"-public is missing: the address under which nodes reach this machine, such as 203.0.113.7"}
	}
	if at, err := netip.ParseAddrPort(cfg.Public); err == nil {
		return cfg, usageError{fmt.Sprintf("-public %s: give the address without a port, %s; ports are -listen and -relay-listen", at, at.Addr())}
	}
	addrs, err := addressesOf("-public ", cfg.Public, resolve)
	if err != nil {
		return cfg, err
	}
	cfg.Relay.PublicAddrs, cfg.Resolve = addrs, resolve
	if cfg.Listen, err = listenAddress("-listen", cmd.String("listen"), netip.IPv6Unspecified()); err != nil {
		return cfg, err
	}
	if cfg.Cluster, err = clusterConfig(cmd); err != nil {
		return cfg, err
	}
	if at := cmd.String("relay-listen"); at == "none" {
		cfg.NoRelay = true
	} else if cfg.Relay.Listen, err = relayListen(at, cfg.Public, addrs); err != nil {
		return cfg, err
	}
	// The name may get an address of the other family later; until then its relayed addresses are of those that it has.
	cfg.Relay.OnlyPublic = true
	if cfg.Relay.AllowedPeers, err = networks(cmd, "relay-allow"); err != nil {
		return cfg, err
	}
	if cfg.Relay.DeniedPeers, err = networks(cmd, "relay-deny"); err != nil {
		return cfg, err
	}
	if err = relayOther(cmd, &cfg.Relay); err != nil {
		return cfg, err
	}
	rate := cmd.Int("relay-rate")
	if rate < 0 || rate > maxRelayRate {
		return cfg, usageError{fmt.Sprintf("-relay-rate %d: use Mbit/s, from 0 (no limit) to %d", rate, maxRelayRate)}
	}
	cfg.Relay.BytesPerSecondPerUser = rate * 125_000
	for _, text := range strings.FieldsFunc(cmd.String("network"), func(r rune) bool { return r == ',' }) {
		prefix, err := netip.ParsePrefix(strings.TrimSpace(text))
		if err != nil {
			return cfg, usageError{fmt.Sprintf("-network %q is no network; use one like 10.99.0.0/16", text)}
		}
		cfg.Overlay = append(cfg.Overlay, prefix)
	}
	for _, text := range cmd.StringSlice("relay") {
		other, err := otherRelay(text, resolve)
		if err != nil {
			return cfg, err
		}
		cfg.Relays = append(cfg.Relays, other)
	}
	return cfg, nil
}

// maxRelayRate is more than any machine relays, in Mbit/s.
const maxRelayRate = 1_000_000

// networks reads a flag that lists networks, with commas or several times.
func networks(cmd *cli.Command, flag string) (list []netip.Prefix, err error) {
	for _, text := range strings.FieldsFunc(strings.Join(cmd.StringSlice(flag), ","), func(r rune) bool { return r == ',' }) {
		prefix, err := netip.ParsePrefix(text)
		if err != nil {
			return nil, usageError{fmt.Sprintf("-%s %q is no network; use one like 10.0.0.0/8", flag, text)}
		}
		list = append(list, prefix)
	}
	return list, nil
}

// addressesOf are the addresses that a host stands for, one of a family. flag begins errors.
func addressesOf(flag, host string, resolve resolver) (list []netip.Addr, err error) {
	if addr, err := netip.ParseAddr(host); err == nil {
		return []netip.Addr{addr.Unmap()}, nil
	}
	ctx, cancel := context.WithTimeout(context.Background(), 20*time.Second)
	defer cancel()
	all, err := resolve(ctx, host)
	if err != nil {
		return nil, fmt.Errorf("%s%s: %w; use an address or a name that resolves here", flag, host, err)
	}
	return portal.OnePerFamily(nil, all), nil
}

// resolver finds all addresses of a name.
type resolver func(ctx context.Context, host string) ([]netip.Addr, error)

// resolve finds all addresses of a name.
func resolve(ctx context.Context, host string) ([]netip.Addr, error) {
	list, err := net.DefaultResolver.LookupNetIP(ctx, "ip", host)
	for i := range list {
		list[i] = list[i].Unmap()
	}
	return list, err
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

// relayListen is a socket of each family that is public, or may become so where the public address is a name.
func relayListen(text, host string, public []netip.Addr) (list []netip.AddrPort, err error) {
	if host, _, _ := net.SplitHostPort(text); host != "" {
		at, err := listenAddress("-relay-listen", text, netip.Addr{})
		return []netip.AddrPort{at}, err
	}
	if _, err := netip.ParseAddr(host); err != nil {
		public = []netip.Addr{netip.IPv4Unspecified(), netip.IPv6Unspecified()}
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

// relayOther reads where else the relay answers STUN.
func relayOther(cmd *cli.Command, r *relay.Config) error {
	port := cmd.Int("relay-other-port")
	if port < 0 || port > 65535 {
		return usageError{fmt.Sprintf("-relay-other-port %d: use 1 to 65535, or 0 for none", port)}
	}
	r.OtherPort = uint16(port)
	for _, at := range r.Listen {
		if port > 0 && int(at.Port()) == port {
			return usageError{fmt.Sprintf("-relay-other-port %d is the port of -relay-listen; use another, or 0 for none", port)}
		}
	}
	for _, text := range cmd.StringSlice("relay-other-address") {
		a, err := netip.ParseAddr(text)
		if err != nil || port == 0 {
			return usageError{fmt.Sprintf("-relay-other-address %q: use an address of this machine, with -relay-other-port", text)}
		}
		r.OtherAddrs = append(r.OtherAddrs, a.Unmap())
	}
	return nil
}

// otherRelay reads NAME=ADDRESS:PORT,FILE.
func otherRelay(text string, resolve resolver) (portal.OtherRelay, error) {
	name, rest, ok1 := strings.Cut(text, "=")
	at, file, ok2 := strings.Cut(rest, ",")
	host, port, err := net.SplitHostPort(at)
	n, err2 := strconv.ParseUint(port, 10, 16)
	if !ok1 || !ok2 || name == "" || file == "" || host == "" || err != nil || err2 != nil || n == 0 {
		return portal.OtherRelay{}, usageError{fmt.Sprintf("-relay %q: use NAME=ADDRESS:PORT,FILE", text)}
	}
	addrs, err := addressesOf("-relay "+name+": ", host, resolve)
	if err != nil {
		return portal.OtherRelay{}, err
	}
	secret, err := os.ReadFile(file)
	if err != nil {
		return portal.OtherRelay{}, fmt.Errorf("-relay %s: %w", name, err)
	}
	relay := portal.OtherRelay{Name: name, Host: host, Secret: strings.TrimSpace(string(secret))}
	for _, addr := range addrs {
		relay.Addrs = append(relay.Addrs, netip.AddrPortFrom(addr, uint16(n)))
	}
	return relay, nil
}

func runPortal(ctx context.Context, cmd *cli.Command) error {
	if _, err := noArguments(ctx, cmd); err != nil {
		return err
	}
	c, err := configure(cmd)
	if err != nil {
		return err
	}
	level, err := logs.ParseLevel(cmd.String("log-level"))
	if err != nil {
		return c.located(usageError{"-log-level " + err.Error()})
	}
	logger := logs.New(os.Stderr, level)
	if cmd.Bool("check") {
		cfg, err := portalConfig(cmd, nil, unresolved)
		if err == nil {
			err = cfg.Check()
		}
		if err == nil {
			err = checkServed(cmd)
		}
		return checked(cmd, c.located(err))
	}
	cfg, err := portalConfig(cmd, logger, resolve)
	if err == nil {
		err = checkServed(cmd)
	}
	if err = c.located(err); err == nil {
		limitMemory(cmd)
		err = servePortal(ctx, cmd, cfg)
	}
	if err == nil {
		logger.Info("portal has ended")
	}
	return told(cmd, err)
}

// servePortal runs the portal until a signal or ctx ends it.
func servePortal(ctx context.Context, cmd *cli.Command, cfg portal.Config) error {
	environment.Harden()
	ctx, stop := signal.NotifyContext(ctx, environment.EndSignalsOfTerminal()...)
	defer stop()
	var listener net.Listener
	if at := cmd.String("ops"); at != "" { // before there is anything to take back
		var err error
		if listener, err = ops.Listen(at); err != nil {
			return err
		}
		defer listener.Close()
	}
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
	if listener != nil {
		defer ops.Serve(listener, portalOps(p, cfg.Logger)).Close()
	}
	if len(p.Nodes()) == 0 {
		// Only now, because from here on the tokens that are printed work.
		if err := firstNodes(ctx, cmd, p); err != nil {
			return err
		}
	}
	serving, end := context.WithCancel(ctx)
	var told sync.WaitGroup
	defer func() { end(); told.Wait() }()
	told.Go(func() {
		service.Follow(serving, cfg.Logger, func(context.Context) (service.State, error) { return portalState(p), nil })
	})
	cfg.Logger.Info("portal is ready", "address", p.Addr(), "public", cfg.Public, "nodes", len(p.Nodes()),
		"version", version.String())
	return p.Wait(ctx)
}

// portalState is what the service manager is told.
func portalState(p *portal.Portal) service.State {
	if why := p.Unready(); why != nil {
		return service.State{Line: "not ready: " + oneLine(why)}
	}
	return service.State{Line: fmt.Sprintf("nodes sign in at %v", p.Addr()), Ready: true}
}

// firstNodes makes a gateway and a client, and prints what starts them: with their tokens where somebody has asked for this output,
// else with the commands that make tokens, since journals and the logs of containers are read by many.
func firstNodes(ctx context.Context, cmd *cli.Command, p *portal.Portal) error {
	gateway, err := p.AddNode(ctx, portal.NewNode{Name: "gateway", Role: protocol.Gateway})
	if err != nil {
		return err
	}
	client, err := p.AddNode(ctx, portal.NewNode{Name: "client", Role: protocol.Client})
	if err != nil {
		return err
	}
	state := ""
	if folder := cmd.String("state"); folder != defaultState {
		state = "-state " + folder + " "
	}
	about := "each of these tokens is a secret, and is shown only now"
	source := func(t protocol.Token) string { return "echo '" + t.Encode() + "'" }
	if !keepsSecrets(cmd.Root().Writer) {
		about = "their tokens are secrets, and not shown here:\nthis is neither a terminal nor a file. Run on this machine what makes each, and take its file to the node"
		source = func(t protocol.Token) string { return "sudo ./sluice portal node token " + state + t.Name }
	}
	_, err = fmt.Fprintf(cmd.Root().Writer, `This portal is new. It has a gateway and a client; %s.

On the gateway, with the networks behind it in place of 10.0.0.0/24:

    (umask 077; %s > gateway.token)
    sudo ./sluice gateway -token-file gateway.token -routes 10.0.0.0/24

On the client:

    (umask 077; %s > client.token)
    sudo ./sluice client -token-file client.token

More nodes, on this machine:

    (umask 077; sudo ./sluice portal node add %sNAME > NAME.token)

`, about, source(gateway), source(client), state)
	if err != nil { // the next start makes them anew
		err = errors.Join(fmt.Errorf("%w: %w", errToken, err), p.RemoveNode(ctx, "gateway"), p.RemoveNode(ctx, "client"))
	}
	return err
}

// keepsSecrets reports whether secrets may be written to out unasked: to a terminal, where one person reads them, and to a file, which
// somebody has named and can protect. A pipe or a socket leads to a journal, or to who keeps a container's output.
func keepsSecrets(out io.Writer) bool {
	f, ok := out.(*os.File)
	if !ok {
		return false
	}
	st, err := f.Stat()
	return err == nil && st.Mode().IsRegular() || term.IsTerminal(int(f.Fd()))
}

// portalOps is what a portal tells its operator by HTTP.
func portalOps(p *portal.Portal, logger *slog.Logger) ops.Config {
	return ops.Config{
		Role: "portal", Version: version.Describe(), Counters: p.Counters, Logger: logger,
		Healthy: func() error {
			if p.Failed() {
				return errors.New("a part of the portal has ended")
			}
			return nil
		},
		Ready: func(context.Context) []ops.Check {
			list, why := []ops.Check{{Name: "broker"}, {Name: "relay"}, {Name: "store"}}, p.Unready()
			switch {
			case errors.Is(why, portal.ErrBroker):
				list[0].Err = why
			case errors.Is(why, portal.ErrRelay):
				list[1].Err = why
			default:
				list[2].Err = why
			}
			return list
		},
	}
}
