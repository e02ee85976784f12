package underlay

import (
	"errors"
	"fmt"
	"net/netip"
	"syscall"

	"overlayd/overlay/relay"
	"overlayd/overlay/udp"
)

// line is one UDP socket, with writers for those who send at the same time.
type line struct {
	sock    *udp.Socket
	writers chan *udp.Writer // idle ones; never closed
}

// idleWriters is how many writers are kept: one per goroutine that sends at the
// same time is enough, and that is bounded by the cores.
const idleWriters = 16

func newLine(sock *udp.Socket) *line {
	return &line{sock: sock, writers: make(chan *udp.Writer, idleWriters)}
}

func (l *line) writer() *udp.Writer {
	select {
	case w := <-l.writers:
		return w
	default:
		return l.sock.NewWriter()
	}
}

func (l *line) release(w *udp.Writer) {
	select {
	case l.writers <- w:
	default:
	}
}

// send sends a batch to one address and returns how many the kernel did not take.
func (l *line) send(dst netip.AddrPort, bufs [][]byte) (dropped int) {
	w := l.writer()
	for rest := bufs; len(rest) > 0; {
		n := run(rest)
		w.Add(dst, len(rest[0]), rest[:n]...)
		rest = rest[n:]
	}
	dropped = w.Flush()
	l.release(w)
	return dropped
}

// lines are the open sockets. The zero value is none.
type lines struct {
	v4, v6 *line // nil: the machine lacks the family
}

func (ls *lines) all() []*line {
	var all []*line
	for _, l := range []*line{ls.v4, ls.v6} {
		if l != nil {
			all = append(all, l)
		}
	}
	return all
}

// to returns the line of the address's family, nil when there is none.
func (ls *lines) to(addr netip.Addr) *line {
	if addr.Is4() {
		return ls.v4
	}
	return ls.v6
}

func (ls *lines) close() (err error) {
	for _, l := range ls.all() {
		err = errors.Join(err, l.sock.Close())
	}
	return err
}

// portTries bounds the search for a port that is free in both families.
const portTries = 16

// openLines opens a socket of each family the machine has, on the same port.
// With port 0 that is tried first, then any.
func openLines(port, try uint16, mark uint32) (*lines, uint16, error) {
	var err error
	for i := range portTries {
		p := port
		if p == 0 && i == 0 {
			p = try
		}
		var ls *lines
		var got uint16
		if ls, got, err = openPair(p, mark); err == nil {
			return ls, got, nil
		}
		if port != 0 || !errors.Is(err, syscall.EADDRINUSE) {
			break
		}
	}
	return nil, 0, err
}

func openPair(port uint16, mark uint32) (*lines, uint16, error) {
	ls := &lines{}
	o := udp.Options{Mark: mark}
	v4, err4 := udp.Listen(netip.AddrPortFrom(netip.IPv4Unspecified(), port), o)
	if err4 == nil {
		ls.v4 = newLine(v4)
		port = v4.LocalAddr().Port()
	} else if !familyMissing(err4) {
		return nil, 0, err4
	}
	v6, err6 := udp.Listen(netip.AddrPortFrom(netip.IPv6Unspecified(), port), o)
	switch {
	case err6 == nil:
		ls.v6 = newLine(v6)
		port = v6.LocalAddr().Port()
	case !familyMissing(err6):
		ls.close()
		return nil, 0, err6
	case err4 != nil:
		return nil, 0, fmt.Errorf("neither IPv4 nor IPv6: %w", err4)
	}
	return ls, port, nil
}

func familyMissing(err error) bool {
	return errors.Is(err, syscall.EAFNOSUPPORT) || errors.Is(err, syscall.EADDRNOTAVAIL)
}

// carrier takes a batch of WireGuard's datagrams to the node with a label. It
// waits for no longer than streamPatience; bytes 1..3 of each are zero before and
// after.
type carrier interface {
	send(label relay.Label, bufs [][]byte) (dropped int)
}

// udpCarrier goes by UDP to a relay.
type udpCarrier struct {
	leg  *leg
	line *line
	dst  netip.AddrPort
}

func (c *udpCarrier) send(label relay.Label, bufs [][]byte) (dropped int) {
	c.leg.note(sentMark)
	for _, p := range bufs {
		stamp(p, label)
	}
	dropped = c.line.send(c.dst, bufs)
	for _, p := range bufs {
		stamp(p, 0) // WireGuard may send the same buffer again
	}
	return dropped
}

// run returns how many of the first datagrams make one train: equally long, the
// last perhaps shorter.
func run(bufs [][]byte) int {
	size := len(bufs[0])
	for i, p := range bufs[1:] {
		if len(p) > size {
			return i + 1
		}
		if len(p) < size {
			return i + 2
		}
	}
	return len(bufs)
}

// stamp puts a label into a datagram's bytes 1..3.
func stamp(p []byte, label relay.Label) {
	p[1], p[2], p[3] = byte(label), byte(label>>8), byte(label>>16)
}

// labelOf is the reverse of stamp.
func labelOf(p []byte) relay.Label {
	return relay.Label(p[1]) | relay.Label(p[2])<<8 | relay.Label(p[3])<<16
}

// directCarrier goes to an address of the peer's own, as plain WireGuard.
type directCarrier struct {
	line  *line
	dst   netip.AddrPort
	tally *tally
}

func (c *directCarrier) send(_ relay.Label, bufs [][]byte) (dropped int) {
	c.tally.sent.Add(uint64(len(bufs)))
	return c.line.send(c.dst, bufs)
}

// doubleCarrier goes both ways. What arrives twice, WireGuard drops.
type doubleCarrier struct {
	relayed carrier
	direct  *directCarrier
}

func (c *doubleCarrier) send(label relay.Label, bufs [][]byte) (dropped int) {
	dropped = c.relayed.send(label, bufs)
	c.direct.send(label, bufs) // only a trial: what it loses is not lost
	return dropped
}

// portCarrier hands over to the relay in the same process.
type portCarrier struct{ port *relay.Port }

func (c *portCarrier) send(label relay.Label, bufs [][]byte) (dropped int) {
	c.port.Send(label, bufs)
	return 0
}
