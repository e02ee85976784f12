package record

import (
	"bufio"
	"encoding/json"
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
		r := bufio.NewReaderSize(f, 64<<10)
		for {
			line, err := r.ReadBytes('\n')
			if errors.Is(err, io.EOF) {
				break // what has no newline is not finished
			}
			if err != nil {
				return fmt.Errorf("read record %s: %w", name, err)
			}
			if err := each(line[:len(line)-1]); err != nil {
				return err
			}
		}
	}
	return nil
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

// numbers names the lines from one to another, with the verb.
func numbers(first, last uint64) string {
	if first == last {
		return fmt.Sprintf("number %d is", first)
	}
	return fmt.Sprintf("numbers %d to %d are", first, last)
}

// mostProblems is how many Verify lists: one change shows in two lines.
const mostProblems = 100

// Verified is what Verify found.
type Verified struct {
	Lines    uint64
	Problems []string // in order; empty: nothing is missing or changed
}

// Verify checks the chain of a record, from its first line that is kept to its
// head. A record that is being written has to be synced before.
func Verify(dir, name string) (Verified, error) {
	var v Verified
	problem := func(format string, args ...any) {
		if len(v.Problems) < mostProblems {
			v.Problems = append(v.Problems, fmt.Sprintf(format, args...))
		}
	}
	end, err := readHead(dir, name)
	if err != nil {
		problem("the head cannot be read: %v", err)
	}
	last := head{}
	reached := end.Seq == 0
	err = Read(dir, name, func(line []byte) error {
		v.Lines++
		var l linked
		if err := json.Unmarshal(line, &l); err != nil || l.Seq == 0 {
			problem("line %d, after number %d, is no line of this record", v.Lines, last.Seq)
			return nil
		}
		switch {
		case last.Seq == 0 && l.Seq > max(end.First, 1):
			problem("%s missing", numbers(max(end.First, 1), l.Seq-1))
		case last.Seq == 0 && l.Seq == 1 && l.Prev != noHash:
			problem("number 1 was changed")
		case last.Seq == 0: // the first that is kept: what was before is gone
		case l.Seq > last.Seq+1:
			problem("%s missing", numbers(last.Seq+1, l.Seq-1))
		case l.Seq <= last.Seq:
			problem("number %d comes after number %d", l.Seq, last.Seq)
		case l.Prev != last.Hash:
			problem("number %d was changed, or the line before it", l.Seq)
		}
		last = head{Seq: l.Seq, Hash: hashLine(line)}
		if l.Seq == end.Seq {
			reached = true
			if last.Hash != end.Hash {
				problem("number %d was changed", l.Seq)
			}
		}
		return nil
	})
	if err == nil && !reached && last.Seq < end.Seq {
		problem("%s missing at the end", numbers(last.Seq+1, end.Seq))
	}
	if err == nil && last.Seq > 0 && end.Seq == 0 {
		problem("the head is missing")
	}
	return v, err
}
