package forward

import (
	"context"
	"net"
	"net/netip"
	"sync/atomic"
	"time"
)

const (
	// mostClients bounds the UDP clients of one forward: each has a socket and a
	// buffer of 64 KiB.
	mostClients = 256
	// mostWaiting bounds the datagrams of one that wait for its socket.
	mostWaiting = 8
	// clientIdle is how long a client is kept without a datagram, as long as the
	// filter keeps a UDP flow at least.
	clientIdle = 2 * time.Minute
	// longestUDP is what UDP carries over IPv4.
	longestUDP = 65507
)

// udpClient is an address that sends datagrams to a forward.
type udpClient struct {
	at      netip.AddrPort
	waiting chan []byte // never closed
	stop    context.CancelFunc
	used    atomic.Int64 // when the last datagram passed, in ns since 1970
}

// serveUDP takes datagrams until the socket is closed.
func (f *Forward) serveUDP(ctx context.Context) error {
	buf := make([]byte, longestUDP)
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
		c.used.Store(time.Now().UnixNano())
		select {
		case c.waiting <- append([]byte(nil), buf[:n]...):
		default:
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
	c := &udpClient{at: from, waiting: make(chan []byte, mostWaiting), stop: stop}
	c.used.Store(time.Now().UnixNano())
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
		if oldest == nil || c.used.Load() < oldest.used.Load() {
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
	stop := context.AfterFunc(ctx, func() { remote.Close() })
	defer stop()
	refused := make(chan struct{})
	go func() {
		defer close(refused)
		f.answers(c, remote)
	}()
	defer func() { <-refused }()
	defer remote.Close()
	idle := time.NewTimer(clientIdle)
	defer idle.Stop()
	for {
		select {
		case <-ctx.Done():
			return
		case <-refused:
			return
		case <-idle.C:
			left := clientIdle - time.Since(time.Unix(0, c.used.Load()))
			if left <= 0 {
				return
			}
			idle.Reset(left)
		case data := <-c.waiting:
			remote.Write(data) // an error shows in answers, too
		}
	}
}

// answers brings what the target sends, until its socket is closed or says that
// nobody is there.
func (f *Forward) answers(c *udpClient, remote net.Conn) {
	buf := make([]byte, longestUDP)
	for {
		n, err := remote.Read(buf)
		if err != nil {
			return
		}
		c.used.Store(time.Now().UnixNano())
		f.socket.WriteToUDPAddrPort(buf[:n], c.at) // lost when the client is gone
	}
}
