package splice

import (
	"context"
	"net"
	"sync"
	"sync/atomic"
	"time"
)

const (
	// LongestDatagram is what UDP carries over IPv4.
	LongestDatagram = 65507
	// FlowIdle is how long a Flow goes on without a datagram, as long as the filter
	// keeps a UDP flow at least.
	FlowIdle = 2 * time.Minute
	// flowWaiting bounds the datagrams of one that wait for its socket.
	flowWaiting = 8
)

// Flow is the datagrams between a client, who is its owner's business, and one
// remote socket.
type Flow struct {
	Waiting chan []byte // for the remote; never closed

	used atomic.Int64 // when the last datagram passed, in ns since 1970
}

// NewFlow makes one that is as good as used now.
func NewFlow() *Flow {
	f := &Flow{Waiting: make(chan []byte, flowWaiting)}
	f.use()
	return f
}

func (f *Flow) use() { f.used.Store(time.Now().UnixNano()) }

// Put lets a datagram, which is the flow's from then on, wait for the remote, and
// reports whether it had room.
func (f *Flow) Put(datagram []byte) bool {
	select {
	case f.Waiting <- datagram:
		f.use()
		return true
	default:
		return false
	}
}

// Before reports whether f was used before another.
func (f *Flow) Before(other *Flow) bool { return f.used.Load() < other.used.Load() }

// Carry sends what waits and hands what comes back to answer, behind head, until
// ctx ends, nothing has passed for long, or the remote says that it takes no
// datagrams, which Carry reports. taken hears of each that waits no more. The remote
// is closed when Carry returns; what answer gets is good until it returns.
func (f *Flow) Carry(ctx context.Context, remote net.Conn, head []byte, taken, answer func([]byte)) (refused bool) {
	stop := context.AfterFunc(ctx, func() { remote.Close() })
	defer stop()
	ended := make(chan struct{})
	var back sync.WaitGroup
	defer back.Wait()
	defer remote.Close()
	back.Go(func() {
		defer close(ended)
		f.answers(remote, head, answer)
	})
	idle := time.NewTimer(FlowIdle)
	defer idle.Stop()
	for {
		select {
		case <-ctx.Done():
			return false
		case <-ended:
			return ctx.Err() == nil
		case <-idle.C:
			left := FlowIdle - time.Since(time.Unix(0, f.used.Load()))
			if left <= 0 {
				return false
			}
			idle.Reset(left)
		case datagram := <-f.Waiting:
			taken(datagram)
			remote.Write(datagram) // an error shows in answers, too
		}
	}
}

// answers brings what the remote says, until it is closed or refuses.
func (f *Flow) answers(remote net.Conn, head []byte, answer func([]byte)) {
	buf := make([]byte, len(head)+LongestDatagram)
	copy(buf, head)
	for {
		n, err := remote.Read(buf[len(head):])
		if err != nil {
			return
		}
		f.use()
		answer(buf[:len(head)+n])
	}
}
