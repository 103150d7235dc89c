// Package lab builds small networks out of Linux network namespaces on one machine: for tests that need real TUN devices
// and real sockets, and for the speed test.
//
// # How a lab lives and dies
//
// A program enters the lab once, at its start, with [Enter]. Outside, Enter runs the program a second time, with the same
// arguments and environment, inside new mount, network and PID namespaces (and a user namespace if the caller is not
// root), and waits for it. Inside, that second run is process 1 of its PID namespace: root over everything in it, and
// nothing outside. /run/wireguard is an empty tmpfs there, the network has only a loopback, and /proc shows only the
// lab's own processes.
//
// Nothing can be left behind, not even by SIGKILL: the kernel kills process 1 when its parent dies (PR_SET_PDEATHSIG), kills
// every process of a PID namespace when its process 1 dies (pid_namespaces(7)), and frees network namespaces, their
// devices and mounts with the last process or descriptor that holds them. A [Namespace] is held by its descriptor only;
// there is never a name in /run/netns.
//
// # In a program
//
//	inside, code, err := lab.Enter()
//	if err != nil { ... }       // one line that says what is missing and what to do
//	if !inside { os.Exit(code) } // the run inside is over
//	...                         // build namespaces, start processes
//
// # In a test
//
// The test binary of a whole package enters the lab, so `go test` works for an ordinary user too:
//
//	func TestMain(m *testing.M) { lab.Main(m) }
//
//	func TestPing(t *testing.T) {
//		lab.Need(t) // skips, with the reason, where a lab is not allowed
//		a, err := lab.NewNamespace("a")
//		...
//		defer a.Close()
//		b, err := lab.NewNamespace("b")
//		...
//		err = lab.Connect(lab.Cable{MTU: 1500},
//			lab.Plug{Namespace: a, Device: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.1/24")}},
//			lab.Plug{Namespace: b, Device: "eth0", Addrs: []netip.Prefix{netip.MustParsePrefix("10.0.0.2/24")}})
//		...
//		err = a.Run(func() error { conn, err = net.Dial("udp", "10.0.0.2:9"); return err }) // a socket of a
//		err = b.Start(exec.Command("wireguard-go", "-f", "wg0"))                            // a process of b
//	}
//
// Tests of one package share the lab; namespaces keep them apart. A package with such a TestMain must not need the
// machine's own network: the lab has none.
//
// # Growth
//
// A node, a router, a NAT and a delay box are all the same thing here: a namespace with plugs and a rule set. A [Cable] joins
// two namespaces, so any tree or ring of them can be built; rules and queueing are set from within [Namespace.Run].
package lab

import "errors"

// ErrUnsupported is what [Enter] returns on a system that is not Linux.
var ErrUnsupported = errors.New("lab: network namespaces need Linux; run this on a Linux machine or in a Linux virtual machine")

// Skipper is the part of testing.TB that [Need] uses.
type Skipper interface {
	Helper()
	Skipf(format string, args ...any)
}

// Runner is the part of *testing.M that [Main] uses.
type Runner interface{ Run() int }
