//go:build !windows

package secretfile

import "os"

// restrict has nothing to do: os.CreateTemp has made the file with mode 0600.
func restrict(string) error { return nil }

// MakeFolder makes a folder for its owner alone, and those that it is in, if they are not there.
func MakeFolder(path string) error { return os.MkdirAll(path, 0o700) }

// OthersRead tells whether the owner of a file is not the only one who may read it, and what ends that. What is no file, such as a
// pipe, has a mode that says nothing.
func OthersRead(f *os.File) (others bool, remedy string, err error) { return othersHave(f, 0o077) }

// OthersWrite tells whether somebody else may change a file, and what ends that.
func OthersWrite(f *os.File) (others bool, remedy string, err error) { return othersHave(f, 0o022) }

func othersHave(f *os.File, rights os.FileMode) (others bool, remedy string, err error) {
	st, err := f.Stat()
	if err != nil {
		return false, "", err
	}
	return st.Mode().IsRegular() && st.Mode().Perm()&rights != 0, "chmod 600 " + f.Name(), nil
}
