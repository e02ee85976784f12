package tunnel

import (
	"bytes"
	"encoding/base64"
	"encoding/hex"
	"fmt"
	"io"
	"math/rand/v2"
	"net/netip"
	"strings"
	"sync"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"
	"go.uber.org/goleak"
	"golang.zx2c4.com/wireguard/tun/tuntest"

	"overlayd/overlay/key"
)

// deadline is how long a test waits for what should take no time.
const deadline = 10 * time.Second

// ping sends a packet from a to b and waits until it comes out.
func ping(t *testing.T, a, b *node) {
	t.Helper()
	msg := tuntest.Ping(b.ip, a.ip)
	timeout := time.After(deadline)
	select {
	case a.tun.Outbound <- msg:
	case <-timeout:
		t.Fatal("the device does not read")
	}
	select {
	case got := <-b.tun.Inbound:
		if !bytes.Equal(got, msg) {
			t.Fatalf("got % x, want % x", got, msg)
		}
	case <-timeout:
		t.Fatal("the packet did not arrive")
	}
}

// TestTwoDevices sends both ways, ends a session, begins another, and looks for
// keys in the logs and for goroutines that stayed.
func TestTwoDevices(t *testing.T) {
	defer goleak.VerifyNone(t)
	var log syncBuffer
	pa, pb := newPipes()
	a, b := newNode(t, pa, "10.1.0.1", &log), newNode(t, pb, "10.1.0.2", &log)
	defer a.Close()
	defer b.Close()
	for n, other := range map[*node]*node{a: b, b: a} {
		if err := n.SetPeers([]Peer{other.as()}); err != nil {
			t.Fatal(err)
		}
	}
	ping(t, a, b)
	ping(t, b, a)
	before, err := a.Stats()
	if err != nil {
		t.Fatal(err)
	}
	first := before[b.key.Public()]
	if first.RxBytes == 0 || first.TxBytes == 0 || first.LastHandshake.IsZero() {
		t.Errorf("stats %+v", first)
	}

	a.Handshake(b.key.Public())
	b.ExpectHandshake(a.key.Public())
	for end := time.Now().Add(deadline); ; {
		now, err := a.Stats()
		if err != nil {
			t.Fatal(err)
		}
		if now[b.key.Public()].LastHandshake.After(first.LastHandshake) {
			break
		}
		if time.Now().After(end) {
			t.Fatal("no new session")
		}
		time.Sleep(time.Millisecond)
	}
	ping(t, a, b)
	ping(t, b, a)

	a.Close()
	b.Close()
	select {
	case <-a.Done():
	default:
		t.Error("Done is open after Close")
	}
	for _, n := range []*node{a, b} {
		secret := n.key.Expose()
		for _, text := range []string{hex.EncodeToString(secret), base64.StdEncoding.EncodeToString(secret)} {
			if strings.Contains(log.String(), text) {
				t.Error("a private key was logged")
			}
		}
	}
	if !strings.Contains(log.String(), "level=DEBUG") {
		t.Error("the verbose lines of WireGuard are missing")
	}
}

// syncBuffer is a bytes.Buffer for several writers.
type syncBuffer struct {
	mu sync.Mutex
	b  bytes.Buffer
}

func (s *syncBuffer) Write(p []byte) (int, error) {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.Write(p)
}

func (s *syncBuffer) String() string {
	s.mu.Lock()
	defer s.mu.Unlock()
	return s.b.String()
}

// TestTUNGone ends the device with its TUN.
func TestTUNGone(t *testing.T) {
	defer goleak.VerifyNone(t)
	p, _ := newPipes()
	n := newNode(t, p, "10.1.0.1", io.Discard)
	if err := n.dev.Close(); err != nil {
		t.Fatal(err)
	}
	select {
	case <-n.Done():
	case <-time.After(deadline):
		t.Fatal("the device did not end")
	}
	n.Close()
}

// TestSetPeersRandomly goes through random sets of peers, between which
// prefixes move, and compares the device with what it should have.
func TestSetPeersRandomly(t *testing.T) {
	r := rand.New(rand.NewPCG(1, 2))
	p, _ := newPipes()
	n := newNode(t, p, "10.1.0.1", io.Discard)
	keys := make([]key.Public, 6)
	for i := range keys {
		keys[i] = key.NewPrivate().Public()
	}
	for round := range 300 {
		var want []Peer
		owner := map[netip.Prefix]bool{}
		for _, i := range r.Perm(len(keys))[:r.IntN(len(keys)+1)] {
			w := Peer{Key: keys[i], Endpoint: fmt.Sprint("e", r.IntN(3)), Keepalive: time.Duration(r.IntN(3)) * time.Hour}
			for range r.IntN(4) {
				ip := netip.PrefixFrom(netip.AddrFrom4([4]byte{10, 2, byte(r.IntN(6)), 7}), 24)
				if r.IntN(3) == 0 {
					ip = netip.PrefixFrom(netip.AddrFrom16([16]byte{0xfd, byte(r.IntN(4))}), 128)
				}
				if !owner[ip] {
					owner[ip] = true
					w.AllowedIPs = append(w.AllowedIPs, ip)
				}
			}
			want = append(want, w)
		}
		if err := n.SetPeers(want); err != nil {
			t.Fatal(err)
		}
		have, err := n.config()
		if err != nil {
			t.Fatal(err)
		}
		got, should := map[string]string{}, map[string]string{}
		for _, h := range have.peers {
			got[h.Key.String()] = fmt.Sprint(h.normalize())
		}
		for _, w := range want {
			should[w.Key.String()] = fmt.Sprint(w.normalize())
		}
		if d := cmp.Diff(should, got); d != "" {
			t.Fatalf("round %d: %s", round, d)
		}
		if again := diff(have.peers, want); again != "" {
			t.Fatalf("round %d: a second time would do\n%s", round, again)
		}
	}
}
