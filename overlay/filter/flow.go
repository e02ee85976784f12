package filter

import (
	"net/netip"
	"time"
)

// phase is how far a flow has come.
type phase uint8

const (
	opening  phase = iota // one side has been heard
	answered              // the SYN has its answer, but not that its own
	live                  // both sides have been heard; TCP: the handshake is done
	ending                // TCP: one side has said FIN
	ended                 // TCP: both have, or one has said RST
	cut                   // ended by us; kept so that what still comes makes no new flow
)

// unproved reports whether a flow may be evicted for another one.
func (p phase) unproved() bool { return p == opening || p == answered || p == ended }

// How long a flow lives without a packet.
const (
	// liveTCP is what RFC 5382 section 5 requires at least: two hours for a
	// keepalive, and four minutes for its answer.
	liveTCP = 2*time.Hour + 4*time.Minute
	// endingTCP is what the same section requires of half-closed connections.
	endingTCP = 4 * time.Minute
	// openingTCP covers five SYNs of an impatient stack: 1+2+4+8+16 s.
	openingTCP = 31 * time.Second
	// endedTCP lets the last acknowledgements through, retransmitted once or twice.
	endedTCP = 10 * time.Second
	// liveUDP lies between the two minutes that RFC 4787 section 4.3 requires
	// and the five that it recommends: a record should end soon after its flow.
	liveUDP = 3 * time.Minute
	// openingUDP is for datagrams without an answer, and for echoes.
	openingUDP = 30 * time.Second
	// liveOther is for protocols of which we know nothing.
	liveOther = 10 * time.Minute
	// cutIdle outlives the pauses of a sender that was not told.
	cutIdle = time.Minute
	// idleEnough is when an established flow may be evicted, if there is nobody
	// else and the table is full.
	idleEnough = 10 * time.Minute
)

// flow is one connection. Flows lie in slices that hold nothing else.
type flow struct {
	key        key
	rule       *rule   // that allows it; nil when this side began it
	who        *source // behind the remote address; nil when that is nobody's
	began      int64   // ns since 1970
	seen       int64   // the last packet, in ns since the filter's base
	in, out    uint64  // bytes of IP packets from and to the tunnel
	seqIn      uint32  // TCP: what the local side expects next
	seqOut     uint32  // and the remote one
	prev, next uint32  // in the list of its phase; next also among the free
	hash       uint32
	phase      phase
	outward    bool  // this side began it
	finished   uint8 // TCP: 1 the remote side has said FIN, 2 the local one
	used       bool
	resetAt    int64   // TCP: when it was, if it ended so, as seen
	_          [8]byte // two cache lines of 64 bytes, of which a packet touches both
}

// timeout returns how long the flow lives without a packet.
func (f *flow) timeout() time.Duration {
	if f.phase == cut {
		return cutIdle
	}
	switch f.key.protocol() {
	case tcp:
		switch f.phase {
		case live:
			return liveTCP
		case ending:
			return endingTCP
		case ended:
			return endedTCP
		}
		return openingTCP
	case udp:
		if f.phase == live {
			return liveUDP
		}
		return openingUDP
	case icmp4, icmp6:
		return openingUDP
	}
	return liveOther
}

// goesOn reports whether a flow that one side has reset goes on all the same: the
// other does not take a reset that is out of its window (RFC 5961 section 3). What
// was on the way still comes, for a second at most.
func (f *flow) goesOn() bool {
	return f.phase == ended && f.finished != 3 && f.seen-f.resetAt > int64(time.Second)
}

// advance moves the flow on by one packet and returns its phase.
func (f *flow) advance(p *packet, out bool) phase {
	fromInitiator := out == f.outward
	if p.proto != tcp {
		if f.phase == opening && !fromInitiator || f.phase == answered && fromInitiator {
			return live
		}
		return f.phase
	}
	next := p.seq + uint32(p.data)
	if p.flags&(syn|fin) != 0 {
		next++
	}
	if p.flags&rst == 0 {
		f.expect(next, out)
	}
	side := uint8(1)
	if out {
		side = 2
	}
	switch {
	case p.flags&rst != 0:
		return ended
	case p.flags&fin != 0:
		f.finished |= side
		switch {
		case f.finished == 3:
			return ended
		case f.phase == live:
			return ending
		}
		return f.phase
	}
	switch f.phase {
	case opening:
		if !fromInitiator && p.flags&(syn|ack) == syn|ack {
			return answered
		}
		if !fromInitiator {
			return live
		}
	case answered:
		if fromInitiator && p.flags&(syn|ack) == ack {
			return live
		}
	}
	return f.phase
}

// add counts a packet's bytes.
func (f *flow) add(bytes int, out bool) {
	if out {
		f.out += uint64(bytes)
	} else {
		f.in += uint64(bytes)
	}
}

// expect notes the sequence number that comes next in one direction of TCP.
func (f *flow) expect(next uint32, out bool) {
	last := &f.seqIn
	if out {
		last = &f.seqOut
	}
	if *last == 0 || int32(next-*last) > 0 {
		*last = next
	}
}

// Flow is one connection, for people.
type Flow struct {
	Began         time.Time
	Idle          time.Duration
	User, Node    string         // behind the remote address
	Remote, Local netip.AddrPort // of an echo, the port is the identifier
	Proto         uint8
	In, Out       uint64 // bytes of IP packets from and to the tunnel
	Rule          string // "" when this side began it
	Outward       bool   // this side began it
	Established   bool   // both sides have been heard
}

func (f *flow) view(mono int64) Flow {
	v := Flow{
		Began: time.Unix(0, f.began), Idle: time.Duration(mono - f.seen), Proto: f.key.protocol(), In: f.in, Out: f.out,
		Remote: netip.AddrPortFrom(f.key.remote.netip(), f.key.remotePort()), Local: netip.AddrPortFrom(f.key.local.netip(), f.key.localPort()),
		Outward: f.outward, Established: !f.phase.unproved(),
	}
	if f.who != nil {
		v.User, v.Node = f.who.User, f.who.Node
	}
	if f.rule != nil {
		v.Rule = f.rule.name
	}
	return v
}
