package logs

import (
	"fmt"
	"log/slog"
	"math"
	"strings"
)

// LevelSilent is above every record.
const LevelSilent = slog.Level(math.MaxInt32)

// Levels are the names of levels, for help and errors.
const Levels = "debug, info, warning, error or silent"

// ParseLevel reads a level by its name, in any case. verbose, which wireguard-go has in LOG_LEVEL, is debug, and none is info. The error
// names those that there are.
func ParseLevel(text string) (slog.Level, error) {
	switch strings.ToLower(text) {
	case "debug", "verbose":
		return slog.LevelDebug, nil
	case "info", "":
		return slog.LevelInfo, nil
	case "warning":
		return slog.LevelWarn, nil
	case "error":
		return slog.LevelError, nil
	case "silent":
		return LevelSilent, nil
	}
	return slog.LevelInfo, fmt.Errorf("%q is no level: want %s", text, Levels)
}

// LevelName is the name that ParseLevel reads.
func LevelName(level slog.Level) string {
	if level >= LevelSilent {
		return "silent"
	}
	return strings.ToLower(severity(level))
}

// severity names the step that a level reaches.
func severity(level slog.Level) string {
	switch {
	case level < slog.LevelInfo:
		return "DEBUG"
	case level < slog.LevelWarn:
		return "INFO"
	case level < slog.LevelError:
		return "WARNING"
	}
	return "ERROR"
}
