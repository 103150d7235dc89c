package version

import (
	"runtime/debug"
	"strings"
	"testing"
)

func TestDescribe(t *testing.T) {
	vcs := func(main, revision, modified string) *debug.BuildInfo {
		return &debug.BuildInfo{
			Main:     debug.Module{Version: main},
			Settings: []debug.BuildSetting{{Key: "vcs.revision", Value: revision}, {Key: "vcs.modified", Value: modified}},
		}
	}
	for _, tt := range []struct {
		build *debug.BuildInfo
		want  string
	}{
		{new(debug.BuildInfo), "devel"},
		{vcs("v1.2.3", "0123456789abcdef", "false"), "v1.2.3"},
		{vcs("(devel)", "0123456789abcdef", "false"), "devel-0123456789ab"},
		{vcs("(devel)", "0123", "true"), "devel-0123+changes"},
	} {
		if got := describe(tt.build); got != tt.want {
			t.Errorf("got %q, want %q", got, tt.want)
		}
	}
	if s := String(); strings.Contains(s, "\n") || !strings.Contains(s, "go1.") {
		t.Errorf("String: %q", s)
	}
}
