package member

import (
	"context"
	"crypto/sha256"
	"encoding/json"
	"maps"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"golang.org/x/sys/unix"

	"github.com/sluice-vpn/sluice/bench/lab"
	"github.com/sluice-vpn/sluice/ice/edge"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
)

// A full disk leaves the file as it was, and is told.
func TestPinsFullDisk(t *testing.T) {
	lab.NeedTUN(t) // as root
	folder := t.TempDir()
	if err := unix.Mount("tmpfs", folder, "tmpfs", 0, "size=16k"); err != nil {
		t.Skip("no tmpfs can be mounted: ", err)
	}
	t.Cleanup(func() { must(t, unix.Unmount(folder, unix.MNT_DETACH)) })
	f, _, _ := openTestPins(t, filepath.Join(folder, "pins.json"))
	f.save(somePins)
	f.write()
	must(t, os.WriteFile(filepath.Join(folder, "ballast"), make([]byte, 8<<10), 0o600))
	many := maps.Clone(somePins)
	for i := range 1000 {
		many[string([]byte{'a' + byte(i%26), 'a' + byte(i/26%26), 'a' + byte(i/676)})] = protocol.Identity{3}
	}
	f.save(many)
	f.write()
	if n := f.notes(); len(n) != 1 || !strings.Contains(n[0], "no space left") || !strings.Contains(n[0], "make room") {
		t.Errorf("notes %q", n)
	}
	if _, pins, _ := openTestPins(t, f.path); !maps.Equal(pins, somePins) {
		t.Errorf("%d pins are left, want those of before", len(pins))
	}
	if entries, err := os.ReadDir(folder); err != nil || len(entries) != 2 {
		t.Errorf("%v, %v in the folder", entries, err)
	}
}

// identified is a peer whose token has that number.
func identified(name, token string) protocol.Peer {
	id := protocol.Token{Secret: sha256.Sum256([]byte(name + token))}.Identity()
	p := protocol.Peer{
		Name: name, Role: protocol.Gateway, PublicKey: key(1), AllowedIPs: prefixes("100.64.0.1/32"), Identity: protocol.IdentityOf(id),
	}
	p.Signature = protocol.SignKey(id, name, p.PublicKey)
	return p
}

// A node remembers over a restart whom it has met, and takes another identity when it is told to, for good.
func TestPinsOverRestart(t *testing.T) {
	pins := filepath.Join(t.TempDir(), "state", "pins.json")
	answer := func(token string) protocol.Sync {
		return protocol.Sync{Name: "node", Role: protocol.Client, Addresses: prefixes("100.64.0.2/32"), Peers: []protocol.Peer{identified("office", token)}}
	}
	o := Options{Role: protocol.Client, Interface: "pin0", Pins: pins}
	distrust := func(n *testNode, want string) {
		t.Helper()
		n.eventually(t, "the peer is judged", func() bool {
			s, err := n.node.Get(context.Background())
			return err == nil && len(s.Connections) == 1 && s.Connections[0].Distrust == want
		})
	}
	n := startNode(t, o, answer("one"), nil)
	distrust(n, "")
	must(t, n.stop(t))
	n = startNode(t, o, answer("two"), nil)
	distrust(n, "identity_changed")
	list, err := n.node.Pins(context.Background())
	if err != nil || len(list) != 1 || list[0].Pinned != identified("office", "one").Identity || list[0].Offered != identified("office", "two").Identity {
		t.Fatalf("pins %+v, %v", list, err)
	}
	if _, err := n.node.Trust(context.Background(), edge.Pin{Peer: "office", Offered: list[0].Pinned}); err == nil || !strings.Contains(err.Error(), "look again") {
		t.Errorf("trust in the old one: %v", err)
	}
	if note, err := n.node.Trust(context.Background(), edge.Pin{Peer: "office", Offered: list[0].Offered}); err != nil || note != "" {
		t.Errorf("trust: %q, %v", note, err)
	}
	var file pinsJSON
	text, err := os.ReadFile(pins)
	must(t, err)
	must(t, json.Unmarshal(text, &file))
	if file.Peers["office"] != list[0].Offered {
		t.Errorf("on disk is %s", text)
	}
	distrust(n, "")
	must(t, n.stop(t))
	n = startNode(t, o, answer("two"), nil)
	distrust(n, "")
	must(t, n.stop(t))
}

// Where pins cannot be kept the node runs, and its status says so.
func TestPinsNowhere(t *testing.T) {
	n := startNode(t, Options{Role: protocol.Client, Interface: "pin1", Pins: "/proc/none/pins.json"}, protocol.Sync{
		Name: "node", Role: protocol.Client, Addresses: prefixes("100.64.0.2/32"), Peers: []protocol.Peer{identified("office", "one")},
	}, nil)
	n.eventually(t, "it is told", func() bool {
		s, err := n.node.Get(context.Background())
		return err == nil && len(s.Connections) == 1 && strings.Contains(strings.Join(s.Notes, "\n"), "known only until this node ends")
	})
	note, err := n.node.Trust(context.Background(), edge.Pin{Peer: "office", Offered: identified("office", "one").Identity})
	if err != nil || !strings.Contains(note, "known only until this node ends") {
		t.Errorf("trust: %q, %v", note, err)
	}
	must(t, n.stop(t))
}

// TestFolderOfRole: a gateway has a folder of its own where there is one.
func TestFolderOfRole(t *testing.T) {
	root := filepath.Join(t.TempDir(), "sluice")
	for _, want := range []string{root, root + "-gateway"} {
		if got := folderOf(protocol.Gateway, root); got != want {
			t.Errorf("gateway: %s, want %s", got, want)
		}
		if got := folderOf(protocol.Client, root); got != root {
			t.Errorf("client: %s, want %s", got, root)
		}
		if err := os.MkdirAll(root+"-gateway", 0o700); err != nil {
			t.Fatal(err)
		}
	}
}
