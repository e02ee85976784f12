package netstack

import (
	"context"
	"fmt"
	"io"
	"net"
	"net/netip"
	"sync"
	"testing"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/waiter"

	"overlayd/overlay/train"
)

// TestBudget: what a connection begins with, how much it may get, and that half of
// all is one source's at most.
func TestBudget(t *testing.T) {
	alice, bob := netip.MustParseAddr("172.18.0.11"), netip.MustParseAddr("172.18.0.12")
	b := newBudget(64 * roomFirst)
	open := func(src netip.Addr) int64 {
		room, ok := b.open(src)
		if !ok {
			return 0
		}
		return room
	}
	for i := range 5 { // a sixteenth, and the one that goes beyond it
		if got := open(alice); got != roomFirst {
			t.Errorf("connection %d begins with %d", i, got)
		}
	}
	if got := open(alice); got != roomLeast {
		t.Errorf("a source with much begins with %d", got)
	}
	if got := open(bob); got != roomFirst {
		t.Errorf("another source begins with %d", got)
	}
	for open(alice) > 0 {
	}
	if n := b.source[alice]; n > b.most/2 || n <= b.most/2-roomLeast {
		t.Errorf("alice has %d of %d", n, b.most)
	}
	if b.grow(alice, 1<<20) {
		t.Error("who has half gets more")
	}
	if !b.grow(bob, b.most/8) || b.grow(bob, b.most/8) {
		t.Error("the last quarter is not left for those that are to come")
	}
	if got := open(bob); got != roomLeast {
		t.Errorf("when much is in use one begins with %d", got)
	}
	for open(netip.Addr{}) > 0 { // this node's own
	}
	if b.used > b.most || b.used <= b.most-roomLeast {
		t.Errorf("%d of %d are in use", b.used, b.most)
	}
	b.give(alice, b.source[alice])
	b.give(bob, b.source[bob])
	if len(b.source) != 0 {
		t.Errorf("there is still %v", b.source)
	}
}

// TestCarries: a connection that began with little carries pieces of the usual size
// when it is used and there is room, which it gives back with the rest.
func TestCarries(t *testing.T) {
	const most = 16 * roomFirst
	b := newBudget(most)
	for b.used <= most/8 {
		b.account(netip.Addr{})
	}
	a := b.account(netip.Addr{})
	if n := a.carries(); n != pieceLeast {
		t.Errorf("one that is not used carries %d", n)
	}
	before := b.used
	a.send.Store(windowFirst)
	b.used = most*3/4 - 1
	if n := a.carries(); n != pieceLeast {
		t.Errorf("it carries %d without room", n)
	}
	b.used = before
	if n := a.carries(); n != pieceBytes || b.used != before+2*(pieceBytes-pieceLeast) {
		t.Errorf("it carries %d, and has %d bytes for it", n, b.used-before)
	}
	if a.carries(); b.used != before+2*(pieceBytes-pieceLeast) {
		t.Error("the room was taken again")
	}
	if a.close(); b.used != before-roomLeast {
		t.Errorf("%d bytes are left of it", b.used-before+roomLeast)
	}
	if a.carries(); b.used != before-roomLeast {
		t.Error("one that is over takes room")
	}
}

// inBounds reports whether a connection holds no more than its account says, and what is
// on its way through: a piece in each direction, and a train that has come.
func (a *account) inBounds() bool {
	o := a.ep.SocketOptions()
	was := o.GetSendBufferSize()
	o.SetSendBufferSize(a.send.Load()+pieceBytes+1, false)
	defer o.SetSendBufferSize(was, false)
	queued, err := a.ep.GetSockOptInt(tcpip.ReceiveQueueSizeOption)
	return err == nil && int64(queued) <= a.receive.Load()+train.MostBytes && a.ep.Readiness(waiter.WritableEvents) != 0
}

// TestMemory: connections that nobody reads at the other side, in either direction,
// hold no more than all may, however many there are and however wide they have grown;
// what does not fit is not answered, and there is room again when they end.
func TestMemory(t *testing.T) {
	const memory = 4 << 20
	p := newPair(t, Options{Memory: memory})
	port, accepted := hostListener(t)
	var near, far []net.Conn
	for {
		ctx, cancel := context.WithTimeout(t.Context(), 500*time.Millisecond)
		c, err := p.laptop.Dial(ctx, "tcp", netip.Addr{}, netip.AddrPortFrom(gateway, port))
		cancel()
		if err != nil {
			break
		}
		defer c.Close()
		near, far = append(near, c), append(far, take(t, accepted))
	}
	const want = (memory/2 - roomFirst) / roomLeast
	if n := len(near); n < want/2 || n > want+2 {
		t.Errorf("%d connections were made, want some %d", n, want)
	}
	if p.gateway.count.full.Load() == 0 || !p.gateway.Full(time.Now()) {
		t.Error("nothing says that there is no room")
	}
	// The first half is read at both sides until it is wide, and then nobody reads.
	var carrying sync.WaitGroup
	end := time.Now().Add(2 * time.Second)
	for i := range near {
		for _, way := range [][2]net.Conn{{near[i], far[i]}, {far[i], near[i]}} {
			way[0].SetWriteDeadline(end)
			carrying.Go(func() {
				buf := make([]byte, 64<<10)
				for {
					if _, err := way[0].Write(buf); err != nil {
						return
					}
				}
			})
			if i < len(near)/2 {
				carrying.Go(func() { io.CopyN(io.Discard, way[1], 2<<20) })
			}
		}
	}
	for time.Now().Before(end) {
		time.Sleep(5 * time.Millisecond)
		if used := p.gateway.budget.now(); used > memory/2 {
			t.Fatalf("%d bytes are in use of %d", used, memory/2)
		}
	}
	var sum int64
	for _, f := range p.gateway.flows.flows { // nothing new is written; what is on its way comes to rest
		until(t, fmt.Sprintf("%v holds no more than was counted", f.key), f.account.inBounds)
		sum += f.account.receive.Load() + f.account.send.Load()
	}
	t.Logf("%d connections, with buffers of %d bytes of %d", len(near), sum, memory/2)
	for i := range near {
		near[i].(*stream).SetLinger(0)
		near[i].Close()
		far[i].Close()
	}
	carrying.Wait()
	until(t, "all room is given back", func() bool { return p.gateway.budget.now() == 0 && p.laptop.budget.now() == 0 })
	c := p.mustDial(t, "tcp", netip.AddrPortFrom(gateway, port))
	defer take(t, accepted).Close()
	c.Close()
}

// TestUnacknowledged: a connection whose ends are both done, and whose last bytes
// have not arrived, keeps its place and its room.
func TestUnacknowledged(t *testing.T) {
	p := newPair(t, Options{})
	port, accepted := hostListener(t)
	c := p.mustDial(t, "tcp", netip.AddrPortFrom(gateway, port))
	host := take(t, accepted)
	if err := c.(*stream).CloseWrite(); err != nil {
		t.Fatal(err)
	}
	if _, err := io.Copy(io.Discard, host); err != nil {
		t.Fatal(err)
	}
	sent, err := io.Copy(host, io.LimitReader(zeroes{}, 256<<10)) // more than the laptop takes unread
	if err != nil {
		t.Fatal(err)
	}
	host.Close()
	until(t, "the gateway has read all", func() bool { return p.gateway.budget.now() > 0 })
	time.Sleep(100 * time.Millisecond)
	if n, used := p.gateway.flows.number(protoTCP), p.gateway.budget.now(); n != 1 || used == 0 {
		t.Errorf("%d flows with %d bytes, while the laptop has not read", n, used)
	}
	if n, err := io.Copy(io.Discard, c); err != nil || n != sent {
		t.Errorf("%d bytes came of %d: %v", n, sent, err)
	}
	c.Close()
	until(t, "its place is free", func() bool { return p.gateway.flows.number(protoTCP) == 0 && p.gateway.budget.now() == 0 })
}

type zeroes struct{}

func (zeroes) Read(b []byte) (int, error) { return len(b), nil }
