package netstack

import (
	"net/netip"
	"os"

	"golang.zx2c4.com/wireguard/tun"
	"gvisor.dev/gvisor/pkg/buffer"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"

	"overlayd/overlay/train"
)

const (
	// batch is how many packets Read gives at most: two trains of the usual
	// length, as many as WireGuard's sockets take.
	batch = 128
	// enough packets are given to WireGuard without looking for more.
	enough = 32
)

// Read waits for packets and writes each to one of bufs, from offset on. After
// an Interrupt there may be none. Its only error is os.ErrClosed. One goroutine
// reads.
func (s *Stack) Read(bufs [][]byte, sizes []int, offset int) (n int, err error) {
	for n < len(bufs) {
		if s.split.More() {
			if sizes[n] = s.split.Cut(bufs[n][offset:]); sizes[n] > 0 {
				n++
			}
			continue
		}
		if n >= enough {
			break
		}
		p, ok := s.link.pop(n == 0)
		if !ok && n == 0 {
			return 0, os.ErrClosed
		}
		if p == nil {
			break
		}
		if s.toSelf(p) {
			s.link.deliver(stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(p.ToView())}))
			p.DecRef()
			continue
		}
		if p.GSOOptions.Type == stack.GSONone {
			if sizes[n] = gather(bufs[n][offset:], p); sizes[n] > 0 {
				n++
			}
		} else {
			s.load(p)
		}
		p.DecRef()
	}
	return n, nil
}

// toSelf reports whether the stack sends a packet to itself. It cannot tell,
// when it takes packets for others as well.
func (s *Stack) toSelf(p *stack.PacketBuffer) bool {
	h := p.NetworkHeader().Slice()
	if len(h) < header.IPv4MinimumSize {
		return false
	}
	dst := netip.AddrFrom4([4]byte(h[16:20]))
	for _, own := range s.state.Load().Addrs {
		if own == dst {
			return true
		}
	}
	return false
}

// load makes a packet the splitter's: a train, or one that only lacks its sum.
func (s *Stack) load(p *stack.PacketBuffer) {
	g := &p.GSOOptions
	o := train.Offload{NeedsSum: g.NeedsCsum, SumStart: g.L3HdrLen, SumAt: g.CsumOffset}
	if p.Data().Size() > int(g.MSS) {
		o.Kind, o.Segment = train.TCP4, g.MSS
	}
	o.Put((*[train.HeaderSize]byte)(s.frame))
	n := gather(s.frame[train.HeaderSize:], p)
	_ = s.split.Load(s.frame[:train.HeaderSize+n]) // the stack makes no malformed ones
}

// gather copies a packet to b, and returns its length; 0 when it does not fit.
func gather(b []byte, p *stack.PacketBuffer) (n int) {
	if p.Size() > len(b) {
		return 0
	}
	views, skip := p.AsViewList()
	for v := views.Front(); v != nil; v = v.Next() {
		part := v.AsSlice()
		if skip >= len(part) {
			skip -= len(part)
			continue
		}
		n += copy(b[n:], part[skip:])
		skip = 0
	}
	return n
}

// Write gives packets to the stack, each in one of bufs from offset on. Those
// whose checksum is wrong are dropped. Any number of goroutines write.
func (s *Stack) Write(bufs [][]byte, offset int) (int, error) {
	j := s.joiners.Get().(*train.Joiner)
	defer s.joiners.Put(j)
	for _, b := range bufs {
		if len(b) > offset && b[offset]>>4 == 4 && !s.expired(b[offset:]) {
			s.denied.hear(b[offset:])
			j.Add(b[offset:])
		}
	}
	trains := j.Trains()
	for i := range trains {
		t := &trains[i]
		if len(t.Rest) == 0 && !train.Sound(t.Head) {
			s.count.unsound.Add(1)
			continue
		}
		t.Finish()
		v := buffer.NewView(t.Len())
		v.Write(t.Head)
		for _, part := range t.Rest {
			v.Write(part)
		}
		s.link.deliver(stack.NewPacketBuffer(stack.PacketBufferOptions{Payload: buffer.MakeWithView(v)}))
	}
	j.Reset()
	return len(bufs), nil
}

// Interrupt makes a Read that waits return, or the next one.
func (s *Stack) Interrupt() { s.link.interrupt() }

// MTU returns how long a packet may be.
func (s *Stack) MTU() (int, error) { return int(s.link.MTU()), nil }

// Name returns what the device is called in logs.
func (s *Stack) Name() (string, error) { return "netstack", nil }

// BatchSize is how many packets Read can give, and Write likes to get.
func (s *Stack) BatchSize() int { return batch }

// File returns nil: there is none.
func (s *Stack) File() *os.File { return nil }

// Events returns a channel that is closed by Close.
func (s *Stack) Events() <-chan tun.Event { return s.events }

var _ tun.Device = (*Stack)(nil)
