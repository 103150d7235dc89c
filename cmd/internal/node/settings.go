package node

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"

	"github.com/sluice-vpn/sluice/cmd/internal/logs"
	"github.com/sluice-vpn/sluice/pipeline"
)

// settings are what the environment says.
//
//	WG_PROCESS_FOREGROUND=1   stay in the foreground
//	LOG_LEVEL                 verbose or debug, info (default), error, silent
//	WG_TUN_FD, WG_UAPI_FD     inherited descriptors of a TUN device and of a listening socket
//	SLUICE_NO_GSO=1           no superpackets at the TUN, no UDP_SEGMENT
//	SLUICE_NO_GRO=1           no UDP_GRO
//	SLUICE_FORCE_GSO=1        UDP_SEGMENT also on a kernel that is known to corrupt it
//	SLUICE_NO_AVX512=1        ChaCha20-Poly1305 without AVX-512
//	SLUICE_STATS=PATH         counters as a JSON object, written on SIGUSR1 and at the end
//	SLUICE_NULL=1             no cipher, where Options.AllowNull says so
//	SLUICE_QUEUES=N           queues of the TUN device, each with a core and sockets of its own (1)
//	SLUICE_WORKERS=N          worker goroutines that help each queue to seal and open (0)
type settings struct {
	foreground         bool
	logLevel           string
	tunFD, uapiFD      int // 0: none
	noGSO, noGRO, null bool
	forceGSO, noAVX512 bool
	stats              string
	queues, workers    int   // 0: the default
	err                error // a value that cannot be used
}

func settingsFrom(getenv func(string) string) settings {
	on := func(name string) bool { v := getenv(name); return v != "" && v != "0" }
	fd := func(name string) int {
		n, err := strconv.ParseUint(getenv(name), 10, 31)
		if err != nil {
			return 0
		}
		return int(n)
	}
	s := settings{
		foreground: getenv("WG_PROCESS_FOREGROUND") == "1",
		logLevel:   getenv("LOG_LEVEL"),
		tunFD:      fd("WG_TUN_FD"),
		uapiFD:     fd("WG_UAPI_FD"),
		noGSO:      on("SLUICE_NO_GSO"),
		noGRO:      on("SLUICE_NO_GRO"),
		null:       on("SLUICE_NULL"),
		forceGSO:   on("SLUICE_FORCE_GSO"),
		noAVX512:   on("SLUICE_NO_AVX512"),
		stats:      getenv("SLUICE_STATS"),
	}
	s.queues = s.count(getenv, "SLUICE_QUEUES")
	s.workers = s.count(getenv, "SLUICE_WORKERS")
	return s
}

// maxCount bounds queues and workers; Linux gives a TUN device at most 256 queues (MAX_TAP_QUEUES in drivers/net/tun.c).
const maxCount = 64

// count reads a number from 0 to maxCount; unset is 0.
func (s *settings) count(getenv func(string) string, name string) int {
	text := getenv(name)
	if text == "" {
		return 0
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || n > maxCount {
		s.err = fmt.Errorf("%s is %q; set it to a number from 0 to %d, or not at all", name, text, maxCount)
	}
	return n
}

func (s settings) logger(f *os.File) *slog.Logger {
	level := slog.LevelInfo
	switch s.logLevel {
	case "silent":
		return slog.New(slog.DiscardHandler)
	case "error":
		level = slog.LevelError
	case "verbose", "debug":
		level = slog.LevelDebug
	}
	return logs.New(f, level)
}

// counted is the part of a Pipeline that statistics need.
type counted interface{ Counters() []pipeline.Counter }

// writeStats replaces the file of counters, if one is asked for, in one step and for the owner only.
func (s settings) writeStats(p counted, logger *slog.Logger) {
	if s.stats == "" {
		return
	}
	if err := writeCounters(s.stats, p.Counters()); err != nil {
		logger.Error("counters were not written", "error", err)
	}
}

func writeCounters(path string, counters []pipeline.Counter) (err error) {
	object := make(map[string]uint64, len(counters))
	for _, c := range counters {
		object[c.Name] = c.Value
	}
	f, err := os.CreateTemp(filepath.Dir(path), ".sluice-stats-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if err := encodeCounters(f, object); err != nil {
		f.Close()
		return err
	}
	if err := f.Close(); err != nil {
		return err
	}
	return os.Rename(f.Name(), path)
}

func encodeCounters(w io.Writer, object map[string]uint64) error {
	enc := json.NewEncoder(w)
	enc.SetIndent("", "\t")
	return enc.Encode(object)
}
