package coord

import (
	"context"
	"errors"
	"fmt"
	"math/rand/v2"
	"net/netip"
	"time"

	"connectrpc.com/connect"

	"overlayd/overlay/coord/api"
	"overlayd/overlay/key"
)

// FollowOptions say what to follow with, and whom to tell.
type FollowOptions struct {
	Have      *Map                  // the last map known, if any
	BootID    uint64                // random for each start of the daemon
	Advertise func() []netip.Prefix // asked before each report; nil: leave it as it is
	Attached  func() []Attachment   // asked before each report; nil: say nothing
	Applied   func() Applied        // asked before each report; nil: say nothing
	Key       func() key.Public     // the WireGuard key that this node is to have; asked before each report; nil: say nothing
	Keyed     func(key.Public)      // told that everybody hears of it as the key now; may be nil
	Report    <-chan struct{}       // a report is due at once; nil: none ever is
	Relay     *RelayOffer           // of a relay that joined
	OnMap     func(*Map)            // the whole new map, to read and keep; required
	OnState   func(ControlState)    // may be nil
}

// ControlState is how the connection to the coordinator stands.
type ControlState struct {
	Phase Phase
	Since time.Time
	Err   error // with PhaseLost: why
}

// Phase is a stage of the connection to the coordinator.
type Phase string

// The phases.
const (
	PhaseConnecting Phase = "connecting"
	PhaseConnected  Phase = "connected" // a whole map has come
	PhaseLost       Phase = "lost"      // waiting to try again
)

// follower is one Follow.
type follower struct {
	c     *Client
	o     FollowOptions
	have  *Map
	since time.Time // when the stream was established; zero: it is not
}

// Follow keeps this node's map current until ctx ends, and returns its error,
// or until the coordinator says that this machine is no member. The callbacks
// are never called concurrently.
func (c *Client) Follow(ctx context.Context, o FollowOptions) error {
	if o.OnState == nil {
		o.OnState = func(ControlState) {}
	}
	f := &follower{c: c, o: o, have: o.Have}
	for failures := 0; ; {
		f.tell(PhaseConnecting, nil)
		err := f.attempt(ctx)
		if ctx.Err() != nil {
			return ctx.Err()
		}
		if p, ok := sentProblem(err); ok && p.Kind == KindDenied {
			return p
		}
		if errors.Is(err, errMoved) { // once per Kick, so there is no need to wait
			continue
		}
		err = c.failure(err)
		if !f.since.IsZero() && time.Since(f.since) >= steady {
			failures = 0
		}
		failures++
		f.tell(PhaseLost, err)
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-c.kicks:
			failures = 0
		case <-time.After(retryAfter(failures, f.others(), rand.Float64())):
		}
	}
}

func (f *follower) tell(p Phase, err error) {
	f.o.OnState(ControlState{Phase: p, Since: f.c.o.Now(), Err: err})
}

// others is how many nodes may have lost the coordinator together with this one.
func (f *follower) others() int {
	if f.have == nil {
		return 0
	}
	return len(f.have.Peers)
}

// errMoved ends an attempt or a connection that was made in another network.
var errMoved = problem(KindUnreachable, "", "the network changed")

// impatient ends an attempt to connect when the network changes, until ctx or
// the attempt ends.
func (f *follower) impatient(ctx context.Context, fail func(error)) (stop func()) {
	ctx, cancel := context.WithCancel(ctx)
	done := make(chan struct{})
	go func() {
		defer close(done)
		select {
		case <-ctx.Done():
		case <-f.c.kicks:
			fail(errMoved)
		}
	}()
	return func() {
		cancel()
		<-done
	}
}

var errSilent = problem(KindUnreachable, "", "the coordinator was silent for %s", silence)

// attempt follows over one connection until it fails.
func (f *follower) attempt(ctx context.Context) error {
	f.since = time.Time{}
	ctx, cancel := context.WithCancelCause(ctx)
	defer cancel(nil)
	quiet := time.AfterFunc(silence, func() { cancel(errSilent) })
	defer quiet.Stop()
	line := f.c.connect()
	defer line.close()

	req := connect.NewRequest(&api.WatchRequest{BootId: f.o.BootID, Relay: offerToWire(f.o.Relay)})
	if f.have != nil {
		req.Msg.HaveVersion = f.have.Version
	}
	if err := f.c.authorize(req.Header()); err != nil {
		return err
	}
	connected := f.impatient(ctx, cancel)
	defer connected()
	in, err := line.node.Watch(ctx, req)
	if err != nil {
		return because(ctx, err)
	}
	defer in.Close()

	reports := &reporter{c: f.c, node: line.node, o: &f.o, fail: cancel}
	defer reports.wait()
	defer cancel(nil)
	for in.Receive() {
		quiet.Stop() // for as long as the callbacks take
		f.c.heard.Store(f.c.o.Now().UnixNano())
		if err := f.take(ctx, in.Msg(), reports); err != nil {
			return err
		}
		if !f.since.IsZero() {
			connected()
		}
		quiet.Reset(silence)
	}
	if err := in.Err(); err != nil {
		return because(ctx, err)
	}
	return because(ctx, problem(KindUnreachable, "", "the coordinator ended the stream"))
}

// because returns why a context ended, if it did, or else err.
func because(ctx context.Context, err error) error {
	if cause := context.Cause(ctx); cause != nil && !errors.Is(cause, context.Canceled) {
		return cause
	}
	return err
}

// take handles one message of the stream.
func (f *follower) take(ctx context.Context, m *api.WatchResponse, reports *reporter) error {
	var next *Map
	var err error
	switch e := m.Event.(type) {
	case *api.WatchResponse_Map:
		next, err = mapFromWire(e.Map)
	case *api.WatchResponse_Delta:
		if f.since.IsZero() {
			return errors.New("read map: a change came before the map")
		}
		next, err = f.have.apply(e.Delta)
	default: // a heartbeat, or what a later coordinator sends
		return nil
	}
	if err != nil {
		return fmt.Errorf("read map: %w", err)
	}
	f.have = next
	if f.since.IsZero() {
		f.since = time.Now()
		f.tell(PhaseConnected, nil)
		reports.start(ctx, m.Session)
	}
	f.o.OnMap(next)
	return nil
}

// reporter is a node's heartbeat on one connection.
type reporter struct {
	c    *Client
	node api.NodeClient
	o    *FollowOptions
	fail func(error) // ends the attempt
	done chan struct{}
}

// start reports at once and then regularly, until ctx ends.
func (r *reporter) start(ctx context.Context, session uint64) {
	r.done = make(chan struct{})
	go func() {
		defer close(r.done)
		ticker := time.NewTicker(beatEvery)
		defer ticker.Stop()
		var last string
		for wait := beatEvery; ; {
			err := r.report(ctx, session, wait)
			if p, ok := AsProblem(err); wait == checkTime && ok && p.Kind == KindUnreachable && ctx.Err() == nil {
				r.fail(errMoved)
			}
			wait = beatEvery
			if ctx.Err() == nil && err != nil && err.Error() != last {
				last = err.Error()
				r.c.o.Log.Warn("report refused", "endpoint", r.c.o.Endpoint, "err", err)
			} else if err == nil {
				last = ""
			}
			select {
			case <-ctx.Done():
				return
			case <-ticker.C:
			case <-r.o.Report:
			case <-r.c.kicks:
				wait = checkTime
			}
		}
	}()
}

// wait returns when the goroutine has, once ctx has ended.
func (r *reporter) wait() {
	if r.done != nil {
		<-r.done
	}
}

// report sends one. A coordinator that does not know the session any more ends
// the attempt, so that the next one begins at once.
func (r *reporter) report(ctx context.Context, session uint64, within time.Duration) error {
	ctx, cancel := context.WithTimeout(ctx, within)
	defer cancel()
	req := connect.NewRequest(&api.ReportRequest{Session: session})
	if r.o.Advertise != nil {
		req.Msg.Advertise = &api.PrefixList{Prefixes: prefixesToWire(r.o.Advertise())}
	}
	if r.o.Attached != nil {
		req.Msg.Attached = &api.AttachmentList{Attached: attachedToWire(r.o.Attached())}
	}
	if r.o.Applied != nil {
		a := r.o.Applied()
		req.Msg.Applied = &api.Applied{MapVersion: a.MapVersion, FlowsCut: uint32(max(a.FlowsCut, 0))}
	}
	var k key.Public
	if r.o.Key != nil {
		k = r.o.Key()
		req.Msg.Wireguard = k.Bytes()
	}
	if err := r.c.authorize(req.Header()); err != nil {
		return err
	}
	_, err := r.node.Report(ctx, req)
	if err == nil {
		if r.o.Keyed != nil && !k.IsZero() {
			r.o.Keyed(k)
		}
		return nil
	}
	if p, ok := sentProblem(err); ok {
		if p.Kind == KindNotFound || p.Kind == KindDenied {
			r.fail(err)
		}
		return p
	}
	return r.c.failure(err)
}
