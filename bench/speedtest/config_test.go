package speedtest

import (
	"context"
	"errors"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"
)

func TestNormalize(t *testing.T) {
	c, err := Config{}.Normalize()
	if err != nil {
		t.Fatal(err)
	}
	if c.Duration != 3*time.Second || c.Rounds != 1 || len(c.Cases) != 8 || len(c.Limits) != 2 {
		t.Errorf("defaults %+v", c)
	}
	// All default cases of three implementations, with what starting a node takes, fit into 90 s.
	total := time.Duration(len(c.Cases)*3) * (c.Duration + c.WarmUp + 300*time.Millisecond)
	if total > 90*time.Second {
		t.Errorf("a default run takes %v", total)
	}
	for _, bad := range []struct {
		c    Config
		want string
	}{
		{Config{Duration: time.Millisecond}, "duration 1ms is out of range"},
		{Config{Duration: -time.Second}, "duration -1s is out of range"},
		{Config{Duration: 2 * time.Hour}, "out of range"},
		{Config{WarmUp: -1}, "warm-up"},
		{Config{Rounds: -1}, "rounds"},
		{Config{Rounds: 1e6}, "rounds"},
		{Config{Cases: []string{"tcp-1", "tcp-2"}}, `no case "tcp-2"; use one or more of tcp-1,tcp-4`},
		{Config{Limits: []string{"sky"}}, `no limit "sky"; use`},
		{Config{Load: "wind"}, `no load "wind"; use one of own, iperf3`},
		{Config{Load: "iperf3", Cases: []string{"rtt-idle"}}, "iperf3 measures no round trips; leave out case rtt-idle"},
		{Config{Profile: "heat"}, `no profile "heat"; use one of cpu`},
	} {
		if _, err := bad.c.Normalize(); err == nil || !strings.Contains(err.Error(), bad.want) || strings.Contains(err.Error(), "\n") {
			t.Errorf("%+v: %v, want one line with %q", bad.c, err, bad.want)
		}
	}
	c, err = Config{Cases: []string{"rtt-idle", "tcp-1", "rtt-idle"}}.Normalize()
	if err != nil {
		t.Fatal(err)
	}
	if list, _ := c.selected(); len(list) != 2 || list[0].Name != "tcp-1" {
		t.Errorf("selected %+v, want each case once, in the usual order", list)
	}
}

func TestResolveAgainst(t *testing.T) {
	dir := t.TempDir()
	for _, name := range []string{"prog", "sluice"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte("#!/bin/sh\n"), 0o755); err != nil {
			t.Fatal(err)
		}
	}
	list, err := ResolveAgainst(context.Background(), []string{filepath.Join(dir, "prog"), filepath.Join(dir, "sluice")}, nil)
	if err != nil {
		t.Fatal(err)
	}
	if len(list) != 2 || list[0].Name != "prog" || list[1].Name == ImplSluice {
		t.Errorf("resolved %+v; another program must not be called as ours is", list)
	}
	for _, bad := range [][]string{{"/no/such/program"}, {filepath.Join(dir, "prog"), filepath.Join(dir, "prog")}, {""}} {
		if _, err := ResolveAgainst(context.Background(), bad, nil); err == nil || strings.Contains(err.Error(), "\n") {
			t.Errorf("%q: %v, want an error of one line", bad, err)
		}
	}
}

func TestResolvePeerFindsTheBuiltOne(t *testing.T) {
	cache := t.TempDir()
	t.Setenv("XDG_CACHE_HOME", cache)
	t.Setenv("LocalAppData", cache)
	t.Setenv("HOME", cache)
	t.Setenv("PATH", "") // neither go nor cargo: building is impossible
	for _, p := range peerPrograms {
		if _, err := ResolveAgainst(context.Background(), []string{p.name}, nil); !errors.Is(err, ErrNoTool) ||
			!strings.Contains(err.Error(), p.tool+" command") {
			t.Errorf("%s without its tool: got %v, want one that names the %s command", p.name, err, p.tool)
		}
		dirs, err := filepath.Glob(filepath.Join(cache, "*", "sluice", "peers", p.name, p.version, "*"))
		if len(dirs) == 0 {
			dirs, err = filepath.Glob(filepath.Join(cache, "sluice", "peers", p.name, p.version, "*"))
		}
		if err != nil || len(dirs) != 1 {
			t.Fatalf("cache folders of %s: %v %v", p.name, dirs, err)
		}
		if left, _ := os.ReadDir(dirs[0]); len(left) != 0 {
			t.Errorf("%s: a failed build left %v", p.name, left)
		}
		path := filepath.Join(dirs[0], p.binary)
		if err := os.WriteFile(path, nil, 0o755); err != nil {
			t.Fatal(err)
		}
		list, err := ResolveAgainst(context.Background(), []string{p.name}, nil)
		if err != nil || len(list) != 1 || list[0].Path != path || list[0].Version != p.module+"@"+p.version {
			t.Errorf("%s: %+v, %v", p.name, list, err)
		}
	}
}
