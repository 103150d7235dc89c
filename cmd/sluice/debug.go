package main

import (
	"bytes"
	"context"
	"crypto/rand"
	"encoding/json"
	"errors"
	"fmt"
	"net/netip"
	"os"
	"os/exec"
	"os/signal"
	"runtime"
	"strings"
	"syscall"
	"time"

	"github.com/urfave/cli/v3"

	"github.com/sluice-vpn/sluice/cmd/internal/bundle"
	"github.com/sluice-vpn/sluice/cmd/internal/doctor"
	"github.com/sluice-vpn/sluice/cmd/internal/logs"
	"github.com/sluice-vpn/sluice/cmd/internal/status"
	"github.com/sluice-vpn/sluice/cmd/internal/version"
	"github.com/sluice-vpn/sluice/ice/edge"
	"github.com/sluice-vpn/sluice/ice/netcheck"
)

func debugCommand() *cli.Command {
	return &cli.Command{
		Name:  "debug",
		Usage: "collect what helps to find a fault",
		Commands: []*cli.Command{{
			Name:  "bundle",
			Usage: "write an archive that may be shown to others",
			Description: "Status and counters of this machine's nodes, their logs, what doctor and netcheck" +
				"\nfind, version and kernel, routes, policy rules and our own nftables tables." +
				"\nThere is no secret in it. Private, shared and tunnel addresses, and the names of" +
				"\nnodes and of this machine, are replaced: the same one by the same word, which" +
				"\ntells nothing outside of this archive. -plain keeps them; public addresses stay" +
				"\nin any case. The file is for its owner only.",
			Flags: append(nodeFlags(),
				&cli.StringFlag{Name: "o", Usage: "write to `FILE` (default: sluice-debug-TIME.tar.gz)"},
				&cli.BoolFlag{Name: "plain", Usage: "keep addresses and names"},
				&cli.StringFlag{Name: "log-dir", Usage: "take the logs of the folder `DIR`"},
				&cli.StringFlag{Name: "token-file", Usage: "have netcheck ask the portal of the token in `FILE`"},
				stateFlag(), markFlag(),
			),
			Before: noArguments,
			Action: writeBundle,
		}},
	}
}

func writeBundle(ctx context.Context, cmd *cli.Command) error {
	ctx, stop := signal.NotifyContext(ctx, os.Interrupt, syscall.SIGTERM)
	defer stop()
	now := time.Now().UTC()
	name := "sluice-debug-" + now.Format("2006-01-02T15-04-05Z")
	path := cmd.String("o")
	if path == "" {
		path = name + ".tar.gz"
	}
	out, err := os.OpenFile(path, os.O_CREATE|os.O_EXCL|os.O_WRONLY, 0o600)
	if err != nil {
		return fmt.Errorf("%w; choose another file with -o", err)
	}
	c := &collector{names: []string{os.Getenv("USER"), os.Getenv("SUDO_USER")}}
	c.collect(ctx, cmd, now)
	key := make([]byte, 32)
	rand.Read(key)
	redactor := bundle.NewRedactor(key, cmd.Bool("plain"), c.inner, c.names)
	for i := range c.files {
		c.files[i].Text = redactor.Redact(c.files[i].Text)
	}
	err = errors.Join(ctx.Err(), bundle.Write(out, name, now, c.files), out.Close())
	if err != nil {
		return errors.Join(err, os.Remove(path))
	}
	_, err = fmt.Fprintf(cmd.Root().Writer, "%s\n", path)
	return err
}

// collector collects files, and what is to be replaced in them.
type collector struct {
	files []bundle.File
	inner []netip.Prefix
	names []string
}

// add adds a file. What could not be had is told in its place.
func (c *collector) add(name string, text []byte, err error) {
	if err != nil {
		text = fmt.Appendf(text, "not complete: %s\n", oneLine(err))
	}
	c.files = append(c.files, bundle.File{Name: name, Text: text})
}

func (c *collector) addJSON(name string, v any, err error) {
	var text []byte
	if err == nil {
		text, err = json.MarshalIndent(v, "", "\t")
	}
	c.add(name, text, err)
}

func (c *collector) collect(ctx context.Context, cmd *cli.Command, now time.Time) {
	host, _ := os.Hostname()
	c.names = append(c.names, host)
	kernel, err := os.ReadFile("/proc/version")
	about := fmt.Appendf(nil, "sluice %s, commit %s\nat %s, user %d\n%s", version.String(), version.Commit(), now.Format(time.RFC3339), os.Getuid(), kernel)
	if runtime.GOOS != "linux" {
		err = nil
	}
	c.add("about.txt", about, err)
	nodes, err := chosenNodes(cmd)
	if err != nil {
		c.add("status.json", nil, err)
	}
	for i, n := range nodes {
		s, err := n.Get(ctx)
		c.addJSON(fmt.Sprintf("status-%d.json", i+1), s, err)
		c.know(&s)
		counters, err := n.Counters(ctx)
		c.addJSON(fmt.Sprintf("counters-%d.json", i+1), counters, err)
	}
	folders := logs.Caller(os.Getenv).Folders()
	if dir := cmd.String("log-dir"); dir != "" {
		folders = []string{dir}
	}
	found, err := bundle.Logs(folders)
	for _, f := range found {
		c.files = append(c.files, f)
		c.names = append(c.names, bundle.Names(f.Text)...)
	}
	if err != nil || len(found) == 0 {
		c.add("logs.txt", fmt.Appendf(nil, "%d files in %s\n", len(found), strings.Join(folders, ", ")), err)
	}
	c.examine(ctx, cmd)
	if runtime.GOOS == "linux" {
		c.kernel(ctx)
	}
}

// know notes what of a status is to be replaced.
func (c *collector) know(s *edge.Status) {
	c.inner = append(c.inner, s.Addresses...)
	c.names = append(append(c.names, s.Name), s.Awaited...)
	for i := range s.Connections {
		c.names = append(c.names, s.Connections[i].Peer)
		c.inner = append(c.inner, s.Connections[i].AllowedIPs...)
		if d := s.Connections[i].LastDrop; d != nil && d.Src.IsValid() {
			c.inner = append(c.inner, netip.PrefixFrom(d.Src.Addr(), d.Src.Addr().BitLen()), netip.PrefixFrom(d.Dst.Addr(), d.Dst.Addr().BitLen()))
		}
	}
	for i := range s.Routes {
		c.inner = append(c.inner, s.Routes[i].Prefix)
	}
	for i := range s.Relays {
		c.names = append(c.names, s.Relays[i].Name)
	}
}

// netcheckPatience is how long the look at the network may last.
const netcheckPatience = 20 * time.Second

// examine has doctor and netcheck look.
func (c *collector) examine(ctx context.Context, cmd *cli.Command) {
	facts := doctor.Examine()
	var text bytes.Buffer
	err := status.View{}.WriteFindings(&text, status.Findings(&facts))
	c.add("doctor.txt", text.Bytes(), err)
	c.addJSON("doctor.json", facts, nil)
	ctx, cancel := context.WithTimeout(ctx, netcheckPatience)
	defer cancel()
	cfg, err := netcheckConfig(ctx, cmd)
	if err != nil { // no token is stored; a node that runs knows its relays
		if cfg.Servers = relaysOfNodes(ctx, cmd); len(cfg.Servers) > 0 {
			err = nil
		}
	}
	text = bytes.Buffer{}
	if err == nil {
		report := netcheck.Check(ctx, cfg)
		err = status.View{}.WriteNetcheck(&text, &report)
	}
	c.add("netcheck.txt", text.Bytes(), err)
}

// kernel takes routes, policy rules and our own nftables tables, as the tools tell them that whoever reads this knows.
func (c *collector) kernel(ctx context.Context) {
	for _, of := range []struct{ name, first, second string }{
		{"addresses.txt", "ip -4 -brief address", "ip -6 -brief address"}, {"rules.txt", "ip -4 rule", "ip -6 rule"},
		{"routes.txt", "ip -4 route show table all", "ip -6 route show table all"},
	} {
		v4, err4 := outputOf(ctx, strings.Fields(of.first)...)
		v6, err6 := outputOf(ctx, strings.Fields(of.second)...)
		c.add(of.name, append(v4, v6...), errors.Join(err4, err6))
	}
	var ours []byte
	tables, err := outputOf(ctx, "nft", "list", "tables")
	for line := range strings.Lines(string(tables)) {
		if f := strings.Fields(line); len(f) == 3 && strings.HasPrefix(f[2], "sluice") {
			text, e := outputOf(ctx, "nft", "list", "table", f[1], f[2])
			ours, err = append(ours, text...), errors.Join(err, e)
		}
	}
	if err == nil && len(ours) == 0 { // as of a client that its own data path protects
		ours = []byte("there is no table of ours\n")
	}
	c.add("nftables.txt", ours, err)
}

// outputOf runs a tool that only looks, with bounds on its time and what it says.
func outputOf(ctx context.Context, args ...string) ([]byte, error) {
	const most = 4 << 20
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	out, err := exec.CommandContext(ctx, args[0], args[1:]...).Output()
	var exit *exec.ExitError
	if errors.As(err, &exit) {
		err = fmt.Errorf("%s: %w: %s", strings.Join(args, " "), err, bytes.TrimSpace(exit.Stderr))
	}
	if len(out) > most {
		out, err = out[:most], errors.Join(err, fmt.Errorf("%s: the rest of %d bytes is left out", strings.Join(args, " "), len(out)))
	}
	return out, err
}
