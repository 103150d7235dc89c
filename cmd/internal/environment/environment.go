// Package environment is what the programs that run an interface have in common: the switches in the environment, the file
// of counters, and how such a program treats signals and core dumps.
package environment

import (
	"encoding/json"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strconv"

	"github.com/sluice-vpn/sluice/cmd/internal/logs"
	"github.com/sluice-vpn/sluice/crypto/aead"
	"github.com/sluice-vpn/sluice/pipeline"
	"github.com/sluice-vpn/sluice/pipeline/count"
	"github.com/sluice-vpn/sluice/tun"
)

// Settings are what the environment says. The zero value is an empty environment.
//
//	WG_PROCESS_FOREGROUND=1   stay in the foreground
//	LOG_LEVEL                 debug (or verbose), info (default), warning, error, silent
//	WG_TUN_FD, WG_UAPI_FD     inherited descriptors of a TUN device and of a listening socket
//	SLUICE_NO_GSO=1           no superpackets at the TUN, no UDP_SEGMENT
//	SLUICE_NO_GRO=1           no UDP_GRO
//	SLUICE_FORCE_GSO=1        UDP_SEGMENT also on a kernel that is known to corrupt it
//	SLUICE_NO_AVX512=1        ChaCha20-Poly1305 without AVX-512
//	SLUICE_STATS=PATH         counters as a JSON object, written on SIGUSR1 and at the end
//	SLUICE_NULL=1             no cipher, where the program allows it
//	SLUICE_QUEUES=N           queues of the TUN device, each with a core and sockets of its own (1)
//	SLUICE_WORKERS=N          worker goroutines that help each queue to seal and open (0)
type Settings struct {
	Foreground         bool
	LogLevel           string
	TunFD, UAPIFD      int // 0: none
	NoGSO, NoGRO, Null bool
	ForceGSO, NoAVX512 bool
	Stats              string
	Queues, Workers    int   // 0: the default
	Err                error // a value that cannot be used
}

// Read reads the environment. What cannot be used is told by Err.
func Read(getenv func(string) string) Settings {
	on := func(name string) bool { v := getenv(name); return v != "" && v != "0" }
	fd := func(name string) int {
		n, err := strconv.ParseUint(getenv(name), 10, 31)
		if err != nil {
			return 0
		}
		return int(n)
	}
	s := Settings{
		Foreground: getenv("WG_PROCESS_FOREGROUND") == "1",
		LogLevel:   getenv("LOG_LEVEL"),
		TunFD:      fd("WG_TUN_FD"),
		UAPIFD:     fd("WG_UAPI_FD"),
		NoGSO:      on("SLUICE_NO_GSO"),
		NoGRO:      on("SLUICE_NO_GRO"),
		Null:       on("SLUICE_NULL"),
		ForceGSO:   on("SLUICE_FORCE_GSO"),
		NoAVX512:   on("SLUICE_NO_AVX512"),
		Stats:      getenv("SLUICE_STATS"),
	}
	s.Queues = s.count(getenv, "SLUICE_QUEUES")
	s.Workers = s.count(getenv, "SLUICE_WORKERS")
	return s
}

// maxCount bounds queues and workers; Linux gives a TUN device at most 256 queues (MAX_TAP_QUEUES in drivers/net/tun.c).
const maxCount = 64

// count reads a number from 0 to maxCount; unset is 0.
func (s *Settings) count(getenv func(string) string, name string) int {
	text := getenv(name)
	if text == "" {
		return 0
	}
	n, err := strconv.Atoi(text)
	if err != nil || n < 0 || n > maxCount {
		s.Err = fmt.Errorf("%s is %q; set it to a number from 0 to %d, or not at all", name, text, maxCount)
	}
	return n
}

// Logger returns a logger to f, as detailed as LOG_LEVEL says; what is no level is told, and counts as info.
func (s Settings) Logger(f *os.File) *slog.Logger {
	level, err := logs.ParseLevel(s.LogLevel)
	logger := logs.New(f, level)
	if err != nil {
		logger.Warn("LOG_LEVEL is not understood, and counts as info", "error", err)
	}
	return logger
}

// Counted is the part of a Pipeline that statistics need.
type Counted interface{ Counters() []count.Counter }

// WriteStats replaces the file of counters, if one is asked for, in one step and for the owner only.
func (s Settings) WriteStats(p Counted, logger *slog.Logger) {
	if s.Stats == "" {
		return
	}
	if err := writeCounters(s.Stats, p.Counters()); err != nil {
		logger.Error("counters were not written", "error", err)
	}
}

func writeCounters(path string, counters []count.Counter) (err error) {
	f, err := os.CreateTemp(filepath.Dir(path), ".sluice-stats-*") // mode 0600
	if err != nil {
		return err
	}
	defer func() {
		if err != nil {
			os.Remove(f.Name())
		}
	}()
	if err := encodeCounters(f, count.Values(counters)); err != nil {
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

// Pipeline is the configuration that the settings make of a device. SLUICE_NULL is left to the caller.
func (s Settings) Pipeline(dev tun.Device, logger *slog.Logger) pipeline.Config {
	cfg := pipeline.Config{Device: dev, Logger: logger, Workers: s.Workers}
	cfg.UDP.NoSegment, cfg.UDP.NoGRO, cfg.UDP.ForceSegment = s.NoGSO, s.NoGRO, s.ForceGSO
	if s.NoAVX512 {
		cfg.NewCipher = func(key *[aead.KeySize]byte) aead.Cipher { return aead.NewWith(key, aead.Features{NoAVX512: true}) }
	}
	return cfg
}
