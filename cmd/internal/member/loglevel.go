package member

import (
	"encoding/json"
	"fmt"
	"net/http"

	"github.com/sluice-vpn/sluice/cmd/internal/logs"
)

// setLogLevel changes the level of the log, and answers with the one that it had. An empty one only asks.
func setLogLevel(log *logs.Log) http.HandlerFunc {
	return func(w http.ResponseWriter, r *http.Request) {
		var name string
		if err := json.NewDecoder(http.MaxBytesReader(w, r.Body, 1<<10)).Decode(&name); err != nil {
			http.Error(w, "want the name of a level, as JSON", http.StatusConflict)
			return
		}
		level, err := logs.ParseLevel(name)
		if err != nil {
			http.Error(w, err.Error(), http.StatusConflict)
			return
		}
		before := logs.LevelName(log.Level.Level())
		if name != "" && before != logs.LevelName(level) {
			log.Level.Set(min(level, log.Level.Level())) // so that the line is there, if either shows it
			log.Info("the log level has changed", "level", logs.LevelName(level), "before", before)
			log.Level.Set(level)
		}
		reply(w, before)
	}
}

// logNotes are what the status says of a log folder in trouble.
func logNotes(log *logs.Log) []string {
	if log == nil {
		return nil
	}
	var notes []string
	if trouble := log.Trouble(); trouble != "" {
		notes = append(notes, fmt.Sprintf("the log folder %s takes no lines: %s", log.Folder(), trouble))
	}
	if lost := log.Lost(); lost > 0 {
		notes = append(notes, fmt.Sprintf("the log folder %s lacks %d lines", log.Folder(), lost))
	}
	return notes
}
