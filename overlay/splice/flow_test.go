package splice

import (
	"context"
	"net"
	"testing"
	"testing/synctest"
	"time"
)

// TestFlow: datagrams go there and come back behind the head, each keeps the flow,
// and it ends after two minutes without one, at the end of the context, or when the
// remote is gone, which alone counts as refused.
func TestFlow(t *testing.T) {
	for name, c := range map[string]struct {
		end     func(remote net.Conn, cancel func())
		refused bool
		after   time.Duration
	}{
		"silence":      {func(net.Conn, func()) {}, false, FlowIdle},
		"the context":  {func(_ net.Conn, cancel func()) { cancel() }, false, 0},
		"it is no one": {func(remote net.Conn, _ func()) { remote.Close() }, true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				near, remote := net.Pipe()
				defer remote.Close()
				ctx, cancel := context.WithCancel(t.Context())
				defer cancel()
				f, answers, taken := NewFlow(), make(chan string, 1), 0
				done := make(chan bool, 1)
				go func() {
					done <- f.Carry(ctx, near, []byte("head "), func([]byte) { taken++ }, func(b []byte) { answers <- string(b) })
				}()
				buf := make([]byte, 10)
				for range 3 {
					time.Sleep(FlowIdle - time.Second)
					if !f.Put([]byte("question")) {
						t.Fatal("there is no room")
					}
					if n, err := remote.Read(buf); err != nil || string(buf[:n]) != "question" {
						t.Fatalf("the remote hears %q, %v", buf[:n], err)
					}
					time.Sleep(FlowIdle - time.Second)
					if _, err := remote.Write([]byte("answer")); err != nil {
						t.Fatal(err)
					}
					if got := <-answers; got != "head answer" {
						t.Fatalf("the client hears %q", got)
					}
				}
				last := time.Now()
				c.end(remote, cancel)
				if refused := <-done; refused != c.refused || time.Since(last) != c.after || taken != 3 {
					t.Errorf("refused %t after %v, %d taken", refused, time.Since(last), taken)
				}
			})
		})
	}
}

// TestFlowIsBounded: what does not fit is not kept, and does not count as use.
func TestFlowIsBounded(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		f, other := NewFlow(), NewFlow()
		for range flowWaiting {
			if !f.Put(nil) {
				t.Fatal("there is no room")
			}
		}
		time.Sleep(time.Second)
		if f.Put(nil) || f.Before(other) || other.Before(f) {
			t.Error("one too many was taken, or counts as use")
		}
		<-f.Waiting
		if !f.Put(nil) || !other.Before(f) {
			t.Error("a place that is free again is not used")
		}
	})
}
