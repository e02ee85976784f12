package splice

import (
	"bytes"
	"context"
	"crypto/rand"
	"errors"
	"io"
	"net"
	"path/filepath"
	"syscall"
	"testing"
	"time"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

// pair is a connection's two ends over the loopback.
func pair(t *testing.T, network string) (near, far net.Conn) {
	t.Helper()
	address := "127.0.0.1:0"
	if network == "unix" {
		address = filepath.Join(t.TempDir(), "s")
	}
	ln, err := net.Listen(network, address)
	if err != nil {
		t.Fatal(err)
	}
	defer ln.Close()
	accepted := make(chan net.Conn, 1)
	go func() {
		c, err := ln.Accept()
		if err != nil {
			t.Error(err)
		}
		accepted <- c
	}()
	if near, err = net.Dial(network, ln.Addr().String()); err != nil {
		t.Fatal(err)
	}
	far = <-accepted
	t.Cleanup(func() { near.Close(); far.Close() })
	for _, c := range []net.Conn{near, far} {
		c.SetDeadline(time.Now().Add(20 * time.Second)) // a hung test is a failed one
	}
	return near, far
}

// start joins two pairs of connections and returns the outer ends.
func start(ctx context.Context, t *testing.T, left, right string) (a, b net.Conn, done <-chan Tally) {
	t.Helper()
	a, inA := pair(t, left)
	b, inB := pair(t, right)
	inA.SetDeadline(time.Time{})
	inB.SetDeadline(time.Time{})
	c := make(chan Tally, 1)
	go func() { c <- Join(ctx, inA, inB) }()
	return a, b, c
}

// TestHalfClose: each direction ends for itself, and nothing is lost.
func TestHalfClose(t *testing.T) {
	for _, networks := range [][2]string{{"tcp", "tcp"}, {"unix", "tcp"}, {"tcp", "unix"}} {
		t.Run(networks[0]+" to "+networks[1], func(t *testing.T) {
			a, b, done := start(t.Context(), t, networks[0], networks[1])
			question := make([]byte, 1<<20)
			rand.Read(question)
			go func() {
				a.Write(question)
				a.(halfCloser).CloseWrite()
			}()
			heard, err := io.ReadAll(b)
			if err != nil || !bytes.Equal(heard, question) {
				t.Fatalf("%d bytes arrived (%v), want %d", len(heard), err, len(question))
			}
			go func() {
				b.Write([]byte("answer"))
				b.Close()
			}()
			if heard, err = io.ReadAll(a); err != nil || string(heard) != "answer" {
				t.Fatalf("%q came back (%v)", heard, err)
			}
			tally := <-done
			if tally.Err != nil || tally.Sent != 1<<20 || tally.Received != int64(len("answer")) {
				t.Errorf("got %+v", tally)
			}
		})
	}
}

// TestReset: one that is torn tears the other, in both directions.
func TestReset(t *testing.T) {
	for _, torn := range []string{"a", "b"} {
		t.Run(torn, func(t *testing.T) {
			a, b, done := start(t.Context(), t, "tcp", "tcp")
			if torn == "b" {
				a, b = b, a
			}
			a.Write([]byte("x"))
			if _, err := io.ReadFull(b, make([]byte, 1)); err != nil {
				t.Fatal(err)
			}
			a.(*net.TCPConn).SetLinger(0)
			a.Close()
			if _, err := b.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
				t.Errorf("the other end reads %v, want a reset", err)
			}
			if tally := <-done; tally.Err == nil {
				t.Error("the join says nothing of the reset")
			}
		})
	}
}

// TestContext: both ends are torn when the time is over.
func TestContext(t *testing.T) {
	ctx, cancel := context.WithCancelCause(t.Context())
	a, b, done := start(ctx, t, "tcp", "tcp")
	over := errors.New("revoked")
	cancel(over)
	for _, c := range []net.Conn{a, b} {
		if _, err := c.Read(make([]byte, 1)); !errors.Is(err, syscall.ECONNRESET) {
			t.Errorf("an end reads %v, want a reset", err)
		}
	}
	if tally := <-done; !errors.Is(tally.Err, over) {
		t.Errorf("got %v", tally.Err)
	}
}

// TestNoHalves: where a direction cannot be ended alone, both end.
func TestNoHalves(t *testing.T) {
	a, inA := net.Pipe()
	b, inB := net.Pipe()
	done := make(chan Tally, 1)
	go func() { done <- Join(t.Context(), inA, inB) }()
	a.Close()
	if _, err := b.Read(make([]byte, 1)); err != io.EOF {
		t.Errorf("the other end reads %v, want the end", err)
	}
	if tally := <-done; tally.Err != nil {
		t.Error(tally.Err)
	}
}
