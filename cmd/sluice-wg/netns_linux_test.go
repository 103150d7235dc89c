package main

import (
	"context"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"syscall"
	"testing"
	"time"
)

// netnsSetup stands before the script in mount, network and process namespaces of its own, which end with everything in them when
// the shell does: the names that the script gives to namespaces and sockets meet nobody's. The script changes one setting that
// only the first network namespace has, and reads the kernel's log, as not every user may; a file and a pipe without end take
// their places.
const netnsSetup = `
for folder in /run/wireguard /run/netns /proc/sys/net/core; do mkdir -p $folder && mount -t tmpfs none $folder || exit 99; done
echo 5 >/proc/sys/net/core/message_cost
mkfifo /run/wireguard/log && mount --bind /run/wireguard/log /dev/kmsg && exec 9<>/dev/kmsg || exit 99
ip link set lo up
exec bash "$@"
`

// fewerBytes is an iperf3 that sends 16 MB where the script asks for a gigabyte.
const fewerBytes = `#!/bin/bash
for argument; do
	[ "$argument" = 1G ] && argument=16M
	set -- "$@" "$argument"
	shift
done
exec %s "$@"
`

// settledIP is an ip that returns when a new IPv6 address has its route, which the kernel makes in a work queue
// (net/ipv6/addrconf.c, addrconf_dad_work): the script pings at once, and without the route its packets rightly go nowhere.
const settledIP = `#!/bin/bash
case " $* " in
*" addr add "*:*) %[1]s "$@" && sleep 0.2 ;;
*) exec %[1]s "$@" ;;
esac
`

// TestNetnsScript runs the test that wireguard-go brings along, which is kernel WireGuard's own, ported: it is read where the
// module cache has it. A failure of any step is the script's end; what it last said is shown.
func TestNetnsScript(t *testing.T) {
	t.Parallel()
	need(t, "wg", "ip", "ping", "ping6", "ss", "iptables", "iperf3", "ncat", "unshare")
	module, err := exec.Command("go", "list", "-m", "-f", "{{.Dir}}", "golang.zx2c4.com/wireguard").Output()
	script := filepath.Join(strings.TrimSpace(string(module)), "tests", "netns.sh")
	if _, missing := os.Stat(script); err != nil || missing != nil {
		t.Fatalf("wireguard-go's tests/netns.sh is not in the module cache: %v, %v", err, missing)
	}
	iperf, err := exec.LookPath("iperf3")
	if err != nil {
		t.Fatal(err)
	}
	path := program(t)
	if err := os.WriteFile(filepath.Join(filepath.Dir(path), "iperf3"), fmt.Appendf(nil, fewerBytes, iperf), 0o755); err != nil {
		t.Fatal(err)
	}
	ip, err := exec.LookPath("ip")
	if err != nil {
		t.Fatal(err)
	}
	if err := os.WriteFile(filepath.Join(filepath.Dir(path), "ip"), fmt.Appendf(nil, settledIP, ip), 0o755); err != nil {
		t.Fatal(err)
	}
	for run := range 3 {
		began := time.Now()
		out, err := runNetns(t, script, path)
		const last = "Objects that were created were also destroyed."
		if err != nil || !strings.Contains(out, last) {
			lines := strings.Split(out, "\n")
			t.Fatalf("run %d: %v, and the script did not say %q; its end:\n%s", run+1, err, last, strings.Join(lines[max(0, len(lines)-60):], "\n"))
		}
		t.Logf("run %d took %v", run+1, time.Since(began).Round(time.Millisecond))
	}
}

func runNetns(t *testing.T, script, path string) (string, error) {
	ctx, cancel := context.WithTimeout(t.Context(), 3*time.Minute)
	defer cancel()
	cmd := exec.CommandContext(ctx, "unshare", "--mount", "--net", "--pid", "--fork", "--kill-child", "--mount-proc", "--propagation", "private",
		"bash", "-c", netnsSetup, "bash", script, path)
	cmd.Env = append(os.Environ(), "PATH="+filepath.Dir(path)+":"+os.Getenv("PATH"))
	cmd.SysProcAttr = &syscall.SysProcAttr{Pdeathsig: syscall.SIGKILL}
	// The script pauses by reading from its input, which must neither end nor have anything.
	never, hold, err := os.Pipe()
	if err != nil {
		return "", err
	}
	defer hold.Close()
	defer never.Close()
	cmd.Stdin = never
	output, err := os.Create(filepath.Join(t.TempDir(), "output")) // not a pipe, which background programs would keep open
	if err != nil {
		return "", err
	}
	defer output.Close()
	cmd.Stdout, cmd.Stderr = output, output
	err = cmd.Run()
	text, readErr := os.ReadFile(output.Name())
	if readErr != nil {
		return "", readErr
	}
	return string(text), err
}
