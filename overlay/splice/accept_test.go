package splice

import (
	"context"
	"errors"
	"log/slog"
	"net"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"
)

// troubled is a listener whose connections and errors are given to it.
type troubled struct {
	next   chan any // net.Conn or error
	once   sync.Once
	closed chan struct{}
}

func (l *troubled) Accept() (net.Conn, error) {
	select {
	case v := <-l.next:
		if err, ok := v.(error); ok {
			return nil, err
		}
		return v.(net.Conn), nil
	case <-l.closed:
		return nil, net.ErrClosed
	}
}

func (l *troubled) Close() error   { l.once.Do(func() { close(l.closed) }); return nil }
func (l *troubled) Addr() net.Addr { return &net.TCPAddr{IP: net.IPv4(127, 0, 0, 1), Port: 80} }

// TestAccept: a shortage is waited for, said once, and over with the next connection;
// the end of the context is no error, and closes the listener.
func TestAccept(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		l := &troubled{next: make(chan any), closed: make(chan struct{})}
		var said strings.Builder
		log := slog.New(slog.NewTextHandler(&said, nil))
		ctx, cancel := context.WithCancel(t.Context())
		taken := 0
		done := make(chan error, 1)
		go func() { done <- Accept(ctx, l, log, func(c net.Conn) { taken++; c.Close() }) }()
		near, far := net.Pipe()
		defer far.Close()
		began := time.Now()
		for _, v := range []any{near, syscall.EMFILE, syscall.ENFILE, near, syscall.ECONNABORTED} {
			l.next <- v
		}
		if took := time.Since(began); took != 2*acceptAgain {
			t.Errorf("two that failed cost %v, want %v", took, 2*acceptAgain)
		}
		synctest.Wait()
		if warned := strings.Count(said.String(), "connections wait"); taken != 2 || warned != 2 {
			t.Errorf("%d taken, %d warnings:\n%s", taken, warned, &said)
		}
		cancel()
		if err := <-done; err != nil {
			t.Errorf("the end of the context: %v", err)
		}
		if _, err := l.Accept(); !errors.Is(err, net.ErrClosed) {
			t.Error("the listener is still open")
		}
	})
}

// TestAcceptClosed: a listener that somebody else closed is an error.
func TestAcceptClosed(t *testing.T) {
	l := &troubled{closed: make(chan struct{})}
	l.Close()
	if err := Accept(t.Context(), l, slog.New(slog.DiscardHandler), func(net.Conn) {}); !errors.Is(err, net.ErrClosed) {
		t.Error(err)
	}
}
