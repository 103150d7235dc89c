// Package bundle makes an archive for somebody who is to find out why a tunnel does not work: files of text from which secrets are
// taken out, and addresses and names replaced in such a way that the same one is the same everywhere in the archive (redact.go).
package bundle

import (
	"archive/tar"
	"bytes"
	"compress/gzip"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"slices"
	"strings"
	"time"
)

// File is one file of an archive.
type File struct {
	Name string
	Text []byte
}

// Write writes an archive of files as they are, in a folder of its own.
func Write(w io.Writer, folder string, at time.Time, files []File) error {
	packed := gzip.NewWriter(w)
	archive := tar.NewWriter(packed)
	for _, f := range files {
		err := archive.WriteHeader(&tar.Header{Name: folder + "/" + f.Name, Mode: 0o600, Size: int64(len(f.Text)), ModTime: at})
		if err == nil {
			_, err = archive.Write(f.Text)
		}
		if err != nil {
			return err
		}
	}
	return errors.Join(archive.Close(), packed.Close())
}

// maxLogs bounds what is taken of logs, the newest, in bytes.
const maxLogs = 16 << 20

// Logs are the newest lines of the files in log folders. Folders that are not there have none; what cannot be read is told.
func Logs(folders []string) (files []File, err error) {
	left := int64(maxLogs)
	for _, folder := range folders {
		entries, e := os.ReadDir(folder)
		if errors.Is(e, fs.ErrNotExist) {
			continue
		}
		err = errors.Join(err, e)
		slices.Reverse(entries) // sorted by name, which is their time
		for _, entry := range entries {
			if !entry.Type().IsRegular() || !strings.HasSuffix(entry.Name(), ".log") || left <= 0 {
				continue
			}
			text, e := tail(filepath.Join(folder, entry.Name()), left)
			err = errors.Join(err, e)
			left -= int64(len(text))
			files = append(files, File{fmt.Sprintf("logs/%d-%s", slices.Index(folders, folder), entry.Name()), text})
		}
	}
	return files, err
}

// tail reads whole lines at the end of a file, as many as size bytes have.
func tail(path string, size int64) ([]byte, error) {
	f, err := os.Open(path)
	if err != nil {
		return nil, err
	}
	defer f.Close()
	st, err := f.Stat()
	if err != nil {
		return nil, err
	}
	from := max(0, st.Size()-size)
	text, err := io.ReadAll(io.NewSectionReader(f, from, size))
	if from > 0 {
		_, text, _ = bytes.Cut(text, []byte{'\n'})
	}
	return text, err
}
