package speedtest

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"os/exec"
	"strconv"
	"strings"
	"sync"
	"syscall"
	"time"
)

// iperfPort is where the iperf3 server listens.
const iperfPort = 5201

// iperfInterval is how often iperf3 says what it has carried. Figures of a window are off by one interval at most.
const iperfInterval = 100 * time.Millisecond

// iperfStartLimit is how long the server may take to listen.
const iperfStartLimit = 5 * time.Second

// iperfLoad is the traffic of a case as iperf3 makes it: a load program that knows nothing of ours, to see whether a figure is one of
// the tunnel or one of the load.
type iperfLoad struct {
	load           Case
	a, b           endpoint
	total          time.Duration
	server, client *exec.Cmd
	listens        chan struct{} // closed when the server does
	readers        sync.WaitGroup

	mu     sync.Mutex // guards totals
	totals totals
}

func (l *iperfLoad) start() error {
	at := l.b.addr.String()
	l.listens = make(chan struct{})
	seconds := strconv.Itoa(int(l.total/time.Second) + 2) // finish ends it
	every := strconv.FormatFloat(iperfInterval.Seconds(), 'f', -1, 64)
	report := []string{"-p", strconv.Itoa(iperfPort), "-i", every, "--forceflush"}
	l.server = exec.Command("iperf3", append(report, "-s", "-1", "-B", at)...)
	if err := l.run(l.server, l.b, true); err != nil {
		return err
	}
	args := append(report, "-c", at, "-B", l.a.addr.String(), "-t", seconds)
	switch {
	case l.load.kind == loadUDP:
		args = append(args, "-u", "-b", "0", "-l", strconv.Itoa(l.load.size))
	case l.load.backward > 0:
		args = append(args, "--bidir", "-P", strconv.Itoa(l.load.forward))
	default:
		args = append(args, "-P", strconv.Itoa(l.load.forward))
	}
	select {
	case <-l.listens:
	case <-time.After(iperfStartLimit):
		return fmt.Errorf("-load iperf3: the server does not listen on %s after %v", at, iperfStartLimit)
	}
	l.client = exec.Command("iperf3", args...)
	return l.run(l.client, l.a, false)
}

// run starts one side and reads what it says until it ends.
func (l *iperfLoad) run(cmd *exec.Cmd, at endpoint, server bool) error {
	out, err := cmd.StdoutPipe()
	if err != nil {
		return err
	}
	if err := at.ns.Start(cmd); err != nil {
		if errors.Is(err, exec.ErrNotFound) {
			return fmt.Errorf("-load iperf3: %w; install it (apt-get install iperf3), or leave -load out", err)
		}
		return fmt.Errorf("-load iperf3: %w", err)
	}
	l.readers.Go(func() { l.readAll(out, server) })
	return nil
}

func (l *iperfLoad) readAll(out io.Reader, server bool) {
	for lines := bufio.NewScanner(out); lines.Scan(); {
		if strings.HasPrefix(lines.Text(), "Server listening") {
			close(l.listens) // once: the server ends after one client
		}
		line, ok := parseIperf(lines.Text())
		if !ok {
			continue
		}
		l.mu.Lock()
		l.totals.add(line, server, l.load)
		l.mu.Unlock()
	}
}

// add counts one interval of one flow, as the server or the client of a case saw it.
func (t *totals) add(line iperfLine, server bool, load Case) {
	received := server != line.backward
	switch {
	case received && load.kind == loadUDP:
		t.receivedBytes += (line.datagrams - line.lost) * uint64(load.size)
		t.receivedPackets += line.datagrams - line.lost
	case load.kind == loadUDP:
		t.sentBytes += line.datagrams * uint64(load.size)
		t.sentPackets += line.datagrams
	case received && line.backward:
		t.receivedBytes += line.bytes
		t.backward += line.bytes
	case received:
		t.receivedBytes += line.bytes
		t.forward += line.bytes
	default:
		t.sentBytes += line.bytes
		t.retransmits += line.retransmits
	}
}

func (l *iperfLoad) read() totals {
	l.mu.Lock()
	defer l.mu.Unlock()
	return l.totals
}

func (l *iperfLoad) finish() {
	for _, cmd := range []*exec.Cmd{l.client, l.server} {
		if cmd != nil && cmd.Process != nil {
			_ = cmd.Process.Signal(syscall.SIGKILL) // it may have ended
		}
	}
	l.readers.Wait()
	for _, cmd := range []*exec.Cmd{l.client, l.server} {
		if cmd != nil && cmd.Process != nil && cmd.ProcessState == nil {
			_ = cmd.Wait() // it was killed
		}
	}
}

func (l *iperfLoad) close() {}
