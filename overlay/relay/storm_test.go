package relay

import (
	"container/heap"
	"math/rand/v2"
	"testing"
	"time"
)

// storm is a relay and many nodes in virtual time.
type storm struct {
	now    time.Time
	start  time.Time
	door   *door // nil: the relay is dead
	nodes  []*stormNode
	queue  stormQueue
	rng    *rand.Rand
	perSec map[int]int // ATTACHes that arrived, by second since start
	events map[event]int
}

type stormNode struct {
	*Session
	delay time.Duration // one way
	from  origin
	tick  time.Time // the earliest that is queued
}

// stormEvent is a message to the relay, one to a node, or neither: a node's turn.
type stormEvent struct {
	at   time.Time
	node *stormNode
	up   []byte
	down []byte
}

type stormQueue []stormEvent

func (q stormQueue) Len() int           { return len(q) }
func (q stormQueue) Less(i, j int) bool { return q[i].at.Before(q[j].at) }
func (q stormQueue) Swap(i, j int)      { q[i], q[j] = q[j], q[i] }
func (q *stormQueue) Push(x any)        { *q = append(*q, x.(stormEvent)) }
func (q *stormQueue) Pop() any {
	old := *q
	e := old[len(old)-1]
	*q = old[:len(old)-1]
	return e
}

// rngReader is a seeded source of nonces and jitter.
type rngReader struct{ *rand.Rand }

func (r rngReader) Read(b []byte) (int, error) {
	for i := range b {
		b[i] = byte(r.Uint32())
	}
	return len(b), nil
}

func newStorm(nodes int) *storm {
	s := &storm{now: time.Unix(1_000_000, 0), rng: rand.New(rand.NewPCG(1, uint64(nodes))), perSec: map[int]int{}, events: map[event]int{}}
	s.start = s.now
	s.restart()
	for i := range nodes {
		b, k := pass(testNetwork, Label(i+1), 1, s.now.Add(24*time.Hour))
		n := &stormNode{
			Session: NewSession(SessionOptions{Ticket: b, Key: k, Rand: rngReader{s.rng}}),
			delay:   10*time.Millisecond + time.Duration(s.rng.Int64N(int64(90*time.Millisecond))),
			from:    byUDP(nodeHost(i, 1)),
		}
		n.Crowd(nodes)
		s.nodes = append(s.nodes, n)
		s.wake(n, s.now.Add(time.Duration(s.rng.Int64N(int64(20*time.Second)))))
	}
	return s
}

func (s *storm) restart() { s.door = newDoor(testSecret, s.now, newTable(1<<16, 1<<14)) }

func (s *storm) wake(n *stormNode, at time.Time) {
	if n.tick.IsZero() || at.Before(n.tick) {
		n.tick = at
		heap.Push(&s.queue, stormEvent{at: at, node: n})
	}
}

func (s *storm) send(n *stormNode, frame []byte) {
	if frame != nil {
		heap.Push(&s.queue, stormEvent{at: s.now.Add(n.delay), node: n, up: frame})
	}
}

func (s *storm) run(d time.Duration) {
	end := s.now.Add(d)
	for len(s.queue) > 0 && s.queue[0].at.Before(end) {
		e := heap.Pop(&s.queue).(stormEvent)
		s.now = e.at
		n := e.node
		switch {
		case e.up != nil:
			if frameType(e.up) == frameAttach {
				s.perSec[int(s.now.Sub(s.start)/time.Second)]++
			}
			if s.door == nil {
				continue
			}
			reply, what := s.door.control(nil, s.now, n.from, e.up)
			s.events[what]++
			if len(reply) > 0 {
				heap.Push(&s.queue, stormEvent{at: s.now.Add(n.delay), node: n, down: reply})
			}
			continue
		case e.down != nil:
			s.send(n, n.Handle(s.now, e.down))
		case !n.tick.Equal(e.at):
			continue // it was woken earlier
		}
		n.tick = time.Time{}
		frame, next := n.Tick(s.now)
		s.send(n, frame)
		s.wake(n, next)
	}
	s.now = end
}

// attached returns how many nodes have a session with the relay as it is now.
func (s *storm) attached() (n int) {
	for _, node := range s.nodes {
		if st := node.Status(); st.State == Up && s.door != nil && st.BootID == s.door.boot {
			n++
		}
	}
	return n
}

// TestStorm restarts a relay under ten thousand nodes, which all hear of it in
// the same moment, since their streams to the coordinator break: what they send
// together stays bounded, nobody is locked out, and soon all are back.
func TestStorm(t *testing.T) {
	nodes := 10_000
	if testing.Short() {
		nodes = 1000
	}
	for _, down := range []time.Duration{100 * time.Millisecond, 10 * time.Second} {
		t.Run(down.String(), func(t *testing.T) {
			s := newStorm(nodes)
			s.run(25 * time.Second)
			if n := s.attached(); n != nodes {
				t.Fatalf("%d of %d nodes attached", n, nodes)
			}
			clear(s.perSec)
			clear(s.events)
			s.start, s.door = s.now, nil
			for _, n := range s.nodes { // as underlay does when the control stream breaks
				n.Kick(s.now)
				n.Watch(s.now, true)
				s.wake(n, s.now)
			}
			s.run(down)
			s.restart()
			back := s.now
			most := nodes * 99 / 100
			for s.attached() < most && s.now.Sub(back) < time.Minute {
				s.run(100 * time.Millisecond)
			}
			took := s.now.Sub(back)
			s.run(10 * time.Second)
			peak := 0
			for _, n := range s.perSec {
				peak = max(peak, n)
			}
			t.Logf("down for %v: 99 %% back after %v, all %v; at most %d ATTACHes in a second", down, took, s.attached() == nodes, peak)
			if took > 6*time.Second || s.attached() != nodes {
				t.Errorf("%d of %d nodes are back, 99 %% after %v", s.attached(), nodes, took)
			}
			// Few may be as fast as attachEach lets many be.
			if peak > max(5*nodes/2, 6000) || s.events[dropLimited] > 0 {
				t.Errorf("%d ATTACHes in a second, %d refused for their number", peak, s.events[dropLimited])
			}
		})
	}
}
