package record

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"io"
	"log/slog"
	"os"
	"path/filepath"
	"strings"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

type entry struct {
	N int `json:"n"`
}

var quietLog = slog.New(slog.NewTextHandler(io.Discard, nil))

// running opens a record and writes until the returned function is called.
func running(t testing.TB, dir string, o Options) (*Log, func()) {
	t.Helper()
	o.Log = quietLog
	l, err := Open(dir, "control", o)
	if err != nil {
		t.Fatal(err)
	}
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		if err := l.Run(ctx); err != nil {
			t.Errorf("run: %v", err)
		}
	}()
	stop := func() { cancel(); <-done }
	t.Cleanup(stop)
	return l, stop
}

func write(t testing.TB, dir string, o Options, from, to int) {
	t.Helper()
	l, stop := running(t, dir, o)
	for n := from; n < to; n++ {
		l.Append(entry{n})
		if err := l.Sync(t.Context()); err != nil {
			t.Fatal(err)
		}
	}
	stop()
	if s := l.Status(); s.Dropped != 0 || s.Err != nil {
		t.Fatalf("status %+v", s)
	}
}

func read(t testing.TB, dir string) (ns []int) {
	t.Helper()
	if err := Read(dir, "control", func(line []byte) error {
		var e entry
		if err := json.Unmarshal(line, &e); err != nil {
			return err
		}
		ns = append(ns, e.N)
		return nil
	}); err != nil {
		t.Fatal(err)
	}
	return ns
}

func wantRun(t testing.TB, got []int, from, to int) {
	t.Helper()
	if len(got) != to-from {
		t.Fatalf("%d lines, want %d: %v", len(got), to-from, got)
	}
	for i, n := range got {
		if n != from+i {
			t.Fatalf("line %d holds %d, want %d", i, n, from+i)
		}
	}
}

func verify(t testing.TB, dir string) Verified {
	t.Helper()
	v, err := Verify(dir, "control")
	if err != nil {
		t.Fatal(err)
	}
	return v
}

func TestChainGoesOn(t *testing.T) {
	dir := t.TempDir()
	o := Options{Chain: true, MaxBytes: 1000, Keep: 100}
	write(t, dir, o, 0, 20)
	write(t, dir, o, 20, 45)
	wantRun(t, read(t, dir), 0, 45)
	if v := verify(t, dir); v.Lines != 45 || len(v.Problems) > 0 {
		t.Errorf("%+v", v)
	}
	if _, err := os.Stat(path(dir, "control", 3)); err != nil {
		t.Errorf("it was not rotated: %v", err)
	}
}

func TestRotationForgetsTheOldest(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, Options{Chain: true, MaxBytes: 1000, Keep: 2}, 0, 60)
	ns := read(t, dir)
	wantRun(t, ns, 60-len(ns), 60)
	if len(ns) > 40 || len(ns) < 15 {
		t.Errorf("%d lines are kept of about 25", len(ns))
	}
	if v := verify(t, dir); len(v.Problems) > 0 {
		t.Errorf("%+v", v)
	}
	// The oldest file that should be there goes by other hands.
	if err := os.Remove(path(dir, "control", 2)); err != nil {
		t.Fatal(err)
	}
	if v := verify(t, dir); len(v.Problems) == 0 {
		t.Error("a missing file was not found")
	}
}

func TestVerifyFindsTampering(t *testing.T) {
	cut := func(lines []string, i int) []string { return append(lines[:i:i], lines[i+1:]...) }
	for name, tamper := range map[string]func([]string) []string{
		"the first is gone":   func(l []string) []string { return cut(l, 0) },
		"one is gone":         func(l []string) []string { return cut(l, 4) },
		"the last is gone":    func(l []string) []string { return cut(l, len(l)-1) },
		"the last three":      func(l []string) []string { return l[:len(l)-3] },
		"all are gone":        func([]string) []string { return nil },
		"the first changed":   func(l []string) []string { l[0] = strings.Replace(l[0], `"n":0`, `"n":9`, 1); return l },
		"one changed":         func(l []string) []string { l[4] = strings.Replace(l[4], `"n":4`, `"n":9`, 1); return l },
		"the last changed":    func(l []string) []string { l[9] = strings.Replace(l[9], `"n":9`, `"n":1`, 1); return l },
		"two swapped":         func(l []string) []string { l[4], l[5] = l[5], l[4]; return l },
		"one twice":           func(l []string) []string { return append(l[:5:5], l[4:]...) },
		"one of another":      func(l []string) []string { return append(l[:5:5], append([]string{`{"n":4}`}, l[5:]...)...) },
		"what is not JSON":    func(l []string) []string { l[3] = "rubbish"; return l },
		"a number of its own": func(l []string) []string { l[3] = strings.Replace(l[3], `"seq":4`, `"seq":40`, 1); return l },
	} {
		t.Run(name, func(t *testing.T) {
			dir := t.TempDir()
			write(t, dir, Options{Chain: true}, 0, 10)
			b, err := os.ReadFile(path(dir, "control", 0))
			if err != nil {
				t.Fatal(err)
			}
			lines := tamper(strings.Split(strings.TrimSuffix(string(b), "\n"), "\n"))
			text := ""
			for _, l := range lines {
				text += l + "\n"
			}
			if err := os.WriteFile(path(dir, "control", 0), []byte(text), 0o600); err != nil {
				t.Fatal(err)
			}
			if v := verify(t, dir); len(v.Problems) == 0 {
				t.Error("not found")
			}
			// A record that goes on does not hide it.
			write(t, dir, Options{Chain: true}, 10, 12)
			if v := verify(t, dir); len(v.Problems) == 0 {
				t.Error("not found after two lines more")
			}
		})
	}
}

func TestUnfinishedLineIsCutOff(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, Options{Chain: true}, 0, 3)
	f, err := os.OpenFile(path(dir, "control", 0), os.O_APPEND|os.O_WRONLY, 0)
	if err != nil {
		t.Fatal(err)
	}
	fmt.Fprint(f, `{"seq":4,"prev":"`)
	f.Close()
	write(t, dir, Options{Chain: true}, 3, 5)
	wantRun(t, read(t, dir), 0, 5)
	if v := verify(t, dir); len(v.Problems) > 0 {
		t.Errorf("%+v", v)
	}
}

// TestHeadBehind: the machine stopped between the lines and the head.
func TestHeadBehind(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, Options{Chain: true}, 0, 3)
	old, err := os.ReadFile(headPath(dir, "control"))
	if err != nil {
		t.Fatal(err)
	}
	write(t, dir, Options{Chain: true}, 3, 4)
	if err := os.WriteFile(headPath(dir, "control"), old, 0o600); err != nil {
		t.Fatal(err)
	}
	write(t, dir, Options{Chain: true}, 4, 6)
	if v := verify(t, dir); v.Lines != 6 || len(v.Problems) > 0 {
		t.Errorf("%+v", v)
	}
}

func TestFullQueueDrops(t *testing.T) {
	l, err := Open(t.TempDir(), "control", Options{Queue: 2, Log: quietLog})
	if err != nil {
		t.Fatal(err)
	}
	for n := range 5 {
		l.Append(entry{n}) // nobody writes: it must not block
	}
	if s := l.Status(); s.Dropped != 3 {
		t.Errorf("dropped %d, want 3", s.Dropped)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := l.Run(ctx); err != nil {
		t.Error(err)
	}
	wantRun(t, read(t, l.files.dir), 0, 2)
}

// TestFailureIsToldAndEnds: what cannot be written waits, as much of it as there is
// room for, and the failure is told of until it has been written.
func TestFailureIsToldAndEnds(t *testing.T) {
	l, err := Open(t.TempDir(), "control", Options{Chain: true, Queue: 3, Log: quietLog})
	if err != nil {
		t.Fatal(err)
	}
	l.write(entry{0})
	l.files.f.Close() // stands for a disk that is full or gone
	for n := range 5 {
		l.write(entry{1 + n})
	}
	if s := l.Status(); s.Err == nil || s.Dropped != 2 || s.Since.IsZero() {
		t.Errorf("status %+v", s)
	}
	// The files can be opened, and nothing more: the failure goes on.
	head := headPath(l.files.dir, "control") + ".new"
	if err := os.MkdirAll(filepath.Join(head, "in the way"), 0o700); err != nil {
		t.Fatal(err)
	}
	l.retry()
	if l.Status().Err == nil {
		t.Error("a record whose head cannot be written is said to be well")
	}
	if err := os.RemoveAll(head); err != nil {
		t.Fatal(err)
	}
	l.retry()
	l.write(entry{4})
	if s := l.Status(); s.Err != nil || s.Dropped != 2 {
		t.Errorf("status %+v", s)
	}
	l.drain()
	l.files.close()
	wantRun(t, read(t, l.files.dir), 0, 5)
	if v := verify(t, l.files.dir); len(v.Problems) > 0 {
		t.Errorf("%+v", v)
	}
}

// TestFailureAtTheEnd: what still waits when the writer ends is counted.
func TestFailureAtTheEnd(t *testing.T) {
	dir := t.TempDir()
	l, err := Open(dir, "control", Options{Log: quietLog})
	if err != nil {
		t.Fatal(err)
	}
	l.files.f.Close()
	l.write(entry{0})
	if err := os.Remove(path(dir, "control", 0)); err != nil {
		t.Fatal(err)
	}
	if err := os.Mkdir(path(dir, "control", 0), 0o700); err != nil { // so that it cannot be opened again
		t.Fatal(err)
	}
	if l.drain(); l.Status().Dropped != 1 || l.Status().Err == nil {
		t.Errorf("%+v", l.Status())
	}
}

func TestReadStops(t *testing.T) {
	dir := t.TempDir()
	write(t, dir, Options{}, 0, 3)
	enough, n := errors.New("enough"), 0
	err := Read(dir, "control", func([]byte) error {
		n++
		return enough
	})
	if !errors.Is(err, enough) || n != 1 {
		t.Errorf("%v after %d lines", err, n)
	}
	if err := Read(dir, "nothing", func([]byte) error { return enough }); err != nil {
		t.Errorf("no record: %v", err)
	}
}

func FuzzVerify(f *testing.F) {
	f.Add([]byte("{\"seq\":1,\"prev\":\""+noHash+"\"}\n"), []byte(`{"first":1,"seq":1,"hash":""}`))
	f.Add([]byte("{}\n\n[]\nnull\n"), []byte("{}"))
	f.Fuzz(func(t *testing.T, lines, end []byte) {
		dir := t.TempDir()
		os.WriteFile(path(dir, "control", 0), lines, 0o600)
		os.WriteFile(headPath(dir, "control"), end, 0o600)
		if _, err := Verify(dir, "control"); err != nil {
			t.Fatal(err)
		}
		VerifyCopy(path(dir, "control", 0), "control", headPath(dir, "control")) // of what is no record there may be errors
		l, err := Open(dir, "control", Options{Chain: true, Log: quietLog})
		if err != nil {
			t.Fatal(err)
		}
		l.write(entry{1})
		l.files.close()
		if l.Status().Err != nil || l.Status().Dropped != 0 {
			t.Fatalf("%+v", l.Status())
		}
	})
}
