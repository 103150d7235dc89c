package logs

import (
	"os"
	"os/user"
	"path/filepath"
	"runtime"
	"strconv"
)

// NoFolder is what switches the folder off, in place of its path.
const NoFolder = "none"

// Whose is who runs a program, as far as the place of its logs goes.
type Whose struct {
	OS     string // runtime.GOOS
	UID    int    // -1 where there is none
	Getenv func(string) string
	Home   func(uid int) string   // from the list of users; "": not known
	Owns   func(string, int) bool // whether a folder is a user's
}

// Caller is who runs this program.
func Caller(getenv func(string) string) Whose {
	return Whose{runtime.GOOS, os.Getuid(), getenv, func(uid int) string {
		u, err := user.LookupId(strconv.Itoa(uid))
		if err != nil {
			return ""
		}
		return u.HomeDir
	}, ownedBy}
}

// systemPlace has the logs of services that run as root.
var systemPlace = Place{Base: "/var/log/sluice"}

// inPlace is the folder of logs in one that has those of many programs.
var inPlace = filepath.Join("sluice", "data", "logs")

// DefaultPlace is where client and gateway keep their logs unless they are told:
//
//	a service of systemd     what LogsDirectory= has made (systemd.exec(5))
//	Windows                  %LOCALAPPDATA%\sluice\data\logs; services have -log-dir %ProgramData%\sluice\data\logs
//	root, without sudo       /var/log/sluice
//	root, by sudo            as the user who has called it, who owns what is made
//	a user                   $XDG_CACHE_HOME/sluice/data/logs, else $HOME/.cache/sluice/data/logs
//
// It is none if no home is known.
func (w Whose) DefaultPlace() Place {
	within := inPlace
	if w.OS == "windows" {
		if base := w.Getenv("LOCALAPPDATA"); base != "" {
			return Place{Base: base, Path: within}
		}
		return Place{}
	}
	// The service manager has made it for us (LogsDirectory= of systemd.exec(5)); HOME is its user's then, and may not exist.
	if made := w.Getenv("LOGS_DIRECTORY"); filepath.IsAbs(made) {
		return Place{Base: made}
	}
	home := w.Getenv("HOME")
	var owner *Owner
	if w.UID == 0 {
		uid, err := strconv.Atoi(w.Getenv("SUDO_UID"))
		gid, err2 := strconv.Atoi(w.Getenv("SUDO_GID"))
		if err != nil || err2 != nil || uid == 0 {
			return systemPlace
		}
		if home = w.Home(uid); home == "" {
			return systemPlace
		}
		owner = &Owner{uid, gid}
	}
	// The caller of sudo may have chosen the variable, and nothing of another's is to become the caller's.
	if cache := w.Getenv("XDG_CACHE_HOME"); filepath.IsAbs(cache) && (owner == nil || w.Owns(cache, owner.UID)) {
		return Place{Base: cache, Path: within, Owner: owner}
	}
	if home != "" {
		return Place{Base: home, Path: filepath.Join(".cache", within), Owner: owner}
	}
	return Place{}
}

// PlaceOf is the place that -log-dir names: a folder, NoFolder, or "" for the default.
func (w Whose) PlaceOf(flag string) Place {
	switch flag {
	case "":
		return w.DefaultPlace()
	case NoFolder:
		return Place{}
	}
	if path, err := filepath.Abs(flag); err == nil {
		flag = path
	}
	return Place{Base: flag}
}
