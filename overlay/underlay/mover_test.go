package underlay

import (
	"math/rand/v2"
	"testing"
	"time"
)

// yard is a mover under virtual time.
type yard struct {
	now   time.Time
	m     mover
	rnd   *rand.Rand
	moves []time.Duration // since the start
	start time.Time
}

func newYard(seed uint64) *yard {
	at := time.Unix(1000, 0)
	return &yard{now: at, start: at, rnd: rand.New(rand.NewPCG(1, seed))}
}

// run lets time pass with the same facts, which a move does not change.
func (y *yard) run(d time.Duration, h hearing) {
	for end := y.now.Add(d); y.now.Before(end); y.now = y.now.Add(50 * time.Millisecond) {
		if move, _ := y.m.step(y.now, h, func(d time.Duration) time.Duration { return time.Duration(y.rnd.Int64N(int64(d))) }); move {
			y.moves = append(y.moves, y.now.Sub(y.start))
		}
	}
}

func TestMover(t *testing.T) {
	for _, c := range []struct {
		name        string
		h           hearing
		first, last time.Duration // of the first move; both zero: none
	}{
		{"UDP is answered", hearing{asked: 50, answers: true, bridged: true}, 0, 0},
		{"nothing was asked", hearing{bridged: true}, 0, 0},
		{"TLS works where UDP does not", hearing{asked: askedBridged, bridged: true}, moveBridged / 2, moveBridged},
		{"too early to tell", hearing{asked: askedBridged - 1, bridged: true}, 0, 0},
		{"nothing works", hearing{asked: askedAlone}, moveAlone, moveAlone + time.Second},
		{"nothing works, and the kernel takes little", hearing{asked: askedAlone - 1}, 0, 0},
	} {
		t.Run(c.name, func(t *testing.T) {
			for seed := range uint64(20) {
				y := newYard(seed)
				y.run(10*time.Minute, c.h)
				switch {
				case c.last == 0 && len(y.moves) > 0:
					t.Fatalf("it moves at %v", y.moves)
				case c.last > 0 && (len(y.moves) == 0 || y.moves[0] < c.first || y.moves[0] > c.last+50*time.Millisecond):
					t.Fatalf("it moves at %v, want from %v to %v", y.moves, c.first, c.last)
				}
			}
		})
	}
}

// Moves that help nobody become rare; after one that did, and a while in peace,
// the next silence is the first again.
func TestMoverRate(t *testing.T) {
	blocked := hearing{asked: 10, bridged: true}
	y := newYard(1)
	y.run(24*time.Hour, blocked)
	if n := len(y.moves); n < 24*4 || n > 24*9 {
		t.Errorf("%d moves in a day, want one per 10 minutes", n)
	}
	for i := 1; i < len(y.moves); i++ {
		if gap := y.moves[i] - y.moves[i-1]; gap < moveLeast {
			t.Errorf("two moves within %v", gap)
		}
	}
	y.run(moveProven/2, hearing{answers: true})
	y.moves, y.start = nil, y.now
	y.run(time.Minute, blocked)
	if len(y.moves) > 1 {
		t.Errorf("UDP that worked for moments gives a fresh start: %v", y.moves)
	}
	y.run(moveMost+moveProven, hearing{answers: true})
	y.moves, y.start = nil, y.now
	y.run(time.Minute, blocked)
	if len(y.moves) == 0 || y.moves[0] > moveBridged+50*time.Millisecond {
		t.Errorf("after peace it moves at %v", y.moves)
	}
}
