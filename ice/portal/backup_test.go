package portal

import (
	"bytes"
	"net/netip"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
)

// What a backup makes anew is the portal that it was taken of: tokens, addresses, keys, approvals. What was changed since is as it was.
func TestBackup(t *testing.T) {
	t.Parallel()
	folder, other := filepath.Join(t.TempDir(), "state"), filepath.Join(t.TempDir(), "restored")
	p := open(t, folder)
	gate, laptop := add(t, p, "gate", protocol.Gateway), add(t, p, "laptop", protocol.Client)
	route := netip.MustParsePrefix("10.0.0.0/24")
	k := key(t)
	ask(t, sign(t, gate), protocol.SyncRequest{PublicKey: k, Routes: []netip.Prefix{route}})
	bus := sign(t, laptop)
	before := ask(t, bus, protocol.SyncRequest{PublicKey: key(t)})
	bus.Close()
	text, err := p.Backup()
	if err != nil || !IsBackup(text) {
		t.Fatal(err)
	}
	if err := p.RemoveNode(t.Context(), "laptop"); err != nil {
		t.Fatal(err)
	}
	p.Close()
	if _, err := Restore(t.Context(), folder, text); err == nil || !strings.Contains(err.Error(), "not empty") {
		t.Errorf("into the folder of a portal: %v", err)
	}
	got, err := Restore(t.Context(), other, text)
	if err != nil || got.Nodes != 2 {
		t.Fatalf("%+v, %v", got, err)
	}
	p = open(t, other)
	laptop.Portals = p.token("laptop", laptop.Secret).Portals // the port is another one
	after := ask(t, sign(t, laptop), protocol.SyncRequest{PublicKey: key(t)})
	if after.Addresses[0] != before.Addresses[0] || after.Peers[0].PublicKey != k || after.Peers[0].PresharedKey != before.Peers[0].PresharedKey ||
		len(after.Peers[0].AllowedIPs) != 3 {
		t.Errorf("after %+v, before %+v", after, before)
	}
	if st, err := os.Stat(filepath.Join(other, certificateName)); err != nil || st.Mode().Perm() != 0o600 {
		t.Errorf("%v, %v", st, err)
	}
}

// What is no whole backup is one error, and makes no folder.
func TestBadBackup(t *testing.T) {
	t.Parallel()
	p := open(t, filepath.Join(t.TempDir(), "state"))
	add(t, p, "laptop", protocol.Client)
	good, err := p.Backup()
	if err != nil {
		t.Fatal(err)
	}
	for name, tt := range map[string]struct {
		text []byte
		want string
	}{
		"empty":         {nil, "no backup"},
		"another file":  {[]byte("sluice1-abc"), "no backup"},
		"cut":           {good[:len(good)/2], "damaged"},
		"changed":       {bytes.Replace(good, []byte(`"role":"client"`), []byte(`"role":"gateway"`), 1), "damaged"},
		"a key changed": {bytes.Replace(good, []byte("BEGIN CERT"), []byte("BEGIN CERD"), 1), "damaged"},
		"a newer form":  {bytes.Replace(good, []byte("backup 1"), []byte("backup 2"), 1), "newer"},
		"no values":     {[]byte(`{"format":"sluice portal backup 1","values":{}}`), "damaged"},
	} {
		folder := filepath.Join(t.TempDir(), "state")
		if _, err := Restore(t.Context(), folder, tt.text); err == nil || !strings.Contains(err.Error(), tt.want) {
			t.Errorf("%s: %v, want %q", name, err, tt.want)
		}
		if _, err := os.Stat(folder); err == nil {
			t.Errorf("%s: there is a folder", name)
		}
	}
}
