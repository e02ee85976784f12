package record

import (
	"bufio"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"slices"
)

// Read hands every line to each, the oldest first, without its newline. A line
// is borrowed until the next. Who writes meanwhile is not disturbed; a line that
// is being written may be missing. There need not be any record.
func Read(dir, name string, each func(line []byte) error) error {
	open, err := openAll(dir, name)
	defer func() {
		for _, f := range open {
			f.Close()
		}
	}()
	if err != nil {
		return fmt.Errorf("read record %s: %w", name, err)
	}
	for _, f := range open {
		if err := readLines(f, each); err != nil {
			return err
		}
	}
	return nil
}

func readLines(f *os.File, each func(line []byte) error) error {
	r := bufio.NewReaderSize(f, 64<<10)
	for {
		line, err := r.ReadBytes('\n')
		if errors.Is(err, io.EOF) {
			return nil // what has no newline is not finished
		}
		if err != nil {
			return fmt.Errorf("read record: %w", err)
		}
		if err := each(line[:len(line)-1]); err != nil {
			return err
		}
	}
}

// openAll opens the files of a record, the oldest first. The newest is opened
// first: a rotation meanwhile can show a file twice, and hide none. One that is
// under way, or was cut short, leaves one number without a file.
func openAll(dir, name string) (open []*os.File, err error) {
	var infos []os.FileInfo
	for n, missing := 0, 0; missing < 2; n++ {
		f, err := os.Open(path(dir, name, n))
		if errors.Is(err, fs.ErrNotExist) {
			missing++
			continue
		}
		if err != nil {
			return open, err
		}
		info, err := f.Stat()
		if err == nil && slices.ContainsFunc(infos, func(o os.FileInfo) bool { return os.SameFile(info, o) }) {
			f.Close()
			continue
		}
		open, infos = append(open, f), append(infos, info)
	}
	slices.Reverse(open)
	return open, nil
}
