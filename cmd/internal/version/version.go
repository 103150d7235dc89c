// Package version says which build of Sluice is running, from what the Go toolchain wrote into the binary.
package version

import (
	"fmt"
	"runtime"
	"runtime/debug"
)

// String is one line: the module's version or commit, the Go release and the system.
func String() string {
	return fmt.Sprintf("%s (%s, %s/%s)", Describe(), runtime.Version(), runtime.GOOS, runtime.GOARCH)
}

// Describe is the module's version or commit.
func Describe() string {
	build, ok := debug.ReadBuildInfo()
	if !ok {
		build = new(debug.BuildInfo)
	}
	return describe(build)
}

// Commit is the commit of the build, "" if it is not known.
func Commit() string {
	build, _ := debug.ReadBuildInfo()
	if build != nil {
		for _, s := range build.Settings {
			if s.Key == "vcs.revision" {
				return s.Value[:min(12, len(s.Value))]
			}
		}
	}
	return ""
}

// describe prefers a module version over a commit, which a build in a checkout has.
func describe(build *debug.BuildInfo) string {
	if v := build.Main.Version; v != "" && v != "(devel)" {
		return v
	}
	revision, modified := "", ""
	for _, s := range build.Settings {
		switch {
		case s.Key == "vcs.revision":
			revision = s.Value[:min(12, len(s.Value))]
		case s.Key == "vcs.modified" && s.Value == "true":
			modified = "+changes"
		}
	}
	if revision == "" {
		return "devel"
	}
	return "devel-" + revision + modified
}
