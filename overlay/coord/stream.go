package coord

import (
	"bytes"
	"context"
	"time"

	"connectrpc.com/connect"

	"overlayd/overlay/coord/api"
)

// stream is the server's end of one Watch.
type stream struct {
	s      *Server
	w      *watcher
	out    *connect.ServerStream[api.WatchResponse]
	pulse  pulse
	passes []Pass     // that were sent last
	told   uint64     // the number of the revocations that were sent last
	roll   SignedRoll // that was sent last
	paced  time.Time  // when the last delta was sent
	sight  *sight     // what the node was last let see
}

// Watch streams a node's map until either side is gone.
func (s nodeService) Watch(ctx context.Context, req *connect.Request[api.WatchRequest], out *connect.ServerStream[api.WatchResponse]) error {
	n, err := s.member(req.Header())
	if err != nil {
		return wireError(err)
	}
	controller(ctx).SetReadDeadline(time.Time{}) // the request is complete; HTTP/1.1 goes on reading
	if req.Msg.Relay != nil {
		if err := s.offer(ctx, n, req.Msg.Relay); err != nil {
			return s.refuse("watch", err)
		}
	}
	now := s.o.Now()
	w, err := s.presence.join(n.ID, req.Msg.BootId, now)
	if err != nil {
		return wireError(err)
	}
	s.presence.mark(now, false, []uint32{n.Label})
	defer func() {
		if s.presence.leave(w, s.o.Now()) {
			s.presence.mark(s.o.Now(), false, []uint32{n.Label})
			s.o.Log.Debug("node offline", "node", n.Name)
		}
		if s.ledger.now().nodes[n.ID] == nil { // removed while it was joining
			s.presence.forget(n.ID, errNotMember)
		}
	}()
	if have, rev := req.Msg.HaveVersion, s.ledger.now().rev; have > rev {
		s.o.Log.Warn("a node knows a newer map than the database: was an old copy put back?", "node", n.Name, "has", have, "revision", rev)
	}
	s.o.Log.Debug("node online", "node", n.Name)
	st := &stream{s: s.Server, w: w, out: out, pulse: newPulse(now)}
	return wireError(st.run(ctx))
}

func (st *stream) run(ctx context.Context) error {
	if err := st.sendWhole(ctx); err != nil {
		return err
	}
	timer := time.NewTimer(0)
	defer timer.Stop()
	for {
		now := st.s.o.Now()
		st.pulse.heard = st.w.lastReport()
		if err := st.w.stopped(); err != nil {
			return err
		}
		if st.pulse.dead(now) {
			return problem(KindUnreachable, "", "the node was silent for %s", silence)
		}
		wake := st.pulse.next()
		if since := st.w.dirtySince(); !since.IsZero() {
			at := sendAt(since, st.paced)
			if !at.After(now) {
				if err := st.sendDirty(ctx); err != nil {
					return err
				}
				continue
			}
			if at.Before(wake) {
				wake = at
			}
		}
		if st.pulse.due(now) {
			if err := st.beat(ctx); err != nil {
				return err
			}
			continue
		}
		timer.Reset(wake.Sub(now))
		select {
		case <-ctx.Done():
			return ctx.Err()
		case <-st.w.wake:
		case <-timer.C:
		}
	}
}

// self returns the newest snapshot, and the stream's node in it.
func (st *stream) self() (*snapshot, *nodeRecord, error) {
	snap := st.s.ledger.now()
	n := snap.nodes[st.w.node]
	if n == nil {
		return nil, nil, errNotMember
	}
	return snap, n, nil
}

func (st *stream) sendWhole(ctx context.Context) error {
	st.w.take()
	snap, n, err := st.self()
	if err != nil {
		return err
	}
	st.passes = st.s.passesFor(n, st.s.o.Now())
	_, st.told = st.s.presence.revocations()
	st.sight = snap.sightOf(n, st.sight)
	m := st.s.wholeMap(snap, n, st.sight, st.passes)
	st.roll = m.Roll
	return st.send(ctx, &api.WatchResponse{Session: st.w.session, Event: &api.WatchResponse_Map{Map: mapToWire(m)}})
}

func (st *stream) sendDirty(ctx context.Context) error {
	d := st.w.take()
	st.paced = st.s.o.Now()
	if d.whole {
		return st.sendWhole(ctx)
	}
	snap, n, err := st.self()
	if err != nil {
		return err
	}
	was := st.sight
	st.sight = snap.sightOf(n, was)
	return st.sendDelta(ctx, st.renew(snap, n, st.s.delta(snap, n, was, st.sight, d)))
}

// renew adds new passes to a delta when they are due, and for a relay what it
// has to refuse from now on, and to hand on.
func (st *stream) renew(snap *snapshot, n *nodeRecord, d *api.Delta) *api.Delta {
	if passes := st.s.passesFor(n, st.s.o.Now()); len(passes) > 0 && !samePasses(passes, st.passes) {
		st.passes, d.Passes = passes, &api.PassList{Passes: passesToWire(passes)}
	}
	if n.Relay == nil {
		return d
	}
	if revoked, revision := st.s.presence.revocations(); revision != st.told {
		st.told, d.Revoked = revision, &api.RevocationList{Revoked: revokedToWire(revoked)}
	}
	if roll := st.s.roll(snap); !bytes.Equal(roll.Roll, st.roll.Roll) {
		st.roll, d.Roll = roll, rollToWire(roll)
	}
	return d
}

// beat sends new passes when they are due, else a heartbeat.
func (st *stream) beat(ctx context.Context) error {
	snap, n, err := st.self()
	if err != nil {
		return err
	}
	if d := st.renew(snap, n, &api.Delta{Version: snap.rev}); d.Passes != nil || d.Revoked != nil || d.Roll != nil {
		return st.sendDelta(ctx, d)
	}
	return st.send(ctx, &api.WatchResponse{Event: &api.WatchResponse_Heartbeat{Heartbeat: &api.Heartbeat{}}})
}

func (st *stream) sendDelta(ctx context.Context, d *api.Delta) error {
	return st.send(ctx, &api.WatchResponse{Event: &api.WatchResponse_Delta{Delta: d}})
}

// send blocks while the node reads slowly, but not for longer than it may be
// silent.
func (st *stream) send(ctx context.Context, m *api.WatchResponse) error {
	controller(ctx).SetWriteDeadline(time.Now().Add(silence))
	if err := st.out.Send(m); err != nil {
		return err
	}
	st.pulse.sent = st.s.o.Now()
	return nil
}
