//go:build linux

package lab_test

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"os"
	"sync"
	"testing"
	"time"

	"overlayd/examples/lab"
)

const (
	// pingEvery is dense enough to see an outage of a few tens of milliseconds.
	pingEvery = 20 * time.Millisecond
	// backAfter is how many echoes in a row count as traffic that is back.
	backAfter = 10
)

// pinger asks an address for echoes all the time, whatever becomes of them.
type pinger struct {
	conn net.PacketConn
	to   net.Addr
	wg   sync.WaitGroup
	stop chan struct{} // closed by the test's end

	mu   sync.Mutex // guards what follows
	sent []time.Time
	got  []time.Time // by number; zero: no answer so far
}

// pinging starts a pinger on the machine, which the test's end stops.
func pinging(t *testing.T, m *lab.Machine, addr string) *pinger {
	t.Helper()
	conn, err := m.ListenPacket("ip4:icmp", "0.0.0.0")
	if err != nil {
		t.Fatal(err)
	}
	p := &pinger{conn: conn, to: &net.IPAddr{IP: net.ParseIP(addr)}, stop: make(chan struct{})}
	id := uint16(rand.Uint32())
	p.wg.Go(func() { p.ask(id) })
	p.wg.Go(func() { p.listen(id) })
	t.Cleanup(func() {
		close(p.stop)
		conn.Close()
		p.wg.Wait()
	})
	return p
}

const (
	echoRequest = 8
	echoReply   = 0
)

func (p *pinger) ask(id uint16) {
	tick := time.NewTicker(pingEvery)
	defer tick.Stop()
	for n := 0; ; n++ {
		packet := []byte{echoRequest, 0, 0, 0, 0, 0, 0, 0}
		binary.BigEndian.PutUint16(packet[4:], id)
		binary.BigEndian.PutUint16(packet[6:], uint16(n))
		binary.BigEndian.PutUint16(packet[2:], checksum(packet))
		p.mu.Lock()
		p.sent = append(p.sent, time.Now())
		p.got = append(p.got, time.Time{})
		p.mu.Unlock()
		_, _ = p.conn.WriteTo(packet, p.to) // no route is an outage like any other
		select {
		case <-p.stop:
			return
		case <-tick.C:
		}
	}
}

func (p *pinger) listen(id uint16) {
	buf := make([]byte, 1500)
	for {
		n, _, err := p.conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n < 8 || buf[0] != echoReply || binary.BigEndian.Uint16(buf[4:]) != id {
			continue
		}
		p.mu.Lock()
		// The test is over long before 65,536 numbers are: some 20 minutes.
		if i := int(binary.BigEndian.Uint16(buf[6:])); i < len(p.got) {
			p.got[i] = time.Now()
		}
		p.mu.Unlock()
	}
}

// checksum is the Internet's (RFC 1071), of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// back waits for the first of several echoes in a row that were asked for
// after a moment, and returns how long after that moment it came.
func (p *pinger) back(ctx context.Context, t *testing.T, after time.Time) time.Duration {
	t.Helper()
	var took time.Duration
	err := lab.Until(ctx, func(context.Context) error {
		p.mu.Lock()
		defer p.mu.Unlock()
		run := 0
		for i, sent := range p.sent {
			switch {
			case sent.Before(after):
			case p.got[i].IsZero():
				run = 0
			default:
				if run == 0 {
					took = p.got[i].Sub(after)
				}
				if run++; run == backAfter {
					return nil
				}
			}
		}
		return fmt.Errorf("no %d echoes in a row of %s since %v", backAfter, p.to, time.Since(after).Round(time.Millisecond))
	})
	if err != nil {
		t.Fatal(err)
	}
	return took
}

// unanswered returns how many of the requests sent between two moments have no
// echo. The latest ones may still be on their way.
func (p *pinger) unanswered(from, to time.Time) (lost, all int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for i, sent := range p.sent {
		if sent.Before(from) || sent.After(to) {
			continue
		}
		all++
		if p.got[i].IsZero() {
			lost++
		}
	}
	return lost, all
}

// stream is one TCP connection to an echo server, on which something is always
// under way. What comes back is compared with what was sent.
type stream struct {
	conn net.Conn
	wg   sync.WaitGroup

	mu   sync.Mutex // guards what follows
	last time.Time  // when something came
	err  error      // what ended it
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
		s.last = time.Now()
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

// long is whether the long forms of tests are asked for.
var long = os.Getenv("LAB_LONG") != ""
