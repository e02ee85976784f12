package record

import (
	"bytes"
	"crypto/sha256"
	"encoding/hex"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"io/fs"
	"os"
	"path/filepath"
	"strconv"
)

// head is the end of a chain, and where what is kept of it begins.
type head struct {
	First uint64 `json:"first"` // the number of the first line that is kept
	Seq   uint64 `json:"seq"`   // of the last; 0: there is none
	Hash  string `json:"hash"`  // of the last
}

// noHash stands for the line before the first.
var noHash = hex.EncodeToString(make([]byte, sha256.Size))

func hashLine(line []byte) string {
	h := sha256.Sum256(line)
	return hex.EncodeToString(h[:])
}

// path returns the n-th file, the newest being 0.
func path(dir, name string, n int) string {
	if n == 0 {
		return filepath.Join(dir, name+".jsonl")
	}
	return filepath.Join(dir, name+"."+strconv.Itoa(n)+".jsonl")
}

func headPath(dir, name string) string { return filepath.Join(dir, name+".head") }

// linked is what a chained line begins with.
type linked struct {
	Seq  uint64 `json:"seq"`
	Prev string `json:"prev"`
}

// link puts a line behind the head, and returns the head after it.
func (h head) link(line []byte) ([]byte, head) {
	next := head{First: max(h.First, 1), Seq: h.Seq + 1}
	prev := h.Hash
	if prev == "" {
		prev = noHash
	}
	b := append(strconv.AppendUint([]byte(`{"seq":`), next.Seq, 10), `,"prev":"`+prev+`"`...)
	if len(line) > 2 { // else there is nothing in it
		b = append(b, ',')
	}
	b = append(b, line[1:]...)
	next.Hash = hashLine(b)
	return b, next
}

// readHead returns the zero head, with the error, when there is none to read.
func readHead(path string) (head, error) {
	b, err := os.ReadFile(path)
	if err != nil {
		return head{}, err
	}
	var h head
	if err := json.Unmarshal(b, &h); err != nil {
		return head{}, fmt.Errorf("read %s: %w", path, err)
	}
	return h, nil
}

// open opens the newest file, cuts off a line that was not finished, and takes
// up the chain where the last whole line left it.
func (s *files) open() error {
	f, err := os.OpenFile(path(s.dir, s.name, 0), os.O_RDWR|os.O_CREATE, 0o600)
	if err != nil {
		return err
	}
	s.f = f
	if s.chain {
		// A head that cannot be read is what Verify tells of; the chain
		// goes on from the lines.
		s.head, _ = readHead(headPath(s.dir, s.name))
	}
	if err := s.recover(); err != nil {
		s.close()
		return err
	}
	return nil
}

// recover finds the end of the whole lines. A file is read at once: it is not
// larger than MaxBytes and a line.
func (s *files) recover() error {
	all, err := io.ReadAll(io.NewSectionReader(s.f, 0, 1<<62))
	if err != nil {
		return err
	}
	whole := bytes.LastIndexByte(all, '\n') + 1
	s.size = int64(whole)
	if err := s.f.Truncate(s.size); err != nil {
		return err
	}
	if _, err := s.f.Seek(s.size, io.SeekStart); err != nil {
		return err
	}
	if !s.chain || whole == 0 {
		return nil
	}
	last := all[:whole-1]
	last = last[bytes.LastIndexByte(last, '\n')+1:]
	s.last = bytes.Clone(last)
	var l linked
	if json.Unmarshal(last, &l) == nil && l.Seq > s.head.Seq { // written, but the head was not
		s.head = head{First: max(s.head.First, 1), Seq: l.Seq, Hash: hashLine(last)}
	}
	return nil
}

// reopen tries again after a failure.
func (s *files) reopen() error {
	s.close()
	return s.open()
}

func (s *files) close() {
	if s.f != nil {
		s.f.Close() // what counts was synced, or failed before
		s.f = nil
	}
}

// append writes lines, and returns how many of them are in the file.
func (s *files) append(lines [][]byte) (int, error) {
	if s.f == nil {
		return 0, fs.ErrClosed
	}
	done := 0
	for done < len(lines) {
		var b []byte
		next, n := s.head, 0
		for _, line := range lines[done:] {
			if s.chain {
				var after head
				line, after = next.link(line)
				if n > 0 && s.size+int64(len(b)+len(line)) >= s.most {
					break
				}
				next = after
			} else if n > 0 && s.size+int64(len(b)+len(line)) >= s.most {
				break
			}
			b = append(append(b, line...), '\n')
			n++
		}
		if s.size > 0 && s.size+int64(len(b)) > s.most {
			if err := s.rotate(); err != nil {
				return done, err
			}
			continue
		}
		if _, err := s.f.Write(b); err != nil {
			// Half a line is cut off again, now or when the file is reopened.
			return done, errors.Join(err, s.f.Truncate(s.size))
		}
		s.size += int64(len(b))
		s.head.Seq, s.head.Hash, s.head.First = next.Seq, next.Hash, next.First
		done += n
	}
	if s.chain {
		return done, s.sync()
	}
	return done, nil
}

// sync makes what was written last, and then the head.
func (s *files) sync() error {
	if s.f == nil {
		return fs.ErrClosed
	}
	if err := s.f.Sync(); err != nil {
		return err
	}
	if !s.chain || s.head.Seq == 0 {
		return nil
	}
	return s.writeHead()
}

func (s *files) writeHead() error {
	b, err := json.Marshal(s.head)
	if err != nil {
		return err
	}
	tmp := headPath(s.dir, s.name) + ".new"
	if err := os.WriteFile(tmp, append(b, '\n'), 0o600); err != nil {
		return err
	}
	return os.Rename(tmp, headPath(s.dir, s.name))
}

// rotate begins a new file. The head says first what is going to be kept: after
// a crash in between there is more than it says, never less.
func (s *files) rotate() error {
	if err := s.sync(); err != nil {
		return err
	}
	if s.chain {
		if first, err := firstSeq(path(s.dir, s.name, s.keep-1)); err == nil && first > 0 {
			s.head.First = first
			if err := s.writeHead(); err != nil {
				return err
			}
		}
	}
	s.close()
	for n := s.keep; n > 0; n-- {
		err := os.Rename(path(s.dir, s.name, n-1), path(s.dir, s.name, n))
		if err != nil && !errors.Is(err, fs.ErrNotExist) {
			return err
		}
	}
	f, err := os.OpenFile(path(s.dir, s.name, 0), os.O_RDWR|os.O_CREATE|os.O_EXCL, 0o600)
	if err != nil {
		return err
	}
	s.f, s.size = f, 0
	return nil
}

// firstSeq returns the number of a file's first line.
func firstSeq(path string) (uint64, error) {
	f, err := os.Open(path)
	if err != nil {
		return 0, err
	}
	defer f.Close()
	var l linked
	err = json.NewDecoder(f).Decode(&l)
	return l.Seq, err
}
