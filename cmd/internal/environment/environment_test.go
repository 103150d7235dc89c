package environment

import (
	"bytes"
	"encoding/json"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"runtime"
	"strings"
	"testing"

	"github.com/sluice-vpn/sluice/pipeline/count"

	"github.com/sluice-vpn/sluice/cmd/internal/logs"
)

func TestSettings(t *testing.T) {
	for _, tt := range []struct {
		env  map[string]string
		want Settings
	}{
		{nil, Settings{}},
		{map[string]string{
			"WG_PROCESS_FOREGROUND": "1", "LOG_LEVEL": "debug", "WG_TUN_FD": "3", "WG_UAPI_FD": "4", "SLUICE_NO_GSO": "1",
			"SLUICE_NO_GRO": "yes", "SLUICE_STATS": "x", "SLUICE_NULL": "1", "SLUICE_QUEUES": "2", "SLUICE_WORKERS": "3",
			"SLUICE_FORCE_GSO": "1", "SLUICE_NO_AVX512": "1",
		}, Settings{Foreground: true, LogLevel: "debug", TunFD: 3, UAPIFD: 4, NoGSO: true, NoGRO: true, Null: true, Stats: "x",
			Queues: 2, Workers: 3, ForceGSO: true, NoAVX512: true}},
		{map[string]string{
			"WG_PROCESS_FOREGROUND": "yes", "WG_TUN_FD": "-1", "WG_UAPI_FD": "4294967299", "SLUICE_NO_GSO": "0", "SLUICE_NULL": "0",
		}, Settings{}},
	} {
		if got := Read(func(name string) string { return tt.env[name] }); got != tt.want {
			t.Errorf("%v: %+v, want %+v", tt.env, got, tt.want)
		}
	}
}

// A count that cannot be used is an error that names the variable, not a default.
func TestBadCounts(t *testing.T) {
	for _, value := range []string{"-1", "65", "many", "1.5"} {
		s := Read(func(name string) string { return map[string]string{"SLUICE_WORKERS": value}[name] })
		if s.Err == nil || !strings.Contains(s.Err.Error(), "SLUICE_WORKERS") {
			t.Errorf("%q: error %v", value, s.Err)
		}
	}
}

func TestLogLevel(t *testing.T) {
	for level, want := range map[string]int{"": 3, "info": 3, "verbose": 4, "debug": 4, "warning": 2, "error": 1, "silent": 0, "nonsense": 4} {
		f, err := os.Create(filepath.Join(t.TempDir(), "log"))
		if err != nil {
			t.Fatal(err)
		}
		l := Settings{LogLevel: level}.Logger(f)
		l.Debug("d")
		l.Info("i")
		l.Warn("w")
		l.Error("e")
		logs.Flush()
		f.Seek(0, io.SeekStart)
		text, _ := io.ReadAll(f)
		f.Close()
		if got := bytes.Count(text, []byte{'\n'}); got != want {
			t.Errorf("LOG_LEVEL=%s: %d lines, want %d", level, got, want)
		}
	}
}

type fixedCounters []count.Counter

func (c fixedCounters) Counters() []count.Counter { return c }

func TestStatsFile(t *testing.T) {
	dir := t.TempDir()
	path := filepath.Join(dir, "stats.json")
	var log bytes.Buffer
	logger := slog.New(slog.NewTextHandler(&log, nil))
	s := Settings{Stats: path}
	for _, value := range []uint64{1, 1<<64 - 1} {
		s.WriteStats(fixedCounters{{Name: "b", Value: 7}, {Name: "a", Value: value}}, logger)
		text, err := os.ReadFile(path)
		if err != nil {
			t.Fatal(err)
		}
		var got map[string]uint64
		if err := json.Unmarshal(text, &got); err != nil || len(got) != 2 || got["a"] != value || got["b"] != 7 {
			t.Errorf("%s: %v", text, err)
		}
	}
	if st, err := os.Stat(path); err != nil || runtime.GOOS != "windows" && st.Mode().Perm()&0o077 != 0 {
		t.Errorf("mode %v, %v", st.Mode(), err)
	}
	if files, _ := os.ReadDir(dir); len(files) != 1 || log.Len() != 0 {
		t.Errorf("%d files, log %s", len(files), log.String())
	}
	Settings{Stats: filepath.Join(dir, "none", "x")}.WriteStats(fixedCounters{}, logger)
	if log.Len() == 0 {
		t.Error("a folder that does not exist was not logged")
	}
	Settings{}.WriteStats(nil, logger) // asks for nothing, so does nothing
}
