package link

import (
	"flag"
	"fmt"
	"os"
	"path/filepath"
	"strconv"
	"strings"
	"testing"
	"time"

	"github.com/sluice-vpn/sluice/pipeline"
)

var rewrite = flag.Bool("rewrite", false, "write what happens into testdata/link")

// TestTranscripts tells stories: in each file of testdata/link a line that begins with ">" is a command to the world (see commands), and
// the lines below it are what has come of it, times in seconds, rounded to 10 ms. -rewrite writes them anew.
func TestTranscripts(t *testing.T) {
	files, err := filepath.Glob("testdata/link/*.txt")
	if err != nil || len(files) < 10 {
		t.Fatalf("%d stories, %v", len(files), err)
	}
	for _, file := range files {
		t.Run(strings.TrimSuffix(filepath.Base(file), ".txt"), func(t *testing.T) {
			text, err := os.ReadFile(file)
			if err != nil {
				t.Fatal(err)
			}
			got := tell(t, string(text))
			if *rewrite {
				if err := os.WriteFile(file, []byte(got), 0o644); err != nil {
					t.Fatal(err)
				}
				return
			}
			wantSame(t, got, string(text))
		})
	}
}

// wantSame fails the test at the first line that differs.
func wantSame(t *testing.T, got, want string) {
	t.Helper()
	g, w := strings.Split(got, "\n"), strings.Split(want, "\n")
	for i := range max(len(g), len(w)) {
		a, b := "(the end)", "(the end)"
		if i < len(g) {
			a = g[i]
		}
		if i < len(w) {
			b = w[i]
		}
		if a != b {
			t.Fatalf("line %d is\n%s\nwant\n%s", i+1, a, b)
		}
	}
}

// tell runs the commands of a story and returns it with what has come of them.
func tell(t testing.TB, story string) string {
	w := newWorld(t, 1)
	w.join("laptop", true)
	w.join("gate", false)
	w.run(10 * time.Millisecond)
	var b strings.Builder
	for line := range strings.Lines(story) {
		command, ok := strings.CutPrefix(line, ">")
		if !ok {
			if strings.HasPrefix(line, "#") || strings.TrimSpace(line) == "" {
				b.WriteString(line)
			}
			continue
		}
		b.WriteString(line)
		w.lines = nil
		if err := w.command(strings.TrimSpace(command)); err != nil {
			t.Fatalf("%s: %v", strings.TrimSpace(line), err)
		}
		for _, out := range w.lines {
			b.WriteString(out + "\n")
		}
	}
	return b.String()
}

// command carries out a command: "NODE does", "run DURATION", or what is there and what is not.
func (w *world) command(text string) error {
	if fields := strings.Fields(text); len(fields) > 0 {
		for _, n := range w.nodes {
			if n.name == fields[0] {
				return w.nodeCommand(n, strings.Join(fields[1:], " "))
			}
		}
	}
	verb, rest, _ := strings.Cut(text, " ")
	on := rest == "is there" || rest == "passes" || rest == "arrive"
	switch verb {
	case "run":
		d, err := time.ParseDuration(rest)
		if err != nil {
			return err
		}
		w.run(d)
	case "traffic": // for DURATION, both ways
		d, err := time.ParseDuration(strings.TrimPrefix(rest, "for "))
		if err != nil {
			return err
		}
		for end := w.now() + d; w.now() < end; w.run(100 * time.Millisecond) {
			for _, n := range w.nodes {
				for _, r := range n.peers {
					r.send()
				}
			}
		}
	case "both": // want each other
		for _, n := range w.nodes {
			for _, r := range n.peers {
				r.link.HandleWant(w.now())
				r.touch()
			}
		}
	case "portal":
		w.portal = on
		if on {
			w.newsOfPortal()
		}
	case "signaling":
		w.signaling = on
		if on {
			w.newsOfPortal()
		}
	case "byes":
		if w.byesLost = rest == "are lost"; rest == "come twice" {
			w.twice = true
		}
	case "direct":
		w.direct = on
	case "relay":
		w.setRelay(on)
	case "keys": // agree
		w.psk = map[string]byte{}
		for _, n := range w.nodes {
			n.report()
		}
	case "state":
		w.state()
	default:
		return fmt.Errorf("no command %q", text)
	}
	return nil
}

// newsOfPortal has all nodes hear the portal.
func (w *world) newsOfPortal() {
	for _, n := range w.nodes {
		if n.run != 0 && w.portal && w.signaling {
			n.apply()
		}
	}
}

// setRelay has the relay come up or die.
func (w *world) setRelay(on bool) {
	if w.relay == on {
		return
	}
	w.relay = on
	for _, n := range w.nodes {
		if n.run == 0 {
			continue
		}
		news := RelayNews{Changed: on}
		n.links.Facts.RelaysUp = n.relays()
		for _, r := range n.peers {
			if !on && r.path != nil && r.path.Channel != 0 {
				news.Lost = append(news.Lost, r.path.Dst)
			}
			r.link.HandleRelays(w.now(), news)
			r.touch()
		}
	}
}

// nodeCommand is a command to one node.
func (w *world) nodeCommand(n *node, text string) error {
	switch verb, rest, _ := strings.Cut(text, " "); verb {
	case "sends": // a packet to each peer, or so many
		count := 1
		if rest != "" {
			var err error
			if count, err = strconv.Atoi(rest); err != nil {
				return err
			}
		}
		for range count {
			for _, r := range n.peers {
				r.send()
			}
		}
		w.run(20 * time.Millisecond)
	case "changes": // its key, behind the portal's back
		n.rekey()
	case "has": // another preshared key than the peer
		w.psk[n.name] = 2
		n.apply()
	case "crashes":
		n.halt(false)
	case "ends":
		n.halt(true)
	case "starts": // with another key, as programs do
		n.rekey()
		n.boot()
	case "moves":
		n.place++
		for _, r := range n.peers {
			r.link.HandleNetwork(w.now())
			r.touch()
		}
	case "closes": // without a word: a newer attempt is to replace it
		for _, r := range n.peers {
			r.link.Close(CloseReplaced)
			r.touch()
		}
	case "cable": // is cut, is joined
		n.cut = rest == "is cut"
	case "hears": // nothing, again
		n.deaf = rest == "nothing"
	case "goes": // down, up
		change := map[string]pipeline.Change{"down": pipeline.ChangeDown, "up": pipeline.ChangeUp}[rest]
		for _, r := range n.peers {
			r.change(change)
		}
	case "sleeps": // for DURATION
		d, err := time.ParseDuration(strings.TrimPrefix(rest, "for "))
		if err != nil {
			return err
		}
		n.machine.Asleep, n.slept = true, true
		w.run(d)
		n.wake()
	default:
		return fmt.Errorf("%s cannot %q", n.name, text)
	}
	return nil
}

// wake has the node act after a sleep: what is due comes first, then it is told that the network may be another.
func (n *node) wake() {
	n.machine.Asleep = false
	n.w.act()
	n.w.touch()
	for _, r := range n.peers {
		r.link.HandleNetwork(n.w.now())
		r.touch()
	}
}

// state writes how things stand.
func (w *world) state() {
	for _, n := range w.nodes {
		for _, r := range n.peers {
			s := r.link.Status(w.now())
			text := s.Phase.String()
			if s.Phase < PhaseClosing {
				text += fmt.Sprintf(", attempt %d, agents %d", s.Attempt, s.Agents)
			}
			if r.path != nil {
				text += ", " + map[bool]string{true: "relayed", false: "direct"}[r.path.Relayed]
			}
			if s.Wanted {
				text += fmt.Sprintf(", wanted, next attempt in %v", s.NextAttempt.Round(10*time.Millisecond))
			}
			if r.Staged() > 0 {
				text += fmt.Sprintf(", %d packets wait", r.Staged())
			}
			if got := len(r.Received) - r.got; got > 0 {
				text += fmt.Sprintf(", %d packets came", got)
			}
			r.got = len(r.Received)
			w.write(n, "is %s", text)
		}
	}
}
