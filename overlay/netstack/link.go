package netstack

import (
	"sync"
	"sync/atomic"
	"time"

	"gvisor.dev/gvisor/pkg/tcpip"
	"gvisor.dev/gvisor/pkg/tcpip/header"
	"gvisor.dev/gvisor/pkg/tcpip/stack"
)

const (
	// queueBytes is how much the stack may have sent that WireGuard has not read
	// yet: what a line of 1 Gbit/s takes in 8 ms.
	queueBytes = 1 << 20
	// queuePackets is the same in packets, for those that are small.
	queuePackets = 4096
	// holdUp is how long a sender waits for room. It slows a connection down
	// without a loss; and it is short, because whoever empties the queue may at
	// the same time wait for a lock of the sender's.
	holdUp = 5 * time.Millisecond

	// message is how many bytes the largest UDP message over IPv4 holds, and
	// sealed what WireGuard adds to each packet in it.
	message = 65507
	sealed  = 16 + 16
)

// link is the network card of the stack: what it sends waits here for WireGuard.
// It cuts nothing and sums nothing; that is done as WireGuard reads.
type link struct {
	mtu      atomic.Uint32
	dispatch atomic.Pointer[stack.NetworkDispatcher]
	lost     atomic.Uint64 // packets for which there was no room
	ready    chan struct{} // holds one token: there may be something to read
	room     chan struct{} // holds one token: there may be room

	mu          sync.Mutex // guards the rest
	ring        [queuePackets]*stack.PacketBuffer
	first, n    int
	bytes       int
	waiting     int // senders
	interrupted bool
	closed      bool
}

func newLink(mtu int) *link {
	l := &link{ready: make(chan struct{}, 1), room: make(chan struct{}, 1)}
	l.mtu.Store(uint32(mtu))
	return l
}

func signal(c chan struct{}) {
	select {
	case c <- struct{}{}:
	default: // somebody has already said so
	}
}

// WritePackets takes what the stack sends.
func (l *link) WritePackets(list stack.PacketBufferList) (int, tcpip.Error) {
	for i, p := range list.AsSlice() {
		switch l.push(p) {
		case errLinkClosed:
			return i, &tcpip.ErrClosedForSend{}
		case errLinkFull:
			l.lost.Add(uint64(list.Len() - i))
			return i, &tcpip.ErrNoBufferSpace{}
		}
	}
	return list.Len(), nil
}

type linkError int

const (
	_ linkError = iota // taken
	errLinkFull
	errLinkClosed
)

// push waits for room, for a moment.
func (l *link) push(p *stack.PacketBuffer) linkError {
	size := p.Size()
	l.mu.Lock()
	defer l.mu.Unlock()
	for deadline := (<-chan time.Time)(nil); !l.closed && (l.bytes > queueBytes || l.n == queuePackets); {
		if deadline == nil {
			timer := time.NewTimer(holdUp)
			defer timer.Stop()
			deadline = timer.C
		}
		l.waiting++
		l.mu.Unlock()
		late := false
		select {
		case <-l.room:
		case <-deadline:
			late = true
		}
		l.mu.Lock()
		l.waiting--
		if late {
			return errLinkFull
		}
	}
	if l.closed {
		return errLinkClosed
	}
	l.ring[(l.first+l.n)%queuePackets] = p.IncRef()
	l.n++
	l.bytes += size
	if l.n == 1 {
		signal(l.ready)
	}
	if l.waiting > 0 && l.bytes <= queueBytes {
		signal(l.room) // for the next one
	}
	return 0
}

// pop returns the next packet, nil when there is none: at once, or after an
// interrupt if it is to wait. The packet is the caller's to release. ok is false
// once the link is closed.
func (l *link) pop(wait bool) (p *stack.PacketBuffer, ok bool) {
	for {
		l.mu.Lock()
		switch {
		case l.closed:
			l.mu.Unlock()
			return nil, false
		case l.n > 0:
			p = l.ring[l.first]
			l.ring[l.first] = nil
			l.first, l.n = (l.first+1)%queuePackets, l.n-1
			l.bytes -= p.Size()
			if l.waiting > 0 && l.bytes <= queueBytes {
				signal(l.room)
			}
			l.mu.Unlock()
			return p, true
		case !wait || l.interrupted:
			l.interrupted = false
			l.mu.Unlock()
			return nil, true
		}
		l.mu.Unlock()
		<-l.ready
	}
}

// interrupt makes a pop that waits return, or the next one.
func (l *link) interrupt() {
	l.mu.Lock()
	l.interrupted = true
	l.mu.Unlock()
	signal(l.ready)
}

// shut ends the link: nothing waits any more.
func (l *link) shut() {
	l.mu.Lock()
	defer l.mu.Unlock()
	l.closed = true
	for ; l.n > 0; l.n-- {
		l.ring[l.first].DecRef()
		l.ring[l.first] = nil
		l.first = (l.first + 1) % queuePackets
	}
	l.bytes = 0
	signal(l.ready)
	signal(l.room)
}

// deliver hands a packet to the stack, which has it then.
func (l *link) deliver(p *stack.PacketBuffer) {
	if d := l.dispatch.Load(); d != nil {
		(*d).DeliverNetworkPacket(header.IPv4ProtocolNumber, p)
	}
	p.DecRef()
}

// trainPayload is how many bytes of a connection fill one UDP message, once cut
// and encrypted, and all of its packets. A train that is a little longer leaves a
// short packet, which costs a message of its own.
func (l *link) trainPayload() int {
	const headers = header.IPv4MinimumSize + header.TCPMinimumSize + 12 // of the time stamps, which everybody sends
	mtu := int(l.mtu.Load())
	return message / (mtu + sealed) * (mtu - headers)
}

// GSOMaxSize is the longest train that the stack may make, with what its sender
// takes off for headers.
func (l *link) GSOMaxSize() uint32 {
	return uint32(l.trainPayload()) + header.TCPTotalHeaderMaximumSize + 1
}

// SupportedGSO says that we cut what is longer than a packet.
func (l *link) SupportedGSO() stack.SupportedGSO { return stack.HostGSOSupported }

// Capabilities says that what we deliver has been summed.
func (l *link) Capabilities() stack.LinkEndpointCapabilities {
	return stack.CapabilityRXChecksumOffload
}

// Attach says who takes what we deliver; nil: nobody.
func (l *link) Attach(d stack.NetworkDispatcher) {
	if d == nil {
		l.dispatch.Store(nil)
		return
	}
	l.dispatch.Store(&d)
}

func (l *link) IsAttached() bool                        { return l.dispatch.Load() != nil }
func (l *link) MTU() uint32                             { return l.mtu.Load() }
func (l *link) SetMTU(mtu uint32)                       { l.mtu.Store(mtu) }
func (l *link) MaxHeaderLength() uint16                 { return 0 }
func (l *link) LinkAddress() tcpip.LinkAddress          { return "" }
func (l *link) SetLinkAddress(tcpip.LinkAddress)        {}
func (l *link) Wait()                                   {}
func (l *link) ARPHardwareType() header.ARPHardwareType { return header.ARPHardwareNone }
func (l *link) AddHeader(*stack.PacketBuffer)           {}
func (l *link) ParseHeader(*stack.PacketBuffer) bool    { return true }
func (l *link) Close()                                  {}
func (l *link) SetOnCloseAction(func())                 {}

var (
	_ stack.LinkEndpoint = (*link)(nil)
	_ stack.GSOEndpoint  = (*link)(nil)
)
