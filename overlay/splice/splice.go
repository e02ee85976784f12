package splice

import (
	"context"
	"io"
	"net"
	"sync"
)

// Tally is what a join came to.
type Tally struct {
	Sent     int64 // bytes from a to b
	Received int64 // bytes from b to a
	Err      error // why it was torn; nil: both ends said that they were done
}

// halfCloser is a connection that can end one direction.
type halfCloser interface{ CloseWrite() error }

// lingerer is a connection that can be reset.
type lingerer interface{ SetLinger(sec int) error }

// Join carries bytes between a and b until both ends are done, one of them is
// torn, or ctx ends. Both connections are closed when it returns.
func Join(ctx context.Context, a, b net.Conn) Tally {
	j := joined{a: a, b: b}
	defer j.close()
	stop := context.AfterFunc(ctx, func() { j.tear(context.Cause(ctx)) })
	defer stop()
	var t Tally
	var back sync.WaitGroup
	back.Go(func() { t.Received = j.carry(a, b) })
	t.Sent = j.carry(b, a)
	back.Wait()
	t.Err = j.why()
	return t
}

// joined are two connections on their way to their end.
type joined struct {
	a, b net.Conn

	mu   sync.Mutex // guards what follows
	over bool       // both are being closed, and what fails now fails for that
	torn error      // why; nil: an end could not be told alone
}

// carry copies from one to the other and tells the end.
func (j *joined) carry(to, from net.Conn) int64 {
	n, err := io.Copy(to, from)
	if err != nil {
		j.tear(err)
		return n
	}
	if h, ok := to.(halfCloser); ok {
		// An error means that the other end is gone already, which the other
		// direction sees by itself.
		h.CloseWrite()
		return n
	}
	j.tear(nil) // there is no half of it
	return n
}

// tear resets both connections. The first reason counts.
func (j *joined) tear(why error) {
	j.mu.Lock()
	first := !j.over
	if first {
		j.over, j.torn = true, why
	}
	j.mu.Unlock()
	if first && why != nil {
		for _, c := range []net.Conn{j.a, j.b} {
			if l, ok := c.(lingerer); ok {
				l.SetLinger(0) // fails on a connection that is over, which is what we want
			}
		}
	}
	j.close()
}

func (j *joined) close() {
	j.a.Close()
	j.b.Close()
}

func (j *joined) why() error {
	j.mu.Lock()
	defer j.mu.Unlock()
	return j.torn
}
