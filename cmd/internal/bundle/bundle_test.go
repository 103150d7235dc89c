package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"encoding/base64"
	"encoding/hex"
	"io"
	"net/netip"
	"os"
	"path/filepath"
	"regexp"
	"slices"
	"strings"
	"testing"
	"time"
)

var networks = []netip.Prefix{netip.MustParsePrefix("198.51.100.0/24"), netip.MustParsePrefix("0.0.0.0/0")}

func TestRedact(t *testing.T) {
	r := NewRedactor([]byte("key"), false, networks, []string{"office", "office-2", "gateway", "ann"})
	for text, want := range map[string]string{
		"to 10.0.0.1:80, 10.0.0.0/24":                                 `to ip4-X:80, ip4-X/24`,
		"[fd00:1::2]:7 and ::ffff:10.0.0.1":                           `[ip6-X]:7 and ip4-X`,
		"100.64.0.1 198.51.100.7 203.0.113.9":                         `ip4-X ip4-X 203.0.113.9`,
		"127.0.0.1 ::1 0.0.0.0/0 ::/0 2001:db8::1":                    "127.0.0.1 ::1 0.0.0.0/0 ::/0 2001:db8::1",
		"2026-11-29T18:31:32.555Z 18:31:32":                           "2026-11-29T18:31:32.555Z 18:31:32",
		`{"peer":"office","office":1,"x":"office-2"}`:                 `{"peer":"name-X","office":1,"x":"name-X"}`,
		"the office, offices, ann's joanne, gateway":                  "the name-X, offices, name-X's joanne, gateway",
		"sluice1-abcDEF123_-xyz and sluice0":                          "(token taken out) and sluice0",
		"udp_receive_buffer_errors_that_is_a_long_name_of_a_counter":  "udp_receive_buffer_errors_that_is_a_long_name_of_a_counter",
		"-----BEGIN PRIVATE KEY-----\nAAA\n-----END PRIVATE KEY-----": "(taken out)",
	} {
		got := regexp.MustCompile(`-[0-9a-f]{8}\b`).ReplaceAllString(string(r.Redact([]byte(text))), "-X")
		if got != want {
			t.Errorf("%q becomes %q, want %q", text, got, want)
		}
	}
	once, again := r.Redact([]byte("office 10.0.0.1")), r.Redact([]byte("office 10.0.0.1"))
	other := NewRedactor([]byte("another"), false, nil, []string{"office"}).Redact([]byte("office 10.0.0.1"))
	if !bytes.Equal(once, again) || bytes.Equal(once, other) {
		t.Errorf("%q, again %q, of another archive %q, want the same and another", once, again, other)
	}
	if got, want := string(NewRedactor(nil, true, networks, []string{"office"}).Redact([]byte("office 10.0.0.1 sluice1-abcDEF123"))), "office 10.0.0.1 (token taken out)"; got != want {
		t.Errorf("plain: %q, want %q", got, want)
	}
}

// Keys go in every form that they may have, wherever they stand.
func TestRedactKeys(t *testing.T) {
	key := make([]byte, 32)
	for i := range key {
		key[i] = byte(i*37 + 11)
	}
	r := NewRedactor([]byte("key"), true, nil, nil)
	forms := map[string]string{
		"hex": hex.EncodeToString(key), "HEX": strings.ToUpper(hex.EncodeToString(key)), "base64": base64.StdEncoding.EncodeToString(key),
		"raw base64": base64.RawStdEncoding.EncodeToString(key), "URL base64": base64.RawURLEncoding.EncodeToString(key),
		"a TURN password": base64.StdEncoding.EncodeToString(key[:20]),
	}
	for name, form := range forms {
		for _, around := range []string{"%", `{"key":"%"}`, "key=% x", "(%)", "%\n"} {
			text := strings.Replace(around, "%", form, 1)
			if got := string(r.Redact([]byte(text))); strings.Contains(got, form[:16]) || strings.Contains(got, form[20:]) {
				t.Errorf("%s: %q becomes %q", name, text, got)
			}
		}
	}
}

func TestNames(t *testing.T) {
	log := `{"event":"connection up","peer":"office","name":"laptop"}` + "\nno JSON\n" + `{"portals":"vpn.example.org:4430 192.0.2.1:1","relay":"portal","server":"192.0.2.1:3478"}`
	if got, want := Names([]byte(log)), []string{"office", "laptop", "portal", "vpn.example.org"}; !slices.Equal(got, want) {
		t.Errorf("%q, want %q", got, want)
	}
}

func TestWriteAndLogs(t *testing.T) {
	dir := t.TempDir()
	for name, text := range map[string]string{"a.log": "old\n", "b.log": "new\n", "c.txt": "no log\n"} {
		if err := os.WriteFile(filepath.Join(dir, name), []byte(text), 0o600); err != nil {
			t.Fatal(err)
		}
	}
	if err := os.Symlink("b.log", filepath.Join(dir, "latest.log")); err != nil {
		t.Fatal(err)
	}
	files, err := Logs([]string{filepath.Join(dir, "absent"), dir})
	if err != nil || len(files) != 2 || files[0].Name != "logs/1-b.log" || string(files[1].Text) != "old\n" {
		t.Fatalf("%q, %v", files, err)
	}
	if text, err := tail(filepath.Join(dir, "c.txt"), 5); err != nil || len(text) != 0 {
		t.Errorf("a part of a line: %q, %v, want nothing", text, err)
	}
	var b bytes.Buffer
	if err := Write(&b, "sluice-debug", time.Unix(1, 0), files); err != nil {
		t.Fatal(err)
	}
	packed, err := gzip.NewReader(&b)
	if err != nil {
		t.Fatal(err)
	}
	archive := tar.NewReader(packed)
	for _, want := range files {
		h, err := archive.Next()
		if err != nil || h.Name != "sluice-debug/"+want.Name || h.Mode != 0o600 {
			t.Fatalf("%+v, %v", h, err)
		}
		if text, err := io.ReadAll(archive); err != nil || !bytes.Equal(text, want.Text) {
			t.Errorf("%s: %q, %v", h.Name, text, err)
		}
	}
}
