package main

import (
	"fmt"
	"net"
	"os"
	"path/filepath"
	"strings"
	"testing"
)

// Three processes are one portal: one is killed, nodes are added at another, and the killed one has them when it is back.
func TestClusterOfProcesses(t *testing.T) {
	t.Parallel()
	first := startPortal(t, filepath.Join(t.TempDir(), "one"))
	backup := filepath.Join(t.TempDir(), "backup")
	if _, text, code := call("", "portal", "backup", "-state", first.folder, backup); code != 0 {
		t.Fatal(text)
	}
	if _, text, code := call("", "portal", "member", "list", "-state", first.folder); code == 0 || !strings.Contains(text, "this portal is alone") {
		t.Errorf("members of one portal: %d, %s", code, text)
	}
	first.stop(t)
	names, folders := []string{"one", "two", "three"}, []string{first.folder}
	var list []string
	var taken []net.Listener // so that no two get one port
	for i, name := range names {
		l, err := net.Listen("tcp", "127.0.0.1:0")
		if err != nil {
			t.Fatal(err)
		}
		taken = append(taken, l)
		list = append(list, name+"="+l.Addr().String())
		if i == 0 {
			continue
		}
		folders = append(folders, filepath.Join(t.TempDir(), name))
		if _, text, code := call("", "portal", "restore", "-state", folders[i], backup); code != 0 {
			t.Fatal(text)
		}
	}
	for _, l := range taken {
		l.Close()
	}
	run := func(i int) *runningPortal {
		log, err := os.Create(filepath.Join(t.TempDir(), fmt.Sprint(i)))
		if err != nil {
			t.Fatal(err)
		}
		defer log.Close()
		_, at, _ := strings.Cut(list[i], "=")
		p := startPortalWith(t, folders[i], log, log, "-cluster", "test", "-member", names[i], "-members", strings.Join(list, ","), "-cluster-listen", at)
		p.log = log.Name()
		return p
	}
	var portals []*runningPortal
	for i := range names {
		portals = append(portals, run(i))
	}
	for _, p := range portals {
		p.until(t, "is ready", func() bool { return strings.Contains(p.logged(), "portal is ready") })
	}
	if err := portals[0].cmd.Process.Kill(); err != nil {
		t.Fatal(err)
	}
	portals[0].awaitEnd(t)
	portals[1].until(t, "takes a node", func() bool { _, _, code := portals[1].node("add", "late"); return code == 0 })
	portals[2].until(t, "has it too", func() bool { return portals[2].list(t)["late"].Name != "" })
	var table string
	portals[1].until(t, "misses the killed one", func() bool {
		table, _, _ = call("", "portal", "member", "list", "-state", folders[1])
		return strings.Contains(table, "not reached") && strings.Contains(table, "leads") && strings.Contains(table, "this one")
	})
	t.Logf("\n%s", table)
	back := run(0)
	back.until(t, "is ready", func() bool { return strings.Contains(back.logged(), "portal is ready") })
	if len(back.list(t)) != 3 {
		t.Errorf("the killed one has %v", back.list(t))
	}
	if _, text, code := call("", "portal", "member", "remove", "-state", folders[1], "two"); code == 0 || !strings.Contains(text, "stop it first") {
		t.Errorf("removing one that is there: %d, %s", code, text)
	}
}

// What is wrong with the flags of a cluster is said.
func TestClusterFlags(t *testing.T) {
	t.Parallel()
	for args, want := range map[string]string{
		"-member one":                         "give -cluster NAME too",
		"-cluster c":                          "-cluster needs -member NAME",
		"-cluster c -member one -members one": "NAME=HOST:PORT",
		"-cluster c -member x -members one=127.0.0.1:1,two=127.0.0.1:2,three=127.0.0.1:3": "no NAME=HOST:PORT of -member x",
		"-cluster c -member one -members one=127.0.0.1:1,two=127.0.0.1:2":                 "3 to 7 members, not 2",
	} {
		_, text, code := call("", append([]string{"portal", "-check", "-public", "127.0.0.1"}, strings.Fields(args)...)...)
		if code == 0 || !strings.Contains(text, want) {
			t.Errorf("%s: %d, %s; want %q", args, code, text, want)
		}
	}
}
