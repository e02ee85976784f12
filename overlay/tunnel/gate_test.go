package tunnel

import (
	"testing"
	"testing/synctest"
	"time"
)

// TestGateBounds lets a fast reader meet a slow worker.
func TestGateBounds(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(100)
		queue := make(chan int, 1000)
		go func() {
			for n := range queue {
				time.Sleep(time.Millisecond)
				g.leave(n)
			}
		}()
		timer := time.NewTimer(0)
		most := int64(0)
		for range 500 {
			g.wait(timer)
			g.enter(40, time.Now().UnixNano())
			most = max(most, g.inside.Load())
			queue <- 40
		}
		close(queue)
		synctest.Wait()
		time.Sleep(time.Second)
		if most > 100+40 {
			t.Errorf("%d were inside at once", most)
		}
		if v := g.inside.Load(); v != 0 {
			t.Errorf("%d are left", v)
		}
	})
}

// TestGateHeals loses everything, then a part, of what enters.
func TestGateHeals(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(100)
		timer := time.NewTimer(0)
		start := time.Now()
		for range 50 { // each of 100 is dropped inside
			g.wait(timer)
			g.enter(100, time.Now().UnixNano())
		}
		if d := time.Since(start); d > 50*patience {
			t.Errorf("%v to pass 50 lost batches", d)
		}
		start = time.Now()
		for range 1000 { // one in ten is dropped
			g.wait(timer)
			g.enter(10, time.Now().UnixNano())
			g.leave(9)
		}
		if d := time.Since(start); d > 20*patience {
			t.Errorf("%v to pass 1000 batches, of which a tenth is lost", d)
		}
		time.Sleep(2 * patience)
		g.enter(1, time.Now().UnixNano())
		if v := g.inside.Load(); v != 1 {
			t.Errorf("%d count as inside after a pause, want 1", v)
		}
	})
}

// TestGateWakesAll has several readers wait for one place.
func TestGateWakesAll(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		g := newGate(10)
		g.enter(10, time.Now().UnixNano())
		through := make(chan struct{}, 3)
		for range 3 {
			go func() {
				g.wait(time.NewTimer(0))
				through <- struct{}{}
			}()
		}
		synctest.Wait()
		g.leave(10)
		synctest.Wait()
		if len(through) != 3 {
			t.Errorf("%d of 3 got through", len(through))
		}
		time.Sleep(patience)
	})
}

func TestGateAllocatesNothing(t *testing.T) {
	g := newGate(1)
	timer := time.NewTimer(0)
	now := time.Now().UnixNano()
	if n := testing.AllocsPerRun(100, func() {
		g.wait(timer)
		g.enter(1, now)
		g.leave(1)
		now += int64(patience)
	}); n != 0 {
		t.Errorf("%v allocations", n)
	}
}
