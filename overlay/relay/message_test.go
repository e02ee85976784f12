package relay

import (
	"bytes"
	"errors"
	"io"
	"math/rand/v2"
	"testing"
	"testing/iotest"
	"time"

	"overlayd/overlay/udp"
)

// TestTrains cuts messages into trains.
func TestTrains(t *testing.T) {
	d := func(size int, fill byte) []byte { return bytes.Repeat([]byte{fill}, size) }
	message := func(ds ...[]byte) (m []byte) {
		for _, b := range ds {
			m = appendDatagram(m, b)
		}
		return m
	}
	long := d(maxDatagram, 9)
	tests := []struct {
		name  string
		m     []byte
		want  []udp.Train
		fails bool
	}{
		{"nothing", nil, nil, false},
		{"padding only", message(nil, nil), nil, false},
		{"one of one byte", message(d(1, 1)), []udp.Train{{Buf: d(1, 1), Size: 1}}, false},
		{"the longest", message(long), []udp.Train{{Buf: long, Size: maxDatagram}}, false},
		{"equal ones, a shorter one, and on", message(d(9, 1), d(9, 2), d(4, 3), d(4, 4), d(9, 5)), []udp.Train{
			{Buf: append(append(d(9, 1), d(9, 2)...), d(4, 3)...), Size: 9}, {Buf: d(4, 4), Size: 4}, {Buf: d(9, 5), Size: 9}}, false},
		{"padding in between", message(d(9, 1), nil, d(9, 2)), []udp.Train{{Buf: append(d(9, 1), d(9, 2)...), Size: 9}}, false},
		{"half a length", append(message(d(9, 1)), 0), []udp.Train{{Buf: d(9, 1), Size: 9}}, true},
		{"half a datagram", append(message(d(9, 1)), 0, 5, 1, 2), []udp.Train{{Buf: d(9, 1), Size: 9}}, true},
		{"a length alone", []byte{0xff, 0xff}, nil, true},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			got, err := trains(nil, bytes.Clone(tt.m))
			if errors.Is(err, errMessage) != tt.fails || len(got) != len(tt.want) {
				t.Fatalf("%d trains, %v; want %d", len(got), err, len(tt.want))
			}
			for i := range got {
				if got[i].Size != tt.want[i].Size || !bytes.Equal(got[i].Buf, tt.want[i].Buf) {
					t.Errorf("train %d: %d bytes of %d", i, len(got[i].Buf), got[i].Size)
				}
			}
		})
	}
}

// FuzzTrains: the trains hold the message's datagrams, in order, and nothing else.
func FuzzTrains(f *testing.F) {
	f.Add([]byte{0, 1, 7, 0, 1, 8})
	f.Add([]byte{0, 0, 0, 2, 1, 1, 0, 2, 2, 2, 0, 1, 3, 0xff})
	f.Fuzz(func(t *testing.T, m []byte) {
		var want [][]byte
		rest := m
		for len(rest) >= 2 {
			n := int(rest[0])<<8 | int(rest[1])
			if n > len(rest)-2 {
				break
			}
			if n > 0 {
				want = append(want, bytes.Clone(rest[2:2+n]))
			}
			rest = rest[2+n:]
		}
		got, err := trains(nil, bytes.Clone(m))
		if (err != nil) != (len(rest) > 0) {
			t.Fatalf("%d bytes are left, and %v", len(rest), err)
		}
		for _, tr := range got {
			for b := tr.Buf; len(b) > 0; {
				d := b[:min(tr.Size, len(b))]
				b = b[len(d):]
				if len(want) == 0 || !bytes.Equal(d, want[0]) {
					t.Fatalf("a datagram of %d bytes that is not next", len(d))
				}
				want = want[1:]
			}
		}
		if len(want) > 0 {
			t.Fatalf("%d datagrams are missing", len(want))
		}
	})
}

// TestFrames: what one end finishes the other reads, however it is cut.
func TestFrames(t *testing.T) {
	for _, client := range []bool{true, false} {
		var wire []byte
		var want [][]byte
		for _, size := range []int{0, 1, 125, 126, 127, 1000, 65535, 65536, maxMessage} {
			payload := bytes.Repeat([]byte{byte(size), 2, 3}, size/3+1)[:size]
			want = append(want, payload)
			b := append(make([]byte, maxFrameHeader), payload...)
			wire = append(wire, finishFrame(b, opBinary, client)...)
			ping := append(make([]byte, maxFrameHeader), "hello"...)
			wire = append(wire, finishFrame(ping, opPing, client)...)
		}
		for _, cut := range []func(io.Reader) io.Reader{
			func(r io.Reader) io.Reader { return r }, iotest.OneByteReader, iotest.HalfReader, iotest.DataErrReader,
		} {
			pings := 0
			f := newMessages(cut(bytes.NewReader(wire)), !client, func(b []byte) {
				if string(b) == "hello" {
					pings++
				}
			})
			b := make([]byte, maxMessage)
			for i := range want {
				n, err := f.message(b)
				if err != nil || !bytes.Equal(b[:n], want[i]) {
					t.Fatalf("message %d: %d bytes, %v", i, n, err)
				}
			}
			if _, err := f.message(b); !errors.Is(err, io.EOF) || pings != len(want) {
				t.Errorf("%v at the end, %d pings", err, pings)
			}
		}
	}
}

// TestBadFrames: whoever does not keep to the rules is not listened to.
func TestBadFrames(t *testing.T) {
	tests := []struct {
		name string
		wire []byte
		want error
	}{
		{"fragments", []byte{0x02, 1, 'a', 0x00, 1, 'b', 0x80, 1, 'c'}, nil},
		{"a ping between fragments", []byte{0x02, 1, 'a', 0x89, 0, 0x80, 2, 'b', 'c'}, nil},
		{"a close", []byte{0x88, 0}, io.EOF},
		{"text", []byte{0x81, 1, 'a'}, errWebSocket},
		{"a continuation of nothing", []byte{0x80, 1, 'a'}, errWebSocket},
		{"a message within a message", []byte{0x02, 1, 'a', 0x82, 1, 'b'}, errWebSocket},
		{"a mask from a server", []byte{0x82, 0x81, 1, 2, 3, 4, 5}, errWebSocket},
		{"reserved bits", []byte{0xc2, 1, 'a'}, errWebSocket},
		{"an unknown opcode", []byte{0x8b, 0}, errWebSocket},
		{"a ping in pieces", []byte{0x09, 1, 'a'}, errWebSocket},
		{"a long ping", append([]byte{0x89, 126, 0, 126}, make([]byte, 126)...), errWebSocket},
		{"too long", []byte{0x82, 127, 0, 0, 0, 0, 0, 1, 0, 2}, errWebSocket},
		{"as long as can be", []byte{0x82, 127, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff, 0xff}, errWebSocket},
		{"cut in the header", []byte{0x82, 126, 0}, io.ErrUnexpectedEOF},
		{"cut in the payload", []byte{0x82, 3, 'a'}, io.ErrUnexpectedEOF},
	}
	for _, tt := range tests {
		t.Run(tt.name, func(t *testing.T) {
			f := newMessages(bytes.NewReader(tt.wire), true, func([]byte) {})
			b := make([]byte, maxMessage)
			n, err := f.message(b)
			if !errors.Is(err, tt.want) || err == nil && string(b[:n]) != "abc" {
				t.Errorf("%q, %v; want %v", b[:n], err, tt.want)
			}
		})
	}
}

// FuzzFrames: nothing that comes makes the reader panic or return too much.
func FuzzFrames(f *testing.F) {
	f.Add([]byte{0x82, 3, 0, 1, 7}, true)
	f.Add([]byte{0x02, 0x81, 1, 2, 3, 4, 5, 0x80, 0x80, 1, 2, 3, 4}, false)
	f.Fuzz(func(t *testing.T, wire []byte, client bool) {
		m := newMessages(iotest.OneByteReader(bytes.NewReader(wire)), client, func(b []byte) {
			if len(b) > maxControl {
				t.Fatal("a long pong")
			}
		})
		b := make([]byte, 64)
		for {
			n, err := m.message(b)
			if err != nil {
				return
			}
			if _, err := trains(nil, b[:n]); err != nil {
				return
			}
		}
	})
}

// TestOutbox compares it with a plain list, in random order.
func TestOutbox(t *testing.T) {
	rnd := rand.New(rand.NewPCG(1, 2))
	const most = 50_000
	o := newOutbox(most)
	var list [][]byte
	held, dropped := 0, 0
	for range 20_000 {
		if rnd.IntN(3) > 0 {
			size := 1 + rnd.IntN(1500)
			train := make([]byte, size*(1+rnd.IntN(5))+rnd.IntN(size))
			for i := range train {
				train[i] = byte(rnd.Uint32())
			}
			dropped += o.push(train, size)
			for b := train; len(b) > 0; b = b[min(size, len(b)):] {
				d := b[:min(size, len(b))]
				list = append(list, d)
				held += lengthSize + len(d)
			}
			for held > most {
				held -= lengthSize + len(list[0])
				list = list[1:]
				dropped--
			}
		}
		if dropped != 0 {
			t.Fatalf("%d dropped too much", dropped)
		}
		if o.n != held || len(o.data) > most {
			t.Fatalf("%d bytes in %d, want %d", o.n, len(o.data), held)
		}
		if held > 0 && rnd.IntN(4) == 0 {
			m, op, ok := o.take(nil, usualMessage)
			if !ok || op != opBinary || len(m) > usualMessage {
				t.Fatal(len(m), op, ok)
			}
			for len(m) > 0 {
				if want := appendDatagram(nil, list[0]); !bytes.HasPrefix(m, want) {
					t.Fatal("another datagram")
				}
				m = m[lengthSize+len(list[0]):]
				held -= lengthSize + len(list[0])
				list = list[1:]
			}
		}
	}
}

// TestOutboxOrder: pongs and control go before data, and are few; what is too
// long for the outbox goes nowhere.
func TestOutboxOrder(t *testing.T) {
	o := newOutbox(70_000)
	data := bytes.Repeat([]byte{4}, 1400)
	if n := o.push(data, len(data)); n != 0 {
		t.Fatal(n)
	}
	control := make([]byte, pingSize)
	fit := 0
	for o.pushUrgent(control) {
		fit++
	}
	if fit != urgentBytes/(lengthSize+pingSize) {
		t.Errorf("%d control messages", fit)
	}
	o.pushPong([]byte("first"))
	o.pushPong([]byte("second"))
	if m, op, _ := o.take(nil, usualMessage); op != opPong || string(m) != "second" {
		t.Errorf("%d %q", op, m)
	}
	m, op, _ := o.take(nil, usualMessage)
	got, err := trains(nil, m)
	if op != opBinary || err != nil || got[0].Size != pingSize || len(got) != 2 || !bytes.Equal(got[1].Buf, data) {
		t.Errorf("%v: %d trains", err, len(got))
	}
	if n := o.push(make([]byte, maxDatagram+1), maxDatagram+1); n != 1 {
		t.Error("it took more than fits a length")
	}
	if n := o.push(make([]byte, maxDatagram), maxDatagram); n != 0 {
		t.Error("it did not take the longest")
	}
	if m, _, _ := o.take(nil, usualMessage); len(m) != maxMessage {
		t.Errorf("%d bytes", len(m))
	}
	o.push(data, len(data))
	o.close()
	if n := o.push(data, 100); n != 14 {
		t.Errorf("%d dropped after the end", n)
	}
	if _, _, ok := o.take(nil, usualMessage); !ok {
		t.Error("what was in it is lost")
	}
	if _, _, ok := o.take(nil, usualMessage); ok {
		t.Error("something comes after the end")
	}
}

// TestOutboxAllocs: once it has grown, nothing allocates.
func TestOutboxAllocs(t *testing.T) {
	o := newOutbox(outboxBytes)
	train := bytes.Repeat(datagram(2, 1400, 0), 20)
	buf := make([]byte, 0, maxMessage+maxFrameHeader)
	var cut []udp.Train
	work := func() {
		o.push(train, 1400)
		for o.n > 0 {
			m, _, _ := o.take(buf, usualMessage)
			cut, _ = trains(cut[:0], m)
		}
	}
	for range 20 {
		work()
	}
	if n := testing.AllocsPerRun(100, work); n != 0 {
		t.Errorf("%v allocations", n)
	}
}

// TestTakeWaits: the writer sleeps until there is something.
func TestTakeWaits(t *testing.T) {
	o := newOutbox(outboxBytes)
	got := make(chan bool)
	go func() {
		_, _, ok := o.take(nil, usualMessage)
		got <- ok
	}()
	select {
	case <-got:
		t.Fatal("it did not wait")
	case <-time.After(10 * time.Millisecond):
	}
	o.drop()
	if <-got {
		t.Error("something from nothing")
	}
}

func TestPace(t *testing.T) {
	var p pace
	for i := range 100 {
		if i < paceAfter && p.message() != usualMessage {
			t.Errorf("a long message after %d", i)
		}
		p.wrote(usualMessage, 50*time.Microsecond)
	}
	if p.message() != longMessage {
		t.Error("no long message on a fast line")
	}
	p.wrote(100, time.Second) // the line was idle
	if p.message() != longMessage {
		t.Error("a short message counts")
	}
	// 5 Mbit/s: the kernel takes some at once, and then none for long.
	for i := range 100 {
		took := 20 * time.Microsecond
		if i%4 == 3 {
			took = 100 * time.Millisecond
		}
		p.wrote(p.message(), took)
		if i > 2*paceAfter && p.message() != usualMessage {
			t.Fatalf("a long message on a slow line, after %d", i)
		}
	}
}

func TestPushEach(t *testing.T) {
	o := newOutbox(outboxBytes)
	want := [][]byte{{1, 2, 3}, {4}, bytes.Repeat([]byte{5}, 1500)}
	if dropped := o.pushEach(append(want, make([]byte, maxDatagram+1))); dropped != 1 {
		t.Errorf("%d dropped", dropped)
	}
	m, _, _ := o.take(nil, longMessage)
	var message []byte
	for _, d := range want {
		message = appendDatagram(message, d)
	}
	if !bytes.Equal(m, message) {
		t.Error("another message came out")
	}
	o.close()
	if dropped := o.pushEach(want); dropped != len(want) {
		t.Errorf("closed: %d dropped", dropped)
	}
}
