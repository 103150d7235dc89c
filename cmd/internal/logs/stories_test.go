package logs

import (
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"testing"
)

// stories are the logs in testdata, which clients wrote in real networks (TestRecordStories of package acceptance), with what README's jq
// line has to tell of each, in this order.
var stories = map[string][]string{
	"good-day": {
		`INFO started log /\S+\.log`, `INFO sluice client version \S+`, `INFO signing in at \S+:4430 as client laptop`,
		`INFO connected to the portal at \S+:4430`, `INFO client laptop is up on sluice0: addresses 100\.64\.`,
		`INFO connection to gate is up after \d+ ms: direct, \S+:\d+`, `INFO connection to gate closed after .*: shutdown, we end`,
		`INFO laptop on sluice0 has ended`,
	},
	"wrong-key": {
		`INFO started log /`, `INFO connection to gate is up after `, `closed after .*: peer_closed, gate has ended it; gate reports keys_changed`,
		`WARNING connection to gate closed after 15 s: handshake_timeout, `, `WARNING connection to gate .*: we use an old public key of gate; gate reports handshake_timeout`,
	},
	"udp-blocked": {
		`INFO connected to the portal at `, `WARNING UDP is blocked here, or no relay is up: none of them answers \(relays \S+:3478`,
		`WARNING connection to gate closed after 1\d s: \w+, UDP is blocked here, or no relay is up: none of them answers`,
	},
	"dead-relay": {
		`INFO relay portal at \S+:3478 is up, we are \S+:\d+ there`, `INFO connection to gate is up after .*: relayed, \S+`,
		`WARNING the portal at \S+:4430 is not reachable: .*; tunnels that are up stay so`,
		`WARNING (relay portal at \S+:3478 is lost: |connection to gate closed after .*: (ice_disconnected|peer_closed), )`, `INFO connected to the portal at `,
		`INFO connection to gate is up after .*`,
	},
	"revoked-token": {
		`INFO connection to gate is up after `, `ERROR the portal at \S+:4430 refuses the token: it was renewed or the node was removed; make another one`,
		`INFO connection to gate closed after .*: shutdown, we end`, `WARNING laptop is signed out: the portal refuses the token`,
	},
}

// TestStories reads each log with the line that README gives, as it stands there.
func TestStories(t *testing.T) {
	read := readmeLine(t)
	for name, facts := range stories {
		text, err := os.ReadFile(filepath.Join("testdata", name+".log"))
		if err != nil {
			t.Fatal(err)
		}
		dir := t.TempDir()
		if err := os.WriteFile(filepath.Join(dir, name+".log"), text, 0o600); err != nil {
			t.Fatal(err)
		}
		out := read(dir)
		if strings.Contains(out, "sluice1-") {
			t.Errorf("%s: a token is in the log", name)
		}
		rest := out
		for _, fact := range facts {
			at := regexp.MustCompile(`(?m)^\S+ ` + anywhere(fact) + `.*$`).FindStringIndex(rest)
			if at == nil {
				t.Errorf("%s: nothing of %q, in its place, in\n%s", name, fact, out)
				break
			}
			rest = rest[at[1]:]
		}
	}
}

// anywhere lets a fact without a severity stand anywhere in a line.
func anywhere(fact string) string {
	if regexp.MustCompile(`^(INFO|WARNING|ERROR) `).MatchString(fact) {
		return fact
	}
	return ".*" + fact
}
