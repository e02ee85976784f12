package udp

import (
	"bytes"
	"encoding/binary"
	"errors"
	"math/rand/v2"
	"net"
	"net/netip"
	"os"
	"runtime"
	"testing"

	"go.uber.org/goleak"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

var (
	loop4 = netip.MustParseAddrPort("127.0.0.1:0")
	loop6 = netip.MustParseAddrPort("[::1]:0")
)

func listen(t testing.TB, addr netip.AddrPort) *Socket {
	t.Helper()
	s, err := Listen(addr, Options{})
	if err != nil {
		if addr.Addr().Is6() && os.Getenv("CI") != "true" {
			t.Skip("SKIPPED: no IPv6 on loopback: ", err)
		}
		t.Fatal(err)
	}
	t.Cleanup(func() { s.Close() })
	return s
}

// collect reads until n datagrams came.
func collect(t testing.TB, r *Reader, n int) (got [][]byte, src netip.AddrPort) {
	t.Helper()
	for len(got) < n {
		trains, err := r.Read()
		if err != nil {
			t.Fatal(err)
		}
		for _, tr := range trains {
			src = tr.Src
			for b := tr.Buf; len(b) > 0; {
				k := min(tr.Size, len(b))
				got = append(got, bytes.Clone(b[:k]))
				b = b[k:]
			}
		}
	}
	return got, src
}

// TestRoundTrip sends what Add takes in every shape, and wants the same
// datagrams in the same order at the other end.
func TestRoundTrip(t *testing.T) {
	fill := func(n int, seed byte) []byte {
		b := make([]byte, n)
		for i := range b {
			b[i] = seed + byte(i)
		}
		return b
	}
	type add struct {
		size  int
		parts [][]byte
	}
	tests := map[string][]add{
		"one":                  {{100, [][]byte{fill(100, 1)}}},
		"a train with a tail":  {{1000, [][]byte{fill(5300, 2)}}},
		"one part a datagram":  {{500, [][]byte{fill(500, 1), fill(500, 2), fill(77, 3)}}},
		"parts across borders": {{500, [][]byte{fill(300, 1), fill(900, 2), fill(1, 3)}}},
		"64 equal ones":        {{100, [][]byte{fill(6400, 9)}}},
		"more than a message":  {{1400, [][]byte{fill(150_000, 4)}}},
		"merged adds":          {{200, [][]byte{fill(200, 1)}}, {200, [][]byte{fill(200, 2)}}, {200, [][]byte{fill(60, 3)}}, {200, [][]byte{fill(200, 4)}}},
		"growing ones":         {{10, [][]byte{fill(10, 1)}}, {20, [][]byte{fill(20, 2)}}, {15, [][]byte{fill(15, 3)}}},
		"above the MTU":        {{30_000, [][]byte{fill(61_000, 1)}}},
		"nothing":              {{100, nil}, {0, [][]byte{fill(5, 1)}}, {9, [][]byte{nil, fill(9, 1)}}},
	}
	for _, loop := range []netip.AddrPort{loop4, loop6} {
		for name, adds := range tests {
			t.Run(name+" "+loop.Addr().String(), func(t *testing.T) {
				a, b := listen(t, loop), listen(t, loop)
				w, r := a.NewWriter(), b.NewReader(8)
				var want [][]byte
				for _, ad := range adds {
					w.Add(b.LocalAddr(), ad.size, ad.parts...)
					flat := bytes.Join(ad.parts, nil)
					for ad.size > 0 && len(flat) > 0 {
						k := min(ad.size, len(flat))
						want = append(want, flat[:k])
						flat = flat[k:]
					}
				}
				if n := w.Flush(); n != 0 {
					t.Fatalf("dropped %d: %v", n, w.err)
				}
				got, src := collect(t, r, len(want))
				if src != a.LocalAddr() {
					t.Errorf("came from %s, sent from %s", src, a.LocalAddr())
				}
				for i := range want {
					if !bytes.Equal(got[i], want[i]) {
						t.Fatalf("datagram %d of %d differs: %d bytes, want %d", i, len(want), len(got[i]), len(want[i]))
					}
				}
			})
		}
	}
}

// TestOrder mixes destinations and sizes at random; each destination sees its
// own datagrams, whole and in order.
func TestOrder(t *testing.T) {
	rng := rand.New(rand.NewPCG(1, 2))
	from := listen(t, loop4)
	var to [12]*Socket
	for i := range to {
		to[i] = listen(t, loop4)
	}
	w := from.NewWriter()
	for range 20 {
		var want [len(to)][][]byte
		for range 60 {
			d := rng.IntN(len(to))
			b := make([]byte, 8+rng.IntN(3)*50)
			binary.LittleEndian.PutUint64(b, rng.Uint64())
			w.Add(to[d].LocalAddr(), len(b), b)
			want[d] = append(want[d], b)
		}
		if n := w.Flush(); n != 0 {
			t.Fatal(n, w.err)
		}
		for d := range to {
			got, _ := collect(t, to[d].NewReader(2), len(want[d]))
			for i := range got {
				if !bytes.Equal(got[i], want[d][i]) {
					t.Fatalf("destination %d, datagram %d differs", d, i)
				}
			}
		}
	}
}

func TestCloseWakesReader(t *testing.T) {
	for _, moderate := range []bool{false, true} {
		for range 20 {
			s, err := Listen(loop4, Options{Moderate: moderate})
			if err != nil {
				t.Fatal(err)
			}
			done := make(chan error)
			go func() {
				_, err := s.NewReader(1).Read()
				done <- err
			}()
			runtime.Gosched()
			if err := s.Send(s.LocalAddr(), []byte("x")); err != nil {
				t.Error(err)
			}
			<-done
			go func() {
				_, err := s.NewReader(1).Read()
				done <- err
			}()
			runtime.Gosched()
			s.Close()
			if err := <-done; !errors.Is(err, net.ErrClosed) {
				t.Errorf("got %v", err)
			}
			if err := s.Send(loop4, []byte("x")); err == nil {
				t.Error("sent on a closed socket")
			}
		}
	}
}

func TestSendErrorIsCounted(t *testing.T) {
	s := listen(t, loop4)
	if err := s.Send(netip.MustParseAddrPort("[2001:db8::1]:9"), []byte("x")); err == nil {
		t.Error("an IPv4 socket sent to an IPv6 address")
	}
	if c := s.Counters(); c.SendErrors != 1 {
		t.Errorf("%+v", c)
	}
}

func TestHotPathDoesNotAllocate(t *testing.T) {
	for _, loop := range []netip.AddrPort{loop4, loop6} {
		a, b := listen(t, loop), listen(t, loop)
		w, r := a.NewWriter(), b.NewReader(4)
		dst, buf := b.LocalAddr(), make([]byte, 12_345)
		if n := testing.AllocsPerRun(100, func() {
			w.Add(dst, 1000, buf[:5000], buf[5000:])
			w.Add(dst, 70, buf[:70])
			w.Flush()
			for got := 0; got < 12_415; {
				trains, err := r.Read()
				if err != nil {
					t.Fatal(err)
				}
				for _, tr := range trains {
					got += len(tr.Buf)
				}
			}
		}); n != 0 {
			t.Errorf("%s: %v allocations", loop, n)
		}
	}
}
