package filter

import (
	"fmt"
	"sync"
	"sync/atomic"
	"time"
)

// Options are the sizes of a Filter. The zero value works.
type Options struct {
	// Flows is how many there may be at once; default 131,072, at least 1024.
	// They take no memory before there are so many.
	Flows int
	// FlowsPerSource is how many one address of the tunnel may have; default
	// half of Flows.
	FlowsPerSource int
	// Events is how many wait for Take; default 4096, of 216 bytes each.
	Events int
}

const (
	defaultFlows  = 1 << 17
	defaultEvents = 4096
	// adoptFor is how long after its start a filter believes that a TCP
	// connection it does not know is one of ours from before.
	adoptFor = time.Minute
	// baseBefore keeps what counts back from now above 0.
	baseBefore = time.Hour
	// ephemeral is the first port that Linux gives to a connection's own side
	// (net.ipv4.ip_local_port_range).
	ephemeral = 32768
)

// Filter lets packets pass or not, flow by flow. All its methods may be called
// at the same time.
type Filter struct {
	base      time.Time // where mono is 0
	perSource int32
	hash      hasher
	events    *ring
	told      repeats
	fragments fragments
	toLocal   bucket // limits the answers to this side
	refused   refusals

	swap  sync.Mutex // held by Swap and Tick, which see to all flows
	sweep int        // of Tick: which part of the table is next

	index   atomic.Pointer[index]
	carried atomic.Pointer[carried] // nil: not known
	counts  [verdicts]atomic.Uint64
	answers atomic.Uint64
	limited atomic.Uint64
	cuts    atomic.Uint64
	evicted atomic.Uint64

	shards [shards]shard
}

// New returns a filter that lets nothing in until Swap gives it rules.
func New(o Options, now time.Time) *Filter {
	if o.Flows <= 0 {
		o.Flows = defaultFlows
	}
	o.Flows = max(o.Flows, shards*smallestLimit)
	if o.FlowsPerSource <= 0 {
		o.FlowsPerSource = o.Flows / 2
	}
	if o.Events <= 0 {
		o.Events = defaultEvents
	}
	f := &Filter{perSource: int32(o.FlowsPerSource), hash: newHasher(), events: newRing(o.Events)}
	f.base = now.Add(-baseBefore)
	for i := range f.shards {
		f.shards[i].init((o.Flows + shards - 1) / shards)
	}
	x, err := newIndex(Rules{}, nil, now.UnixNano())
	if err != nil {
		panic(fmt.Sprintf("internal error: no rules are no index: %v", err))
	}
	f.index.Store(x)
	return f
}

// mono is the time in ns by which flows age: it does not jump when the clock is
// set.
func (f *Filter) mono(now time.Time) int64 { return int64(now.Sub(f.base)) }

// Batch is what became of some packets. It belongs to one goroutine, which
// uses it again and again.
type Batch struct {
	Verdicts []Verdict // one for each packet
	// Answers are packets to send back where the refused ones came from:
	// resets and prohibitions. They are good until the next use.
	Answers [][]byte
	room    []byte
}

// answerRoom is how many bytes of answers a batch can give: the default burst
// of resets, or seven of the longest prohibitions of IPv4.
const answerRoom = 4096

func (b *Batch) reset(n int) {
	if cap(b.Verdicts) < n {
		b.Verdicts = make([]Verdict, n)
	}
	if b.room == nil {
		b.room = make([]byte, 0, answerRoom)
		b.Answers = make([][]byte, 0, answerBurst)
	}
	b.Verdicts, b.Answers, b.room = b.Verdicts[:n], b.Answers[:0], b.room[:0]
}

// In decides about packets from the tunnel, each of them whole. Answers go back
// into the tunnel.
func (f *Filter) In(now time.Time, packets [][]byte, b *Batch) { f.run(now, packets, b, false) }

// Out decides about packets that this side sends into the tunnel. Answers go
// back to this side.
func (f *Filter) Out(now time.Time, packets [][]byte, b *Batch) { f.run(now, packets, b, true) }

func (f *Filter) run(now time.Time, packets [][]byte, b *Batch, out bool) {
	b.reset(len(packets))
	c := cursor{f: f, b: b, out: out, wall: now.UnixNano(), mono: f.mono(now)}
	for i, raw := range packets {
		v := c.decide(raw)
		b.Verdicts[i] = v
		if v != Pass {
			f.counts[v].Add(1)
		}
	}
	c.unlock()
}

// cursor goes through one batch. It keeps the lock of the last packet's shard,
// so that a run of packets of one flow is looked up once and locked once.
type cursor struct {
	f    *Filter
	b    *Batch
	out  bool
	wall int64
	mono int64
	p    packet
	raw  []byte

	train train  // that the last packet belonged to; its flow is slot's
	shard *shard // locked, or nil
	key   key    // of slot
	h     uint64 // its hash
	slot  uint32 // 0: no such flow
}

func (c *cursor) unlock() {
	if c.shard != nil {
		c.shard.mu.Unlock()
		c.shard = nil
	}
}

// seek finds the flow of a key, or leaves slot 0 with the shard locked.
func (c *cursor) seek(k key) {
	if c.shard != nil && c.slot != 0 && k == c.key {
		return
	}
	n, h := c.f.hash.sum(&k)
	if s := &c.f.shards[n]; s != c.shard {
		c.unlock()
		s.mu.Lock()
		c.shard = s
	}
	c.key, c.h = k, h
	c.slot = c.shard.find(&k, h)
}

func (c *cursor) flow() *flow { return &c.shard.flows[c.slot] }

func (c *cursor) decide(raw []byte) Verdict {
	if data, ok := c.train.goesOn(raw); ok {
		c.roll(raw, data)
		return Pass
	}
	c.train.proto = 0
	c.raw = raw
	p := &c.p
	if why := p.parse(raw, false); why != Pass {
		return why
	}
	switch {
	case p.part == laterPart:
		return c.later()
	case p.proto == icmp4 || p.proto == icmp6:
		if p.icmpError() {
			return c.icmpError()
		}
		if !p.echo() {
			return DropICMPType
		}
	}
	c.seek(p.key(c.out))
	var why Verdict
	if c.slot == 0 {
		why = c.begin()
	} else {
		why = c.follow()
	}
	if why == Pass && p.part == firstPart {
		why = c.f.fragments.begin(&c.f.hash, p, c.out, c.key, c.mono)
	}
	return why
}

// later decides about a fragment without a transport header.
func (c *cursor) later() Verdict {
	k, why := c.f.fragments.follow(&c.f.hash, &c.p, c.out, c.mono)
	if why != Pass {
		return why
	}
	c.seek(k)
	if c.slot == 0 {
		return DropFragmentLost
	}
	f := c.flow()
	if f.phase == cut {
		return DropCut
	}
	c.count(f)
	return Pass
}

// icmpError decides about an error by the flow whose packet it quotes, which
// went the other way.
func (c *cursor) icmpError() Verdict {
	to := c.p.dst
	if x := c.f.index.Load(); !c.out && x.sources[c.p.src] == nil && x.local(c.p.src) {
		return DropSpoofed
	}
	var quoted packet
	if why := quoted.parse(c.raw[c.p.transport+icmpHeader:], true); why != Pass || quoted.part == laterPart {
		return DropICMPUnmatched
	}
	if quoted.v6 != c.p.v6 || quoted.src != to || quoted.icmpError() {
		return DropICMPUnmatched
	}
	c.seek(quoted.key(!c.out))
	if c.slot == 0 || c.flow().phase == cut {
		return DropICMPUnmatched
	}
	c.noteError(&quoted, c.flow())
	return Pass
}

// count notes a packet of a flow.
func (c *cursor) count(f *flow) {
	f.seen = c.mono
	f.add(c.p.networkBytes, c.out)
}

// follow decides about a packet whose flow is known.
func (c *cursor) follow() Verdict {
	f, p := c.flow(), &c.p
	if p.proto == tcp && p.opens() {
		// A SYN asks anew where the flow is over, or was begun by the other
		// side: having been called is no permission to call.
		if f.phase == ended || f.phase == cut || f.outward != c.out {
			return c.restart()
		}
	}
	if f.phase == cut {
		f.seen = c.mono
		c.refuseCut()
		return DropCut
	}
	c.count(f)
	if p.proto == tcp && p.flags&rst != 0 {
		c.noteReset(f)
	}
	was := f.phase
	c.shard.move(f, c.slot, f.advance(p, c.out))
	if f.phase == was {
		c.train.couple(p, c.raw)
	}
	return Pass
}

// restart puts a new flow into the place of one with the same key, if it may
// begin at all.
func (c *cursor) restart() Verdict {
	r, who, why := c.permit()
	if why != Pass {
		return why
	}
	c.f.end(c.shard, c.slot, c.wall, WhyReplaced)
	return c.open(r, who, c.out)
}

// begin decides about a packet without a flow.
func (c *cursor) begin() Verdict {
	if !c.out && !c.p.opens() {
		return c.adoptIn()
	}
	if c.out {
		if !c.p.opens() || !c.f.index.Load().own(c.p.src) {
			return c.adoptOut()
		}
	}
	r, who, why := c.permit()
	if why != Pass {
		return why
	}
	return c.open(r, who, c.out)
}

// permit says whether a flow may begin with this packet. What this side begins
// needs no rule here: the other side has them, if there is one. What a member begins that this node
// carries, and that comes by the tunnel, needs one at both.
func (c *cursor) permit() (*rule, *source, Verdict) {
	x := c.f.index.Load()
	who := x.sources[c.p.src]
	switch {
	case c.out && !x.own(c.p.src):
		return nil, nil, DropNotOwn
	case c.out && who == nil:
		return c.toward(nil)
	case who == nil && x.local(c.p.src):
		return nil, nil, DropSpoofed
	case who == nil:
		return nil, nil, DropStranger
	}
	r := x.find(who, c.p.dst, c.p.proto, c.p.dport, c.wall)
	if r == nil {
		c.tell(who, WhyPolicy)
		c.refuse(&who.load.answers)
		return nil, nil, DropDenied
	}
	if c.out {
		return c.toward(who)
	}
	return r, who, Pass
}

// adoptIn decides about a packet from the tunnel that belongs to no flow and
// begins none: what is left of a connection from before this filter's time. It
// may go on if it might begin, or if this side began it. A host behind a peer
// begins no connections, so one with it must be ours.
func (c *cursor) adoptIn() Verdict {
	x, p := c.f.index.Load(), &c.p
	if p.proto != tcp || p.flags&(rst|syn) != 0 {
		return DropNoFlow
	}
	who := x.sources[p.src]
	if who != nil {
		if r := x.find(who, p.dst, tcp, p.dport, c.wall); r != nil {
			return c.open(r, who, false)
		}
	} else if x.local(p.src) {
		return DropSpoofed
	}
	if x.own(p.dst) && c.young() && (who == nil || ours(p.dport, p.sport)) {
		return c.open(nil, who, true)
	}
	if who == nil {
		return DropNoFlow
	}
	_, _, why := c.permit()
	return why
}

// young reports whether connections from before the filter's time may be about.
func (c *cursor) young() bool { return c.mono-int64(baseBefore) < int64(adoptFor) }

// ours reports whether the ports look as if this side began.
func ours(own, other uint16) bool { return own >= ephemeral && other < ephemeral }

// adoptOut decides about an answer from this side that belongs to no flow: it
// passes if the other side might have asked.
func (c *cursor) adoptOut() Verdict {
	x, p := c.f.index.Load(), &c.p
	if p.proto == tcp && p.flags&rst != 0 || p.proto == icmp4 || p.proto == icmp6 {
		if p.echoRequest() {
			return DropNotOwn
		}
		return DropNoFlow
	}
	who := x.sources[p.dst]
	if who != nil {
		if r := x.find(who, p.src, p.proto, p.sport, c.wall); r != nil && !(p.proto == tcp && p.opens()) {
			return c.open(r, who, false)
		}
	}
	if !x.own(p.src) {
		return DropNotOwn
	}
	if who == nil || c.young() && ours(p.sport, p.dport) { // a connection that this side began before
		if _, _, why := c.toward(x.sources[p.src]); why != Pass {
			return why
		}
		return c.open(nil, who, true)
	}
	return DropNoFlow
}

// open makes a flow of the packet.
func (c *cursor) open(r *rule, who *source, outward bool) Verdict {
	s := c.shard
	if who != nil && !outward && who.load.flows.Load() >= c.f.perSource {
		c.slot = 0
		c.tell(who, WhyFull)
		return DropSourceFull
	}
	slot, ok := s.victim(c.mono)
	if !ok {
		c.slot = 0
		if !c.out {
			c.tell(who, WhyFull)
		}
		return DropTableFull
	}
	if slot != 0 {
		c.f.evicted.Add(1)
		c.f.end(s, slot, c.wall, WhyEvicted)
	}
	c.slot = s.insert(&c.key, c.h)
	f := c.flow()
	f.rule, f.who, f.outward, f.began = r, who, outward, c.wall
	s.enlist(f, c.slot)
	if who != nil {
		who.load.flows.Add(1)
	}
	c.count(f)
	s.move(f, c.slot, f.advance(&c.p, c.out))
	if f.phase == live && c.out != outward {
		s.move(f, c.slot, answered) // the one who began has not been heard
	}
	if !outward {
		c.f.tell(f, FlowBegan, c.wall, "")
	}
	return Pass
}

// end removes a flow, and tells if it was one to tell of.
func (f *Filter) end(s *shard, slot uint32, wall int64, why string) {
	fl := &s.flows[slot]
	if fl.phase != cut {
		f.finish(fl, wall, why)
	}
	s.remove(slot)
}

// finish is what is to be done once when a flow ends.
func (f *Filter) finish(fl *flow, wall int64, why string) {
	if fl.who != nil {
		fl.who.load.flows.Add(-1)
	}
	if !fl.outward {
		f.tell(fl, FlowEnded, wall, why)
	}
}
