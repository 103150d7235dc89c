package acceptance

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/hex"
	"encoding/json"
	"io"
	"os"
	"path"
	"path/filepath"
	"strings"
	"testing"

	"github.com/sluice-vpn/sluice/bench/lab"
	nodes "github.com/sluice-vpn/sluice/cmd/internal/member"
	"github.com/sluice-vpn/sluice/cmd/internal/status"
	"github.com/sluice-vpn/sluice/ice/edge"
	"github.com/sluice-vpn/sluice/ice/portal/protocol"
)

// secrets are what a node must never tell: by a name for errors.
func (m *member) secrets() map[string][]byte {
	m.t.Helper()
	text, err := os.ReadFile(m.token)
	if err != nil {
		m.t.Fatal(err)
	}
	token, err := protocol.ParseToken(string(bytes.TrimSpace(text)))
	if err != nil {
		m.t.Fatal(err)
	}
	signIn := token.SignInKey()
	return map[string][]byte{"token": bytes.TrimSpace(text), "secret": token.Secret[:], "sign-in key": signIn[:], "identity key": token.Identity().Seed()}
}

// findsKeys has the node look for its private and preshared keys in a text.
func (m *member) findsKeys(text string) nodes.SecretsFound {
	m.t.Helper()
	r, err := status.Client(m.socket, 0).Post("http://node/test/secrets", "application/octet-stream", strings.NewReader(text))
	if err != nil {
		m.t.Fatal(err)
	}
	defer r.Body.Close()
	var result nodes.SecretsFound
	if err := json.NewDecoder(r.Body).Decode(&result); err != nil || result.Examined < 2 {
		m.t.Fatalf("%+v, %v, want a private and a preshared key examined", result, err)
	}
	return result
}

// An archive of a client whose handshakes fail names the cause and holds no secret, nor an address or a name of the tunnel.
func TestDebugBundle(t *testing.T) {
	t.Parallel()
	v := newVPN(t)
	g, c := v.pair(lab.Cone, lab.Cone)
	c.awaitConnection(patience, "gate", "connected", isUp(""))
	secrets := c.secrets()
	for name, s := range g.secrets() {
		secrets["the gateway's "+name] = s
	}
	overlay := g.overlay().String()
	defer knock(t, c.site.Node, g.overlay())()
	g.hook("/test/private-key")
	c.awaitConnection(patience, "gate", "closed for the key", func(s edge.ConnectionStatus) bool {
		return s.LastClose != nil && s.LastClose.Reason == "handshake_timeout" && s.LastClose.Cause == weHaveOldKey
	})
	bundle := func(file string, more ...string) map[string]string {
		t.Helper()
		args := append([]string{"debug", "bundle", "-socket", c.socket, "-log-dir", filepath.Join(v.dir, c.name+".logs"), "-o", file}, more...)
		if out, err := v.run(c.site.Node, args...); err != nil || strings.TrimSpace(out) != file {
			t.Fatalf("%q, %v, want the file's name", out, err)
		}
		if st, err := os.Stat(file); err != nil || st.Mode().Perm() != 0o600 {
			t.Errorf("%v, %v, want mode 0600", st.Mode(), err)
		}
		return unpack(t, file)
	}
	files := bundle(filepath.Join(v.dir, "a.tar.gz"))
	all, logged := "", ""
	for name, text := range files {
		all += text
		if strings.HasPrefix(name, "logs/") {
			logged += text
		}
		for what, secret := range secrets {
			for form, looked := range map[string]string{"as it is": string(secret), "in base64": base64.RawStdEncoding.EncodeToString(secret),
				"in URL base64": base64.RawURLEncoding.EncodeToString(secret), "in hex": hex.EncodeToString(secret)} {
				if strings.Contains(strings.ToLower(text), strings.ToLower(looked)) {
					t.Errorf("%s has %s %s", name, what, form)
				}
			}
		}
		for _, m := range []*member{g, c} {
			if result := m.findsKeys(text); len(result.Found) != 0 {
				t.Errorf("%s has of %s: %v", name, m.name, result.Found)
			}
		}
		for _, hidden := range []string{overlay, "laptop", c.overlay().String()} {
			if strings.Contains(text, hidden) {
				t.Errorf("%s tells %s", name, hidden)
			}
		}
	}
	for _, name := range []string{"about.txt", "status-1.json", "counters-1.json", "doctor.txt", "netcheck.txt", "routes.txt", "rules.txt", "nftables.txt"} {
		if strings.TrimSpace(files[name]) == "" || strings.Contains(files[name], "not complete") {
			t.Errorf("%s has %q", name, files[name])
		}
	}
	if !strings.Contains(files["status-1.json"], weHaveOldKey) || !strings.Contains(files["status-1.json"], "handshake_timeout") {
		t.Errorf("the status does not name the cause:\n%s", files["status-1.json"])
	}
	if !strings.Contains(logged, "handshake_timeout") || !strings.Contains(logged, "we use an old public key of name-") {
		t.Errorf("the log does not name the cause:\n%s", logged)
	}
	var counters map[string]uint64
	if err := json.Unmarshal([]byte(files["counters-1.json"]), &counters); err != nil || counters["outbound_packets"] == 0 {
		t.Errorf("counters: %v, %v", counters, err)
	}
	plain := bundle(filepath.Join(v.dir, "b.tar.gz"), "-plain")
	if !strings.Contains(plain["status-1.json"], overlay) || !strings.Contains(plain["status-1.json"], "laptop") {
		t.Error("-plain has not kept addresses and names")
	}
	if _, err := v.run(c.site.Node, "debug", "bundle", "-socket", c.socket, "-o", filepath.Join(v.dir, "b.tar.gz")); err == nil || !strings.Contains(err.Error(), "choose another file") {
		t.Errorf("over a file that is there: %v", err)
	}
}

// unpack reads the files of an archive, by their names in its folder.
func unpack(t *testing.T, file string) map[string]string {
	t.Helper()
	f, err := os.Open(file)
	if err != nil {
		t.Fatal(err)
	}
	defer f.Close()
	packed, err := gzip.NewReader(f)
	if err != nil {
		t.Fatal(err)
	}
	files := map[string]string{}
	for archive := tar.NewReader(packed); ; {
		h, err := archive.Next()
		if err == io.EOF {
			return files
		}
		if err != nil {
			t.Fatal(err)
		}
		text, err := io.ReadAll(archive)
		if err != nil {
			t.Fatal(err)
		}
		_, name, _ := strings.Cut(path.Clean(h.Name), "/")
		files[name] = string(text)
	}
}
