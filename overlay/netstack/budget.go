package netstack

import (
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/transport/tcp"
	"gvisor.dev/gvisor/pkg/waiter"
)

const (
	// defaultMemory is what all TCP connections may hold: a few dozens of them at
	// the full width of the window, or all that there may be with the least.
	defaultMemory = 512 << 20
	// windowLeast is what a connection may hold, in either direction, when there
	// are many; more when it is read and there is room.
	windowLeast = 16 << 10
	// pieceLeast is what it carries at once then.
	pieceLeast = 4 << 10
	// settleAgain is how late the end of a connection is seen at most.
	settleAgain = 250 * time.Millisecond
)

// What a connection has room for at first, with the pieces that are on their way
// through while its other side takes nothing more: plenty while an eighth of all
// memory is in use at most, a sixteenth by its source; and else a little.
const (
	roomFirst = 2 * (windowFirst + pieceBytes)
	roomLeast = 2 * (windowLeast + pieceLeast)
)

// budget bounds what all TCP connections of a stack hold. What a connection may
// hold is taken from it beforehand, so the sum is never more.
type budget struct {
	most int64

	mu     sync.Mutex // guards the rest
	used   int64
	source map[netip.Addr]int64
}

func newBudget(most int64) *budget {
	return &budget{most: most, source: map[netip.Addr]int64{}}
}

// open takes what a connection begins with. False: there is nothing left, or its
// source has half of all; programs of this node, the zero source, may have all.
func (b *budget) open(src netip.Addr) (room int64, ok bool) {
	b.mu.Lock()
	defer b.mu.Unlock()
	room = roomLeast
	if b.used <= b.most/8 && (!src.IsValid() || b.source[src] <= b.most/16) {
		room = roomFirst
	}
	return room, b.take(src, room, b.most)
}

// grow takes more for a connection that could use it. The last quarter is left for
// those that are to come.
func (b *budget) grow(src netip.Addr, n int64) bool {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.take(src, n, b.most*3/4)
}

// take takes n of so much; mu is held.
func (b *budget) take(src netip.Addr, n, most int64) bool {
	if b.used+n > most || src.IsValid() && b.source[src]+n > most/2 {
		return false
	}
	b.used += n
	if src.IsValid() {
		b.source[src] += n
	}
	return true
}

// give gives back.
func (b *budget) give(src netip.Addr, n int64) {
	b.mu.Lock()
	defer b.mu.Unlock()
	b.used -= n
	if !src.IsValid() {
		return
	}
	if b.source[src] -= n; b.source[src] <= 0 {
		delete(b.source, src)
	}
}

func (b *budget) now() int64 {
	b.mu.Lock()
	defer b.mu.Unlock()
	return b.used
}

// account is what one connection may hold.
type account struct {
	b   *budget
	src netip.Addr

	receive, send atomic.Int64 // what its buffers may be
	piece         atomic.Int64 // what it carries at once

	mu sync.Mutex // guards the rest
	ep tcpip.Endpoint
	of int64 // what it has of the budget; 0: it is closed
}

// account makes one for a connection from a source; nil: there is no room.
func (b *budget) account(src netip.Addr) *account {
	room, ok := b.open(src)
	if !ok {
		return nil
	}
	a := &account{b: b, src: src, of: room}
	window, piece := int64(windowFirst), int64(pieceBytes)
	if room == roomLeast {
		window, piece = windowLeast, pieceLeast
	}
	a.piece.Store(piece)
	a.receive.Store(window)
	a.send.Store(window)
	return a
}

// holds says whose buffers the account is for.
func (a *account) holds(ep tcpip.Endpoint) {
	a.mu.Lock()
	defer a.mu.Unlock()
	a.ep = ep
	ep.SocketOptions().SetReceiveBufferSize(a.receive.Load(), false) // without taking its tuning from the stack
	ep.SocketOptions().SetSendBufferSize(a.send.Load(), false)
}

// received is to be called when the stack may have made the receive buffer larger.
func (a *account) received() {
	o := a.ep.SocketOptions()
	if size := o.GetReceiveBufferSize(); size > a.receive.Load() && !a.more(&a.receive, size) {
		o.SetReceiveBufferSize(a.receive.Load(), false)
	}
}

// sends is to be called before something is put into the send buffer, which the
// stack makes larger as it likes.
func (a *account) sends() {
	o := a.ep.SocketOptions()
	if size := o.GetSendBufferSize(); size > a.send.Load() && !a.more(&a.send, size) {
		o.SetSendBufferSize(a.send.Load(), false)
	}
}

// carries returns how much the connection carries at once. One that began with little
// carries as much as any other as soon as a buffer of its has grown, which says that it
// is used, and there is room.
func (a *account) carries() int {
	if a.piece.Load() < pieceBytes && max(a.receive.Load(), a.send.Load()) > windowLeast {
		a.widen()
	}
	return int(a.piece.Load())
}

// widen takes the room for pieces of the usual size, in both directions.
func (a *account) widen() {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := 2 * (pieceBytes - a.piece.Load())
	if a.of == 0 || n == 0 || !a.b.grow(a.src, n) {
		return
	}
	a.of += n
	a.piece.Store(pieceBytes)
}

// more lets a buffer be of a size, if there is room.
func (a *account) more(buffer *atomic.Int64, size int64) bool {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := size - buffer.Load()
	if a.of == 0 || n > 0 && !a.b.grow(a.src, n) {
		return false
	}
	a.of += n
	buffer.Store(size)
	return true
}

// shrink takes back what the send buffer of a silent connection had room for, if
// all but a little of it has arrived. The receive buffer keeps its room: what came out
// of order and waits in there cannot be seen.
func (a *account) shrink() {
	a.mu.Lock()
	defer a.mu.Unlock()
	n := a.send.Load() - windowLeast
	if a.of == 0 || a.ep == nil || n <= 0 {
		return
	}
	o := a.ep.SocketOptions()
	had := o.GetSendBufferSize()
	o.SetSendBufferSize(windowLeast, false)
	if a.ep.Readiness(waiter.WritableEvents) == 0 { // it holds more
		o.SetSendBufferSize(had, false)
	} else {
		a.send.Store(windowLeast)
		a.of -= n
		a.b.give(a.src, n)
	}
	if w, ok := a.ep.(interface{ WakeupWriters() }); ok {
		w.WakeupWriters() // who found it full just now
	}
}

// close gives everything back.
func (a *account) close() {
	a.mu.Lock()
	defer a.mu.Unlock()
	if a.of > 0 {
		a.b.give(a.src, a.of)
	}
	a.of = 0
}

// settled reports whether nothing of a connection is left in its buffers.
func settled(ep tcpip.Endpoint) bool {
	switch tcp.EndpointState(ep.State()) {
	case tcp.StateClose, tcp.StateTimeWait, tcp.StateError:
		return true
	}
	return false
}

// settle waits until what was sent has arrived, for so long as a connection is kept
// that is half closed, or until stop is closed. Then nothing of it is held.
func settle(ep tcpip.Endpoint, wq *waiter.Queue, stop <-chan struct{}) {
	if settled(ep) {
		return
	}
	entry, moved := waiter.NewChannelEntry(waiter.WritableEvents | waiter.EventErr | waiter.EventHUp)
	wq.EventRegister(&entry)
	defer wq.EventUnregister(&entry)
	again := time.NewTicker(settleAgain) // the stack does not tell of every change
	defer again.Stop()
	late := time.NewTimer(idleHalf)
	defer late.Stop()
	for !settled(ep) {
		select {
		case <-moved:
		case <-again.C:
		case <-stop:
			ep.Abort()
			return
		case <-late.C:
			ep.Abort()
			return
		}
	}
}
