//go:build linux

package lab

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"math/rand/v2"
	"net"
	"sort"
	"sync"
	"time"
)

// Train asks an address for echoes all the time, whatever becomes of them: no
// route and no answer are outages like any other.
type Train struct {
	conn net.PacketConn // these are set by Echoes, then read-only
	to   net.Addr
	id   uint16
	stop chan struct{} // closed by Close
	wg   sync.WaitGroup

	mu   sync.Mutex // guards what follows
	sent []time.Time
	got  []time.Time // by number; zero: no answer so far
}

// trainLength is how many echoes in a row count as traffic that is back.
const trainLength = 10

// Echoes starts a train on the machine: a request every so often, until Close.
func (m *Machine) Echoes(addr string, every time.Duration) (*Train, error) {
	conn, err := m.ListenPacket("ip4:icmp", "0.0.0.0")
	if err != nil {
		return nil, err
	}
	t := &Train{conn: conn, to: &net.IPAddr{IP: net.ParseIP(addr)}, id: uint16(rand.Uint32()), stop: make(chan struct{})}
	t.wg.Go(func() { t.ask(every) })
	t.wg.Go(t.listen)
	return t, nil
}

// Close ends the train.
func (t *Train) Close() {
	close(t.stop)
	t.conn.Close()
	t.wg.Wait()
}

// RFC 792.
const (
	echoRequest = 8
	echoReply   = 0
)

func (t *Train) ask(every time.Duration) {
	tick := time.NewTicker(every)
	defer tick.Stop()
	for n := 0; ; n++ {
		packet := []byte{echoRequest, 0, 0, 0, 0, 0, 0, 0}
		binary.BigEndian.PutUint16(packet[4:], t.id)
		binary.BigEndian.PutUint16(packet[6:], uint16(n))
		binary.BigEndian.PutUint16(packet[2:], checksum(packet))
		t.mu.Lock()
		t.sent = append(t.sent, time.Now())
		t.got = append(t.got, time.Time{})
		t.mu.Unlock()
		_, _ = t.conn.WriteTo(packet, t.to) // see Train
		select {
		case <-t.stop:
			return
		case <-tick.C:
		}
	}
}

func (t *Train) listen() {
	buf := make([]byte, 1500)
	for {
		n, _, err := t.conn.ReadFrom(buf)
		if errors.Is(err, net.ErrClosed) {
			return
		}
		if err != nil || n < 8 || buf[0] != echoReply || binary.BigEndian.Uint16(buf[4:]) != t.id {
			continue
		}
		now := time.Now()
		t.mu.Lock()
		// The number on the wire has 16 bits: it is the last request with them.
		last := len(t.sent) - 1
		i := last - int(uint16(last)-binary.BigEndian.Uint16(buf[6:]))
		if i >= 0 && t.got[i].IsZero() {
			t.got[i] = now
		}
		t.mu.Unlock()
	}
}

// checksum is the Internet's (RFC 1071), of an even number of bytes.
func checksum(b []byte) uint16 {
	var sum uint32
	for i := 0; i < len(b); i += 2 {
		sum += uint32(binary.BigEndian.Uint16(b[i:]))
	}
	for sum>>16 != 0 {
		sum = sum&0xffff + sum>>16
	}
	return ^uint16(sum)
}

// since returns the number of the first request after a moment; the caller
// holds mu.
func (t *Train) since(after time.Time) int {
	return sort.Search(len(t.sent), func(i int) bool { return !t.sent[i].Before(after) })
}

// Back waits for the first of ten echoes in a row that were asked for after a
// moment, and returns when it came.
func (t *Train) Back(ctx context.Context, after time.Time) (at time.Time, err error) {
	err = Until(ctx, func(context.Context) error {
		t.mu.Lock()
		defer t.mu.Unlock()
		run := 0
		for i := t.since(after); i < len(t.sent); i++ {
			if t.got[i].IsZero() {
				run = 0
				continue
			}
			if run == 0 {
				at = t.got[i]
			}
			if run++; run == trainLength {
				return nil
			}
		}
		return fmt.Errorf("no %d echoes in a row of %s since %v", trainLength, t.to, time.Since(after).Round(time.Millisecond))
	})
	return at, err
}

// Lost returns how many of the requests sent between two moments have no echo,
// of how many. The latest ones may still be on their way.
func (t *Train) Lost(from, to time.Time) (lost, all int) {
	t.mu.Lock()
	defer t.mu.Unlock()
	for i := t.since(from); i < len(t.sent) && !t.sent[i].After(to); i++ {
		all++
		if t.got[i].IsZero() {
			lost++
		}
	}
	return lost, all
}

// Gap returns the longest time, among the requests sent between two moments, in
// which none was answered: from the first of them that was lost to the next
// one that was not.
func (t *Train) Gap(from, to time.Time) (longest time.Duration) {
	t.mu.Lock()
	defer t.mu.Unlock()
	var lost time.Time // the first of those in a row; zero: none is
	for i := t.since(from); i < len(t.sent) && !t.sent[i].After(to); i++ {
		switch {
		case t.got[i].IsZero() && lost.IsZero():
			lost = t.sent[i]
		case !t.got[i].IsZero() && !lost.IsZero():
			longest = max(longest, t.sent[i].Sub(lost))
			lost = time.Time{}
		}
	}
	if !lost.IsZero() {
		longest = max(longest, to.Sub(lost))
	}
	return longest
}
