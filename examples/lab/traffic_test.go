//go:build linux

package lab_test

import (
	"context"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"overlayd/examples/lab"
	"overlayd/examples/lab/labtest"
)

// pingEvery is dense enough to see an outage of a few tens of milliseconds.
const pingEvery = 20 * time.Millisecond

// pinger is a train of echoes in a test.
type pinger struct{ *lab.Train }

// pinging starts a pinger on the machine, which the test's end stops.
func pinging(t *testing.T, m *lab.Machine, addr string) pinger {
	t.Helper()
	train, err := m.Echoes(addr, pingEvery)
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(train.Close)
	return pinger{train}
}

// back waits for the first of several echoes in a row that were asked for
// after a moment, and returns how long after that moment it came.
func (p pinger) back(ctx context.Context, t *testing.T, after time.Time) time.Duration {
	t.Helper()
	at, err := p.Back(ctx, after)
	if err != nil {
		t.Fatal(err)
	}
	return at.Sub(after)
}

// stream is one TCP connection to an echo server, on which something is always
// under way. What comes back is compared with what was sent.
type stream struct {
	conn net.Conn
	wg   sync.WaitGroup

	mu   sync.Mutex    // guards what follows
	last time.Time     // when something came
	gap  time.Duration // the longest without, see stalled
	err  error         // what ended it
}

// streaming opens a stream from the machine, which the test's end closes.
func streaming(ctx context.Context, t *testing.T, m *lab.Machine, addr string) *stream {
	t.Helper()
	conn, err := m.DialContext(ctx, "tcp4", addr)
	if err != nil {
		t.Fatal(err)
	}
	s := &stream{conn: conn}
	ended := make(chan struct{})
	s.wg.Go(func() { s.write(ended) })
	s.wg.Go(func() { s.read() })
	t.Cleanup(func() {
		close(ended)
		conn.Close()
		s.wg.Wait()
	})
	return s
}

// streamSeed makes the stream's bytes the same in both directions and in every run.
var streamSeed = [32]byte{4}

func (s *stream) write(ended <-chan struct{}) {
	source := rand.NewChaCha8(streamSeed)
	chunk := make([]byte, 16<<10) // 1.6 MB/s: always something under way, and time left for everything else
	tick := time.NewTicker(10 * time.Millisecond)
	defer tick.Stop()
	for {
		_, _ = source.Read(chunk) // never fails
		if _, err := s.conn.Write(chunk); err != nil {
			s.fail(err)
			return
		}
		select {
		case <-ended:
			return
		case <-tick.C:
		}
	}
}

func (s *stream) read() {
	greeting := make([]byte, len(lab.GatewayAddr)+1)
	if _, err := io.ReadFull(s.conn, greeting); err != nil {
		s.fail(err)
		return
	}
	source := rand.NewChaCha8(streamSeed)
	buf, want := make([]byte, 16<<10), make([]byte, 16<<10)
	for {
		n, err := s.conn.Read(buf)
		if err != nil {
			s.fail(err)
			return
		}
		_, _ = source.Read(want[:n])
		if string(buf[:n]) != string(want[:n]) {
			s.fail(errors.New("the stream came back changed"))
			return
		}
		s.mu.Lock()
		now := time.Now()
		if !s.last.IsZero() {
			s.gap = max(s.gap, now.Sub(s.last))
		}
		s.last = now
		s.mu.Unlock()
	}
}

func (s *stream) fail(err error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	if s.err == nil {
		s.err = err
	}
}

// flows waits until something has come after a moment, and returns how long
// after it that was seen.
func (s *stream) flows(ctx context.Context, t *testing.T, after time.Time) time.Duration {
	t.Helper()
	var took time.Duration
	err := lab.Until(ctx, func(context.Context) error {
		s.mu.Lock()
		defer s.mu.Unlock()
		if s.err != nil {
			t.Fatalf("the TCP stream broke: %v", s.err)
		}
		if took = s.last.Sub(after); took <= 0 {
			return fmt.Errorf("the TCP stream stands still since %v", -took)
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return took
}

// stalled returns how long nothing came, at the most, since the last call.
func (s *stream) stalled() time.Duration {
	s.mu.Lock()
	defer s.mu.Unlock()
	gap := max(s.gap, time.Since(s.last))
	s.gap = 0
	return gap
}

var long = labtest.Long()
