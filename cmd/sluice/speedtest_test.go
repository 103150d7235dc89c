package main

import (
	"bytes"
	"strings"
	"testing"
)

func TestSpeedtestBadInput(t *testing.T) {
	for _, c := range []struct {
		args string
		code int
		want string
	}{
		{"-cases tcp-1,tcp-3", 2, `no case "tcp-3"; use one or more of tcp-1,`},
		{"-cases=", 2, "no case"},
		{"-duration fast", 2, `"fast"`},
		{"-duration 0s", 2, "-duration 0s is too short; try 3s"},
		{"-duration 1ms", 2, "out of range; use 50ms to"},
		{"-rounds 0", 2, "try 1"},
		{"-rounds -3", 2, "out of range; use 1 to 1000"},
		{"-limits moon", 2, `no limit "moon"; use one or more of bare,null`},
		{"-profile heat", 2, `no profile "heat"; use one of cpu`},
		{"-serve -connect gate", 2, "-connect says nothing to -serve; leave it out"},
		{"-serve -json", 2, "-json says nothing to -serve"},
		{"-connect gate -topology nat", 2, "-topology says nothing to -connect"},
		{"-connect gate -for 1m", 2, "-for says nothing to -connect"},
		{"-connect gate -port 0", 2, "-port 0: want 1 to 65535"},
		{"-connect gate -cases udp", 2, `no case "udp"`},
		{"-connect gate -socket /none", 1, "/none: no node is running there"},
		{"-serve -socket /none", 1, "/none: no node is running there"},
		{"-interface sluice0", 2, "-interface is for -serve and -connect"},
		{"now", 2, `takes no argument, not "now"`},
		{"-fast", 2, "-fast"},
	} {
		var out, errs bytes.Buffer
		args := append([]string{"sluice", "speedtest"}, strings.Fields(c.args)...)
		code := run(args, strings.NewReader(""), &out, &errs)
		if code != c.code || !strings.Contains(errs.String(), c.want) || strings.Count(errs.String(), "\n") != 1 || out.Len() > 0 {
			t.Errorf("%s: exit %d, %q on stderr, %d bytes on stdout; want exit %d and one line with %q",
				c.args, code, errs.String(), out.Len(), c.code, c.want)
		}
	}
}

func TestSpeedtestHelp(t *testing.T) {
	var out, errs bytes.Buffer
	if code := run([]string{"sluice", "speedtest", "-h"}, strings.NewReader(""), &out, &errs); code != 0 {
		t.Fatalf("exit %d: %s", code, errs.String())
	}
	for _, want := range []string{"tcp-bidir", "rtt-loaded", "gbit_per_s", "-against", "wireguard-go, tailscale, boringtun, gotatun", "-load", "-duration", "-serve", "-connect PEER"} {
		if !strings.Contains(strings.Join(strings.Fields(out.String()), " "), want) {
			t.Errorf("no %q in\n%s", want, out.String())
		}
	}
}
