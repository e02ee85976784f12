package bell

import (
	"errors"
	"os"
	"sync"
	"testing"

	"golang.org/x/sys/unix"
)

// pair returns a Bell and the other end of its socket.
func pair(t *testing.T) (*Bell, int) {
	t.Helper()
	fds, err := unix.Socketpair(unix.AF_UNIX, unix.SOCK_DGRAM|unix.SOCK_CLOEXEC, 0)
	if err != nil {
		t.Fatal(err)
	}
	b, err := New(fds[0], "test")
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.Close(); unix.Close(fds[1]) })
	return b, fds[1]
}

// receive returns one message, and whether it was quiet when it came.
func receive(b *Bell, quiet bool) (string, error) {
	var buf [16]byte
	n := 0
	err := b.Wait(func(epoll uintptr) bool {
		var err error
		if n, _, err = unix.Recvfrom(int(b.Fd()), buf[:], unix.MSG_DONTWAIT); errors.Is(err, unix.EAGAIN) {
			return b.Empty(epoll)
		}
		if quiet {
			b.Quiet(epoll)
		}
		return true
	})
	return string(buf[:max(n, 0)]), err
}

// TestWakes has every message wake the reader, whether it came before or while it
// waits, and whether or not the bell was quiet in between.
func TestWakes(t *testing.T) {
	b, other := pair(t)
	for i := range 2000 {
		quiet := i%3 == 0
		var sent sync.WaitGroup
		sent.Go(func() {
			if err := unix.Send(other, []byte("ding"), 0); err != nil {
				t.Error(err)
			}
		})
		if i%2 == 0 {
			sent.Wait()
		}
		if got, err := receive(b, quiet); got != "ding" || err != nil {
			t.Fatalf("message %d: %q, %v", i, got, err)
		}
		sent.Wait()
	}
}

// TestClose ends a reader that waits, and leaves no descriptor in use.
func TestClose(t *testing.T) {
	b, _ := pair(t)
	got := make(chan error)
	go func() {
		_, err := receive(b, false)
		got <- err
	}()
	if err := b.Close(); err != nil {
		t.Error(err)
	}
	if err := <-got; !errors.Is(err, os.ErrClosed) {
		t.Errorf("waiting: %v", err)
	}
	if err := b.Control(func(uintptr) { t.Error("used after it was closed") }); err == nil {
		t.Error("Control on a closed bell")
	}
}

// TestInterrupt ends a Wait that goes on or the next one, once, and loses no
// message.
func TestInterrupt(t *testing.T) {
	b, other := pair(t)
	for i := range 500 {
		var done sync.WaitGroup
		done.Go(b.Interrupt)
		if i%2 == 0 {
			done.Wait()
		}
		if _, err := receive(b, false); !errors.Is(err, os.ErrDeadlineExceeded) {
			t.Fatalf("interrupt %d: %v", i, err)
		}
		done.Wait()
		if err := unix.Send(other, []byte("ding"), 0); err != nil {
			t.Fatal(err)
		}
		if got, err := receive(b, false); got != "ding" || err != nil {
			t.Fatalf("message %d: %q, %v", i, got, err)
		}
	}
	b.Close()
	b.Interrupt()
}
