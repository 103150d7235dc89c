package member

import (
	"os"
	"path/filepath"
	"reflect"
	"strings"
	"testing"

	"github.com/sluice-vpn/sluice/ice/portal/protocol"
	"github.com/sluice-vpn/sluice/ice/secretfile"
)

func TestCheckArguments(t *testing.T) {
	for _, args := range [][]string{{"sluice", "client", "sluice1-secret"}, {"sluice", "client", "-token-file=sluice1-secret"}, {"x", "-t", " sluice1-secret"}} {
		err := CheckArguments(args)
		if err == nil || strings.Contains(err.Error(), "secret-") || strings.Contains(err.Error(), "sluice1-") {
			t.Errorf("%q: %v", args, err)
		}
	}
	for _, args := range [][]string{nil, {"sluice", "client", "-token-file", "sluice1.token"}, {"sluice", "ping", "sluice1"}} {
		if err := CheckArguments(args); err != nil {
			t.Errorf("%q: %v", args, err)
		}
	}
}

func TestTokenText(t *testing.T) {
	dir := t.TempDir()
	write := func(name, text string, mode os.FileMode) string {
		path := filepath.Join(dir, name)
		if mode == 0o600 {
			if err := secretfile.Write(path, []byte(text)); err != nil {
				t.Fatal(err)
			}
			return path
		}
		if err := os.WriteFile(path, []byte(text), 0o600); err != nil { // on Windows with the rights that the folder gives
			t.Fatal(err)
		}
		if err := os.Chmod(path, mode); err != nil {
			t.Fatal(err)
		}
		return path
	}
	private, open, group := write("private", "from-file\n", 0o600), write("open", "from-open", 0o604), write("group", "from-group", 0o640)
	empty, huge := write("empty", " \n", 0o600), write("huge", strings.Repeat("x", maxToken+1), 0o600)
	write("sluice-token", "from-systemd", 0o644)
	for name, tt := range map[string]struct {
		file, stdin, variable, credentials string
		want, fails                        string
	}{
		"file":           {file: private, variable: "from-variable", want: "from-file"},
		"open file":      {file: open, fails: "others may read the token in " + open},
		"group's file":   {file: group, fails: "others may read the token in " + group},
		"standard input": {file: "-", stdin: " from-stdin\r\n", want: "from-stdin"},
		"variable":       {variable: "from-variable", credentials: dir, want: "from-variable"},
		"systemd":        {credentials: dir, want: "from-systemd"},
		"none":           {},
		"absent":         {file: filepath.Join(dir, "absent"), fails: "absent"},
		"empty":          {file: empty, fails: "empty"},
		"empty input":    {file: "-", fails: "standard input is empty"},
		"huge":           {file: huge, fails: "too long"},
		"no credential":  {credentials: filepath.Join(dir, "absent")},
	} {
		t.Run(name, func(t *testing.T) {
			t.Setenv("SLUICE_TOKEN", tt.variable)
			t.Setenv("CREDENTIALS_DIRECTORY", tt.credentials)
			got, source, err := tokenText(tt.file, strings.NewReader(tt.stdin))
			if tt.fails != "" {
				if err == nil || !strings.Contains(err.Error(), tt.fails) {
					t.Errorf("error %v, want one about %q", err, tt.fails)
				}
			} else if err != nil || got != tt.want || (source == "") != (tt.want == "") {
				t.Errorf("%q from %q, %v, want %q", got, source, err, tt.want)
			}
			if _, left := os.LookupEnv("SLUICE_TOKEN"); left {
				t.Error("SLUICE_TOKEN was left in the environment")
			}
		})
	}
}

func TestReadToken(t *testing.T) {
	t.Setenv("SLUICE_TOKEN", "")
	t.Setenv("CREDENTIALS_DIRECTORY", "")
	want := protocol.Token{Name: "laptop", Portals: []string{"portal.example:4443"}, Secret: [32]byte{7}}
	if got, source, err := ReadToken("-", strings.NewReader(want.Encode()+"\n")); err != nil || source != "standard input" || !reflect.DeepEqual(got, want) {
		t.Errorf("%v, %v", got, err)
	}
	if _, _, err := ReadToken("-", strings.NewReader("sluice1-secret")); err == nil ||
		strings.Contains(err.Error(), "secret") || !strings.HasPrefix(err.Error(), "standard input: ") {
		t.Errorf("%v", err)
	}
}
