package forward

import (
	"bytes"
	"context"
	"net/netip"

	"overlayd/overlay/splice"
)

// mostClients bounds the UDP clients of one forward: each has a socket and a
// buffer of 64 KiB.
const mostClients = 256

// udpClient is an address that sends datagrams to a forward.
type udpClient struct {
	at   netip.AddrPort
	flow *splice.Flow
	stop context.CancelFunc
}

// serveUDP takes datagrams until ctx ends, and closes the socket then.
func (f *Forward) serveUDP(ctx context.Context) error {
	stop := context.AfterFunc(ctx, func() { f.socket.Close() })
	defer stop()
	buf := make([]byte, splice.LongestDatagram)
	for {
		n, from, err := f.socket.ReadFromUDPAddrPort(buf)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			continue // an error about one datagram: its client's port was closed
		}
		c := f.client(ctx, netip.AddrPortFrom(from.Addr().Unmap(), from.Port()))
		if c == nil {
			continue
		}
		if !c.flow.Put(bytes.Clone(buf[:n])) {
			f.full.Add(1)
		}
	}
}

// client returns the one with an address, and makes it if need be; the oldest
// goes when there are too many. Nil: it may not use the forward.
func (f *Forward) client(ctx context.Context, from netip.AddrPort) *udpClient {
	f.mu.Lock()
	defer f.mu.Unlock()
	if c := f.clients[from]; c != nil {
		return c
	}
	if !f.admits(from) {
		return nil
	}
	if len(f.clients) >= mostClients {
		f.dropOldest()
	}
	ctx, stop := context.WithCancel(ctx)
	c := &udpClient{at: from, flow: splice.NewFlow(), stop: stop}
	f.clients[from] = c
	f.accepted.Add(1)
	f.running.Go(func() {
		f.carryUDP(ctx, c)
		f.forget(c)
	})
	return c
}

func (f *Forward) dropOldest() {
	var oldest *udpClient
	for _, c := range f.clients {
		if oldest == nil || c.flow.Before(oldest.flow) {
			oldest = c
		}
	}
	oldest.stop()
	delete(f.clients, oldest.at)
	f.full.Add(1)
}

func (f *Forward) forget(c *udpClient) {
	c.stop()
	f.mu.Lock()
	defer f.mu.Unlock()
	if f.clients[c.at] == c {
		delete(f.clients, c.at)
	}
}

// carryUDP sends a client's datagrams to the target and brings the answers, until
// nothing has passed for long or the target refuses them.
func (f *Forward) carryUDP(ctx context.Context, c *udpClient) {
	remote, err := f.dial(ctx)
	if err != nil {
		return
	}
	c.flow.Carry(ctx, remote, nil, func([]byte) {}, func(b []byte) {
		f.socket.WriteToUDPAddrPort(b, c.at) // lost when the client is gone
	})
}
