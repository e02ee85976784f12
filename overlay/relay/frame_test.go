package relay

import (
	"bytes"
	"net/netip"
	"os/exec"
	"strings"
	"testing"
	"time"

	"overlayd/overlay/key"
)

func TestTicketRoundTrip(t *testing.T) {
	want := Ticket{Network: Network{1, 2}, Label: MaxLabel, NotAfter: time.Unix(1_900_000_000, 0), Serial: 7}
	b := want.Append(nil)
	if len(b) > 64 {
		t.Errorf("%d bytes", len(b))
	}
	got, err := ParseTicket(b)
	if err != nil || got != want {
		t.Errorf("%+v, %v", got, err)
	}
	for name, bad := range map[string][]byte{
		"empty":     nil,
		"short":     b[:len(b)-1],
		"long":      append(bytes.Clone(b), 0),
		"version":   append([]byte{2}, b[1:]...),
		"zero node": Ticket{NotAfter: time.Unix(1, 0)}.Append(nil),
	} {
		if _, err := ParseTicket(bad); err == nil {
			t.Errorf("%s: taken", name)
		}
	}
}

func FuzzTicket(f *testing.F) {
	f.Add(Ticket{Label: 3, NotAfter: time.Unix(5, 0)}.Append(nil))
	f.Fuzz(func(t *testing.T, b []byte) {
		k, err := ParseTicket(b)
		if err != nil {
			return
		}
		if k.Label == 0 || k.Label > MaxLabel {
			t.Errorf("label %d", k.Label)
		}
		if !bytes.Equal(k.Append(nil), b) {
			t.Errorf("%x does not come back", b)
		}
	})
}

// frames returns one frame of each type under k.
func frames(k key.Secret) [][]byte {
	addr := netip.MustParseAddrPort("192.0.2.1:99")
	six := netip.MustParseAddrPort("[2001:db8::1]:99")
	return [][]byte{
		attach{nonce: nonce{1}, token: token{2}, ticket: [ticketSize]byte{3}}.Append(nil, k),
		challenge{nonce{1}, token{2}, addr}.Append(nil, k),
		ready{nonce{1}, 2, six, 3, 4}.Append(nil, k),
		ping{1, 2}.Append(nil, k),
		pong{1, 2, addr, 3}.Append(nil, k),
		appendUnknown(nil),
		goAway{1, ReasonFull}.Append(nil, k),
	}
}

func TestFramesRoundTrip(t *testing.T) {
	k := key.NewSecret()
	for i, b := range frames(k) {
		if got := frameType(b); got != byte(i+1) {
			t.Fatalf("frame %d has type %d", i+1, got)
		}
		if !bytes.Equal(again(b, k), b) {
			t.Errorf("frame %d does not come back", i+1)
		}
		if b[1] == frameUnknown {
			continue
		}
		for bit := range 8 * len(b) {
			bad := bytes.Clone(b)
			bad[bit/8] ^= 1 << (bit % 8)
			if frameType(bad) != 0 && authentic(k, bad) {
				t.Errorf("frame %d is authentic with bit %d wrong", i+1, bit)
			}
		}
	}
}

// again parses a frame and writes it once more.
func again(b []byte, k key.Secret) []byte {
	switch frameType(b) {
	case frameAttach:
		return parseAttach(b).Append(nil, k)
	case frameChallenge:
		return parseChallenge(b).Append(nil, k)
	case frameReady:
		return parseReady(b).Append(nil, k)
	case framePing:
		return parsePing(b).Append(nil, k)
	case framePong:
		return parsePong(b).Append(nil, k)
	case frameUnknown:
		return appendUnknown(nil)
	case frameGoAway:
		return parseGoAway(b).Append(nil, k)
	}
	return nil
}

func FuzzFrame(f *testing.F) {
	k := key.NewSecret()
	for _, b := range frames(k) {
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		kind := frameType(b)
		if kind == 0 || kind == frameUnknown {
			return
		}
		got := again(b, k)
		if len(got) != len(b) {
			t.Fatalf("%x becomes %x", b, got)
		}
		if kind != framePing && !bytes.Equal(got[:len(b)-macSize], b[:len(b)-macSize]) { // PING has padding
			t.Fatalf("%x becomes %x", b, got)
		}
	})
}

// FuzzSession feeds a session that is up, and one that attaches, frames that
// are bytes as they are, or that have a right MAC.
func FuzzSession(f *testing.F) {
	for _, b := range frames(key.NewSecret()) {
		f.Add(b, true, true)
		f.Add(b, false, true)
		f.Add(b, true, false)
	}
	f.Fuzz(func(t *testing.T, b []byte, up, sealed bool) {
		w := newWorld(t, 1)
		n := w.node(1)
		if up {
			w.run(time.Second)
		} else {
			n.Tick(w.now)
		}
		if sealed && len(b) > macSize {
			b = seal(bytes.Clone(b[:len(b)-macSize]), 0, n.key)
		}
		reply := n.Handle(w.now, b)
		if reply != nil && frameType(reply) == 0 {
			t.Fatalf("answers %x", reply)
		}
		n.next = w.now
		w.run(time.Minute)
		w.wantUp(n)
	})
}

// FuzzDoor feeds the relay frames from an address with a session and from one
// without; whatever comes, the session stays and no answer is longer.
func FuzzDoor(f *testing.F) {
	for _, b := range frames(key.NewSecret()) {
		f.Add(b, true, true)
		f.Add(b, false, true)
		f.Add(b, true, false)
	}
	f.Fuzz(func(t *testing.T, b []byte, known, sealed bool) {
		w := newWorld(t, 1)
		n, m := w.node(1), w.node(2)
		w.run(time.Second)
		src := netip.MustParseAddrPort("198.51.100.1:7")
		if known {
			src = n.addr
		}
		if sealed && len(b) > macSize {
			b = seal(bytes.Clone(b[:len(b)-macSize]), 0, n.key)
		}
		reply, _ := w.door.control(nil, w.now, byUDP(src), b)
		if len(reply) > len(b) {
			t.Fatalf("%d bytes answer %d", len(reply), len(b))
		}
		w.wantFlow(n, m)
		w.wantFlow(m, n)
	})
}

// TestImports keeps the relay blind: it must not be able to decrypt, nor to
// touch the host, nor to need a coordinator.
func TestImports(t *testing.T) {
	out, err := exec.Command("go", "list", "-deps", ".").Output()
	if err != nil {
		t.Fatal(err)
	}
	if bad := forbidden(strings.Fields(string(out))); len(bad) > 0 {
		t.Errorf("overlay/relay reaches %s", bad)
	}
	if bad := forbidden([]string{"fmt", "golang.zx2c4.com/wireguard/conn", "overlayd/overlay/coord/api", "overlayd/overlay/key", "golang.org/x/crypto/chacha20poly1305"}); len(bad) != 3 {
		t.Errorf("the test would let through: found only %s", bad)
	}
}

// forbidden returns the packages that the relay must not reach: all that are
// not of the standard library, except its own two leaves and system calls.
func forbidden(packages []string) (bad []string) {
	for _, p := range packages {
		first, _, _ := strings.Cut(p, "/")
		switch {
		case p == "overlayd/overlay/relay", p == "overlayd/overlay/key", p == "overlayd/overlay/udp", p == "overlayd/internal/bell":
		case p == "golang.org/x/sys/unix":
		case first == "vendor": // of the standard library
		case first != "overlayd" && !strings.Contains(first, "."):
		default:
			bad = append(bad, p)
		}
	}
	return bad
}
