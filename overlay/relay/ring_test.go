package relay

import (
	"bytes"
	"math/rand/v2"
	"testing"
)

// TestRing pushes and takes at random and compares with a plain queue: what is
// taken is the newest that was pushed, whole and in order.
func TestRing(t *testing.T) {
	rng := rand.New(rand.NewPCG(5, 6))
	r := newRing[Label](4096, 16)
	var queue [][]byte
	bufs := [][]byte{make([]byte, 4096), make([]byte, 4096), make([]byte, 4096)}
	sizes, src := make([]int, 3), make([]Label, 3)
	total, dropped := 0, 0
	for i := range 20000 {
		if rng.IntN(3) > 0 {
			size := 1 + rng.IntN(1500)
			train := bytes.Repeat([]byte{byte(i)}, 1+rng.IntN(2*size))
			for off := range train {
				train[off] = byte(i + off)
			}
			n := r.push(Label(i), train, size)
			dropped += n
			for len(train) > 0 {
				k := min(size, len(train))
				queue = append(queue, train[:k])
				train = train[k:]
			}
			queue = queue[n:]
			continue
		}
		if len(queue) == 0 {
			continue
		}
		n, _, ok := r.take(bufs, sizes, src)
		if !ok || n != min(len(bufs), len(queue)) {
			t.Fatalf("took %d of %d", n, len(queue))
		}
		for j := range n {
			if !bytes.Equal(bufs[j][:sizes[j]], queue[j]) {
				t.Fatalf("datagram %d of step %d differs", j, i)
			}
		}
		queue = queue[n:]
		total += n
	}
	if total < 1000 || dropped == 0 {
		t.Errorf("%d taken, %d dropped: the test tests nothing", total, dropped)
	}
	if n, tooLong, _ := func() (int, int, bool) {
		r.push(1, make([]byte, 300), 200)
		for r.n > 2 {
			r.pop()
		}
		return r.take([][]byte{make([]byte, 100)}, sizes, src)
	}(); n != 1 || tooLong != 1 {
		t.Errorf("%d taken, %d too long", n, tooLong)
	}
	r.close()
	if n := r.push(1, make([]byte, 300), 200); n != 2 {
		t.Errorf("a closed ring dropped %d of 2", n)
	}
}

// TestIndex compares the index with a map, while a reader looks on.
func TestIndex(t *testing.T) {
	rng := rand.New(rand.NewPCG(7, 8))
	x := newIndex[Label, int](hashLabel)
	model := map[Label]*int{}
	fixed := 42
	x.put(1<<20, &fixed) // never touched again: the reader must always see it
	stop, done := make(chan struct{}), make(chan int)
	go func() {
		misses := 0
		for {
			select {
			case <-stop:
				done <- misses
				return
			default:
				if x.get(1<<20) != &fixed {
					misses++
				}
			}
		}
	}()
	for range 50000 {
		k := Label(rng.IntN(500))
		if rng.IntN(2) == 0 {
			v := new(int)
			x.put(k, v)
			model[k] = v
		} else {
			x.drop(k)
			delete(model, k)
		}
		k = Label(rng.IntN(500))
		if x.get(k) != model[k] {
			t.Fatalf("label %d", k)
		}
	}
	close(stop)
	if n := <-done; n != 0 {
		t.Errorf("the reader missed %d times", n)
	}
	if x.len() != len(model)+1 {
		t.Errorf("%d, want %d", x.len(), len(model)+1)
	}
	n := 0
	x.all(func(*int) { n++ })
	if n != x.len() {
		t.Errorf("all saw %d of %d", n, x.len())
	}
}
