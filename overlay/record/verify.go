package record

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"slices"
	"strings"
)

// mostProblems is how many Verify lists: one change shows in two lines.
const mostProblems = 100

// Verified is what Verify found.
type Verified struct {
	Lines       uint64
	First, Last uint64   // the numbers of the first line and the last; 0: there is none
	Ends        bool     // a head says where the record ends, so a missing end is found
	Problems    []string // in order; empty: nothing is missing or changed
}

// Verify checks the chain of a record, from its first line that is kept to its
// head. A record that is being written has to be synced before.
func Verify(dir, name string) (Verified, error) {
	var v verifier
	err := v.dir(dir, name)
	return v.found(), err
}

// VerifyCopy checks a copy of the record NAME: a directory with its files, the head
// among them, or one file alone, whose head is looked for beside it. Of a file
// without, nothing is known of what came before and after. A head that was kept
// elsewhere says besides which line must be there; "": there is none.
func VerifyCopy(path, name, kept string) (Verified, error) {
	info, err := os.Stat(path)
	if err != nil {
		return Verified{}, fmt.Errorf("verify record: %w", err)
	}
	var v verifier
	if kept != "" {
		end, err := readHead(kept)
		if err == nil && (end.Seq == 0 || end.Hash == "") {
			err = fmt.Errorf("read %s: it is no head of a record", kept)
		}
		if err != nil {
			return Verified{}, fmt.Errorf("verify record: %w", err)
		}
		v.ends = append(v.ends, end)
	}
	if !info.IsDir() {
		err = v.file(path)
	} else if err = v.dir(path, name); err == nil && v.lines == 0 && v.headless {
		err = fmt.Errorf("verify record: there is no %s.jsonl in %s", name, path)
	}
	if err != nil {
		return Verified{}, err
	}
	return v.found(), nil
}

// file takes one file of a record, with the head beside it if there is one.
func (v *verifier) file(path string) error {
	end, err := readHead(strings.TrimSuffix(path, ".jsonl") + ".head")
	switch {
	case err == nil:
		v.ends = append(v.ends, end)
	case !errors.Is(err, fs.ErrNotExist):
		return fmt.Errorf("verify record: %w", err)
	}
	f, err := os.Open(path)
	if err != nil {
		return fmt.Errorf("verify record: %w", err)
	}
	defer f.Close()
	if err := readLines(f, v.line); err != nil {
		return err
	}
	if v.lines == 0 {
		return fmt.Errorf("verify record: there is no line in %s", path)
	}
	if v.last.Seq == 0 {
		return fmt.Errorf("verify record: %s is of no record with a chain: its lines have no numbers", path)
	}
	return nil
}

// dir takes the files of a record in a directory, with their head.
func (v *verifier) dir(dir, name string) error {
	end, err := readHead(headPath(dir, name))
	if err != nil && !errors.Is(err, fs.ErrNotExist) {
		v.problem("the head cannot be read: %v", err)
	}
	v.headless = end.Seq == 0
	v.begin, v.ends = max(end.First, 1), append(v.ends, end)
	return Read(dir, name, v.line)
}

// verifier goes through the lines of a record.
type verifier struct {
	begin    uint64 // the number of the first line that has to be there; 0: any may be the first
	ends     []head // which lines have to be there, as they were
	headless bool   // a head should be there, and is not

	lines       uint64
	first, last head
	reached     []bool // of ends
	problems    []string
}

func (v *verifier) problem(format string, args ...any) {
	p := fmt.Sprintf(format, args...)
	if len(v.problems) < mostProblems && !slices.Contains(v.problems, p) { // two heads may say the same
		v.problems = append(v.problems, p)
	}
}

// line takes the next line. It never fails.
func (v *verifier) line(line []byte) error {
	v.lines++
	var l linked
	if err := json.Unmarshal(line, &l); err != nil || l.Seq == 0 {
		v.problem("line %d, after number %d, is no line of this record", v.lines, v.last.Seq)
		return nil
	}
	switch {
	case v.last.Seq == 0 && v.begin > 0 && l.Seq > v.begin:
		v.problem("%s missing", numbers(v.begin, l.Seq-1))
	case v.last.Seq == 0 && l.Seq == 1 && l.Prev != noHash:
		v.problem("number 1 was changed")
	case v.last.Seq == 0: // the first that is kept: what was before is gone
	case l.Seq > v.last.Seq+1:
		v.problem("%s missing", numbers(v.last.Seq+1, l.Seq-1))
	case l.Seq <= v.last.Seq:
		v.problem("number %d comes after number %d", l.Seq, v.last.Seq)
	case l.Prev != v.last.Hash:
		v.problem("number %d was changed, or the line before it", l.Seq)
	}
	v.last = head{Seq: l.Seq, Hash: hashLine(line)}
	if v.first.Seq == 0 {
		v.first, v.reached = v.last, make([]bool, len(v.ends))
	}
	for i, end := range v.ends {
		if l.Seq != end.Seq {
			continue
		}
		if v.reached[i] = true; v.last.Hash != end.Hash {
			v.problem("number %d was changed", l.Seq)
		}
	}
	return nil
}

// found returns what was found once all lines were taken.
func (v *verifier) found() Verified {
	for i, end := range v.ends {
		switch {
		case end.Seq == 0 || len(v.reached) > 0 && v.reached[i]:
		case v.last.Seq < end.Seq:
			v.problem("%s missing at the end", numbers(v.last.Seq+1, end.Seq))
		case v.first.Seq > end.Seq:
			v.problem("number %d, the last when its head was copied, is not kept any more: nothing is proved by that head", end.Seq)
		}
	}
	if v.headless && v.last.Seq > 0 {
		v.problem("the head is missing")
	}
	return Verified{Lines: v.lines, First: v.first.Seq, Last: v.last.Seq, Ends: len(v.ends) > 0 && !v.headless, Problems: v.problems}
}

// numbers names the lines from one to another, with the verb.
func numbers(first, last uint64) string {
	if first == last {
		return fmt.Sprintf("number %d is", first)
	}
	return fmt.Sprintf("numbers %d to %d are", first, last)
}
