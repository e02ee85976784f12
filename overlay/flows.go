package overlay

import (
	"context"
	"log/slog"
	"net/netip"
	"strconv"
	"sync"
	"time"

	"overlayd/nat"
	"overlayd/overlay/filter"
	"overlayd/overlay/record"
)

const (
	// flowsName is the record of what came in by the tunnel.
	flowsName = "flows"
	// reopenEvery is how soon a record that could not be opened is tried again.
	reopenEvery = 10 * time.Second
	// followerRoom is how many lines wait for somebody who follows the record.
	followerRoom = 1024
)

// The events of a FlowLine.
const (
	EventFlowBegan  = "flow_began"
	EventFlowEnded  = "flow_ended"
	EventFlowDenied = "flow_denied"

	EventLoginRefused = "login_refused" // of a guest: it has no target
)

// FlowLine is one line of the record: what became of a flow from the tunnel at
// the node that received it. Fields are only ever added.
type FlowLine struct {
	At       time.Time  `json:"time"`
	Event    string     `json:"event"`
	User     string     `json:"user"`
	Node     string     `json:"node"`
	Source   string     `json:"source"` // with a port, where there is one
	Target   string     `json:"target"`
	Protocol string     `json:"protocol"`
	Verdict  string     `json:"verdict"` // allowed, denied
	Rule     string     `json:"rule"`    // that allowed it
	Why      string     `json:"why"`     // it ended, or was denied
	BeganAt  time.Time  `json:"began_at"`
	EndedAt  *time.Time `json:"ended_at"`  // its last packet, which may be long before the line, or when it was cut
	InBytes  uint64     `json:"in_bytes"`  // from the tunnel, as IP packets
	OutBytes uint64     `json:"out_bytes"` // into it
	SeenAs   string     `json:"seen_as"`   // the source as the target sees it, when it is another one

	// Of a connection that somebody made through this machine without overlayd:
	Via    string `json:"via,omitempty"`    // ssh, or expose and an id
	Client string `json:"client,omitempty"` // where they came from
}

// flowRecord keeps the record of flows. Traffic never waits for it.
type flowRecord struct {
	log  *slog.Logger
	dir  string
	seen func(proto uint8, src, dst netip.AddrPort) netip.AddrPort // nil: the kernel is asked

	mu        sync.Mutex // guards the rest
	out       *record.Log
	failed    error // why there is no out
	tracker   *nat.Tracker
	followers map[chan FlowLine]bool
}

func newFlowRecord(log *slog.Logger, dir string) *flowRecord {
	return &flowRecord{log: log, dir: dir, followers: map[chan FlowLine]bool{}}
}

// run keeps the record open until ctx ends.
func (r *flowRecord) run(ctx context.Context) error {
	defer r.untrack()
	for {
		out, err := record.Open(r.dir, flowsName, record.Options{Log: r.log})
		r.mu.Lock()
		if err != nil && r.failed == nil {
			r.log.Error("flows are not recorded", "err", err)
		}
		r.out, r.failed = out, err
		r.mu.Unlock()
		if err == nil {
			return out.Run(ctx)
		}
		select {
		case <-ctx.Done():
			return nil
		case <-time.After(reopenEvery):
		}
	}
}

func (r *flowRecord) untrack() {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.tracker != nil {
		r.tracker.Close()
		r.tracker = nil
	}
}

// note records an event of the filter.
func (r *flowRecord) note(e *filter.Event) {
	l := lineOf(e)
	r.mu.Lock()
	if e.Kind != filter.FlowDenied {
		l.SeenAs = r.outside(e.Proto, e.Remote, e.Local)
	}
	r.mu.Unlock()
	r.keep(l)
}

// keep puts a line into the record.
func (r *flowRecord) keep(l FlowLine) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.out != nil {
		r.out.Append(l)
	}
	for f := range r.followers {
		select {
		case f <- l:
		default: // who reads too slowly misses some
		}
	}
}

// outside returns what a flow's source looks like behind this machine, "" when
// that is the same or not known; mu is held.
func (r *flowRecord) outside(proto uint8, src, dst netip.AddrPort) string {
	if r.seen != nil {
		if at := r.seen(proto, src, dst); at.IsValid() {
			return at.String()
		}
		return ""
	}
	if r.tracker == nil {
		t, err := nat.NewTracker()
		if err != nil {
			return "" // the kernel has none, or not for us
		}
		r.tracker = t
	}
	seen, err := r.tracker.Outside(proto, src, dst)
	if err != nil { // an answer may come late, and must not be taken for the next one's
		r.tracker.Close()
		r.tracker = nil
	}
	if !seen.IsValid() || seen == src {
		return ""
	}
	return seen.String()
}

// seenAs is outside for others.
func (r *flowRecord) seenAs(f filter.Flow) string {
	r.mu.Lock()
	defer r.mu.Unlock()
	return r.outside(f.Proto, f.Remote, f.Local)
}

// follow returns a channel that gets every line from now on, until stop is
// called.
func (r *flowRecord) follow() (lines <-chan FlowLine, stop func()) {
	c := make(chan FlowLine, followerRoom) // never closed
	r.mu.Lock()
	defer r.mu.Unlock()
	r.followers[c] = true
	return c, func() {
		r.mu.Lock()
		defer r.mu.Unlock()
		delete(r.followers, c)
	}
}

// sync returns when what was noted is on the disk.
func (r *flowRecord) sync(ctx context.Context) error {
	r.mu.Lock()
	out := r.out
	r.mu.Unlock()
	if out == nil {
		return nil
	}
	return out.Sync(ctx)
}

// status returns why flows are not recorded now, and how many lines are lost.
func (r *flowRecord) status() (lost uint64, failed error) {
	r.mu.Lock()
	defer r.mu.Unlock()
	if r.out == nil {
		return 0, r.failed
	}
	s := r.out.Status()
	return s.Dropped, s.Err
}

func lineOf(e *filter.Event) FlowLine {
	l := FlowLine{
		At: e.At.UTC(), Event: EventFlowBegan, User: e.User, Node: e.Node,
		Source: endText(e.Proto, e.Remote), Target: endText(e.Proto, e.Local), Protocol: protocolName(e.Proto),
		Verdict: "allowed", Rule: e.Rule, Why: e.Why, BeganAt: e.Began.UTC(), InBytes: e.In, OutBytes: e.Out,
	}
	switch e.Kind {
	case filter.FlowEnded:
		at := l.At.Add(-e.Silent)
		l.Event, l.EndedAt = EventFlowEnded, &at
	case filter.FlowDenied:
		l.Event, l.Verdict = EventFlowDenied, "denied"
	}
	return l
}

// The protocols that people have names for, by their numbers.
const (
	protoICMP  = 1
	protoTCP   = 6
	protoUDP   = 17
	protoICMP6 = 58
)

func protocolName(proto uint8) string {
	switch proto {
	case protoICMP, protoICMP6:
		return "icmp"
	case protoTCP:
		return "tcp"
	case protoUDP:
		return "udp"
	}
	return strconv.Itoa(int(proto))
}

// endText writes one end of a flow: only TCP and UDP have ports.
func endText(proto uint8, a netip.AddrPort) string {
	if proto == protoTCP || proto == protoUDP {
		return a.String()
	}
	return a.Addr().String()
}
