//go:build linux

package lab_test

import (
	"bytes"
	"context"
	"crypto/sha256"
	"errors"
	"fmt"
	"hash"
	"io"
	"math/rand/v2"
	"net"
	"sync"
	"testing"
	"time"

	"overlayd/examples/lab"
	"overlayd/examples/lab/labtest"
)

// copying is one TCP connection that is written to as fast as it takes it, and
// what its receiver sees.
type copying struct {
	from, to net.Conn
	in, out  hash.Hash // of what was sent, of what arrived; to be read after finish
	wg       sync.WaitGroup
	stop     chan struct{} // closed by finish: no more is sent

	mu    sync.Mutex // guards the rest
	size  int64      // arrived so far
	last  time.Time  // when
	stall time.Duration
	errs  []error
}

// copyTo starts a copy from the machine to a listener; the test's end breaks it off.
func copyTo(ctx context.Context, t *testing.T, m *lab.Machine, server net.Listener) *copying {
	t.Helper()
	from, to := connected(ctx, t, m, server)
	// A tenth of a second's worth: the end of the copy is not to be waited for.
	if err := from.(*net.TCPConn).SetWriteBuffer(256 << 10); err != nil {
		t.Fatal(err)
	}
	c := &copying{from: from, to: to, in: sha256.New(), out: sha256.New(), stop: make(chan struct{}), last: time.Now()}
	c.wg.Go(c.write)
	c.wg.Go(c.read)
	t.Cleanup(func() {
		from.Close()
		to.Close()
		c.wg.Wait()
	})
	return c
}

func (c *copying) write() {
	source, chunk := rand.NewChaCha8([32]byte{9}), make([]byte, 64<<10)
	for {
		select {
		case <-c.stop:
			c.note(c.from.(*net.TCPConn).CloseWrite())
			return
		default:
		}
		_, _ = source.Read(chunk) // never fails
		n, err := c.from.Write(chunk)
		c.in.Write(chunk[:n])
		if err != nil {
			c.note(err)
			return
		}
	}
}

func (c *copying) read() {
	buf := make([]byte, 64<<10)
	for {
		n, err := c.to.Read(buf)
		c.out.Write(buf[:n])
		c.mu.Lock()
		now := time.Now()
		c.stall = max(c.stall, now.Sub(c.last))
		c.last = now
		c.size += int64(n)
		c.mu.Unlock()
		if err != nil {
			if !errors.Is(err, io.EOF) {
				c.note(err)
			}
			return
		}
	}
}

func (c *copying) note(err error) {
	c.mu.Lock()
	defer c.mu.Unlock()
	if err != nil {
		c.errs = append(c.errs, err)
	}
}

// longest returns the longest time without progress since it was last asked.
func (c *copying) longest() time.Duration {
	c.mu.Lock()
	defer c.mu.Unlock()
	s := max(c.stall, time.Since(c.last))
	c.stall = 0
	return s
}

// moves waits until something has arrived after a moment.
func (c *copying) moves(ctx context.Context, t *testing.T, after time.Time) {
	t.Helper()
	err := lab.Until(ctx, func(context.Context) error {
		c.mu.Lock()
		defer c.mu.Unlock()
		if err := errors.Join(c.errs...); err != nil {
			t.Fatalf("the copy broke off: %v", err)
		}
		if !c.last.After(after) {
			return fmt.Errorf("the copy stands still since %v", time.Since(c.last).Round(time.Millisecond))
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
}

// finish ends the copy in order, and compares both ends.
func (c *copying) finish(t *testing.T) {
	t.Helper()
	close(c.stop)
	c.wg.Wait()
	if err := errors.Join(c.errs...); err != nil {
		t.Errorf("the copy broke off: %v", err)
	}
	if a, b := c.in.Sum(nil), c.out.Sum(nil); !bytes.Equal(a, b) {
		t.Errorf("SHA-256 %x was sent, %x arrived", a, b)
	}
	t.Logf("%d MB arrived, SHA-256 %x", c.size>>20, c.out.Sum(nil))
}

// journeyLeg is one part of the journey.
type journeyLeg struct {
	name    string
	promise time.Duration // how long packets may be away; 0: not at all
	do      func()
	kind    string // of the path that comes of it
	via     string // its transport
}

// One long copy lives through everything that can happen to a laptop, one after
// the other, and arrives as it was sent.
//
// What the promises are about is the time without packets, which is measured by
// echoes. The receiver of a TCP stream sees more of it: the sender repeats what
// was lost after 0.2 s, then after twice that, and so on, so when packets flow
// again after a time T, its next try comes before 2T and one such step. So twice
// the promise and a second is what a stall may last; and three times all that on
// a machine that does other things at the same time, when the test is not the
// long one.
func TestJourney(t *testing.T) {
	rounds, busy := 1, 3
	if long {
		rounds, busy = 5, 1
	}
	ctx, l, j := labtest.JoinedFor(t, time.Duration(rounds)*5*time.Minute, lab.Options{})
	// Some 2 MB/s: the copy is to last, and to leave time for everything else.
	labtest.Run(ctx, t, l.Laptop, "tc", "qdisc", "add", "dev", "eth0", "root", "tbf", "rate", "16mbit", "burst", "64kb", "latency", "100ms")
	server, err := l.Host.Listen("tcp4", lab.HostAddr+":0")
	if err != nil {
		t.Fatal(err)
	}
	defer server.Close()
	relay := daemons(l, j)["relay"]
	cut := func(change string) func() {
		return func() {
			for _, pair := range [][2]string{{"198.51.100.0/24", "192.0.2.0/24"}, {"192.0.2.0/24", "198.51.100.0/24"}} {
				labtest.Run(ctx, t, l.Internet, "iptables", "-w", change, "FORWARD", "-s", pair[0], "-d", pair[1], "-j", "DROP")
			}
		}
	}
	udp := func(f func(context.Context) error, after func()) func() {
		return func() {
			if err := f(ctx); err != nil {
				t.Fatal(err)
			}
			after()
		}
	}
	n := 0 // addresses so far
	move := func(m *lab.Machine, net string) func() {
		return func() {
			labtest.Run(ctx, t, m, "sh", "-ec", fmt.Sprintf("ip addr flush dev eth0; ip addr add %s.%d/24 dev eth0; ip route add default via %s.1", net, 3+n%2, net))
			n++
		}
	}
	cut("-I")()
	pings := pinging(t, l.Laptop, lab.HostAddr)
	data := copyTo(ctx, t, l.Laptop, server)
	waitPath(ctx, t, l.Laptop, "relay", "udp")
	for range rounds {
		for _, leg := range []journeyLeg{
			{"a direct path opens", 0, cut("-D"), "direct", "udp"},
			{"the direct path is cut", time.Second, cut("-I"), "relay", "udp"},
			{"the relay is killed and restarted", time.Second, func() {
				relay.process.Kill()
				relay.start(ctx, t, l)
			}, "relay", "udp"},
			{"the direct path is back", 0, cut("-D"), "direct", "udp"},
			{"the laptop's address changes", time.Second, move(l.Laptop, "10.0.77"), "direct", "udp"},
			{"the home's public address changes", time.Second, move(l.HomeNAT, "198.51.100"), "direct", "udp"},
			{"UDP is blocked", 3 * time.Second, udp(l.HomeNAT.BlockUDP, func() {}), "relay", "tls"},
			{"UDP passes again", 0, udp(l.HomeNAT.PassUDP, func() { linkChanged(ctx, t, l.Laptop) }), "direct", "udp"},
			{"all is cut once more", time.Second, cut("-I"), "relay", "udp"},
		} {
			data.longest()
			at := time.Now()
			leg.do()
			pings.back(ctx, t, time.Now())
			data.moves(ctx, t, time.Now())
			waitPath(ctx, t, l.Laptop, leg.kind, leg.via)
			arrived := time.Now()
			pings.back(ctx, t, arrived)
			data.moves(ctx, t, arrived)
			away, stall := pings.Gap(at, arrived), data.longest()
			t.Logf("%-36s %s by %s after %6v; without echoes for %6v, TCP for %6v", leg.name, leg.kind, leg.via,
				arrived.Sub(at).Round(time.Millisecond), away.Round(time.Millisecond), stall.Round(time.Millisecond))
			mayBe := time.Duration(busy) * max(leg.promise, noticed)
			if away > mayBe {
				t.Errorf("%s: no echoes for %v, want at most %v", leg.name, away, mayBe)
			}
			if most := 2*mayBe + time.Duration(busy)*time.Second; stall > most {
				t.Errorf("%s: the copy stood still for %v, want at most %v", leg.name, stall, most)
			}
		}
	}
	data.finish(t)
}

// noticed is what a change that costs nothing may cost: an echo or two.
const noticed = 100 * time.Millisecond

// waitPath waits until the laptop reaches the gateway in a way.
func waitPath(ctx context.Context, t *testing.T, m *lab.Machine, kind, transport string) {
	t.Helper()
	waitFor(ctx, t, m, func(s status) error {
		for _, p := range s.Peers {
			if p.Name == "lab-gw" && (p.Path.Kind != kind || p.Path.Transport != transport) {
				return fmt.Errorf("the path is %+v, want %s by %s", p.Path, kind, transport)
			}
		}
		return nil
	})
}
