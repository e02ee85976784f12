package underlay

import (
	"context"
	"crypto/sha1"
	"encoding/base64"
	"io"
	"net"
	"net/http"
	"net/netip"
	"sync/atomic"
	"testing"
	"time"

	"overlayd/overlay/relay"
)

// until waits until a counter has reached a number.
func (h *host) until(counter string, least uint64) {
	h.t.Helper()
	for end := time.Now().Add(deadline); h.Counters()[counter] < least; time.Sleep(time.Millisecond) {
		if time.Now().After(end) {
			h.t.Fatalf("%s stays at %d, want %d: %v", counter, h.Counters()[counter], least, h.Counters())
		}
	}
}

// TestForgedControl: what comes from a relay's address and is none of its
// messages, whole, cut off or again, changes nothing and is counted.
func TestForgedControl(t *testing.T) {
	conn, err := net.ListenUDP("udp4", &net.UDPAddr{IP: net.IPv4(127, 0, 0, 1)})
	if err != nil {
		t.Fatal(err)
	}
	defer conn.Close()
	h := newHost(t, 11, Options{})
	h.SetRelays([]Relay{at(11, conn.LocalAddr().(*net.UDPAddr).AddrPort())})
	buf := make([]byte, 2048)
	n, from, err := conn.ReadFromUDPAddrPort(buf) // its ATTACH
	if err != nil {
		t.Fatal(err)
	}
	sent := uint64(0)
	say := func(b []byte) {
		if _, err := conn.WriteToUDPAddrPort(b, from); err != nil {
			t.Fatal(err)
		}
		sent++
	}
	for kind := range byte(8) {
		if kind == 6 { // UNKNOWN, which is only a hint
			continue
		}
		for size := headerSize; size <= 96; size += 4 {
			b := append([]byte{typeControl, kind, 1, 0}, make([]byte, size)...)
			copy(b[4:], buf[4:n]) // the right nonce, and no key
			say(b[:size])
		}
	}
	say(buf[:n])                       // its own words
	h.until("drop_control", sent*9/10) // the kernel may lose some
	if r := h.Relays(); r[0].State == "up" {
		t.Errorf("forged messages made a session: %+v", r)
	}
	if c := h.Check(t.Context()); c.Relays[0].Echoes[0].RTT != 0 || len(c.Seen) != 0 {
		t.Errorf("nobody answered, but: %+v", c)
	}
}

// TestBrokenStreams: a server that agrees to a WebSocket and then sends what is
// none, or ends in the middle, is left, counted, and not dialed all the time.
func TestBrokenStreams(t *testing.T) {
	for name, words := range map[string]string{
		"rubbish":              "HTTP/1.1 200 OK\r\n\r\n<html>",
		"a masked frame":       "\x82\x85\x01\x02\x03\x04abcde",
		"too long a frame":     "\x82\x7f\x7f\xff\xff\xff\xff\xff\xff\xff",
		"text":                 "\x81\x02hi",
		"a datagram cut short": "\x82\x04\x00\x09ab",
		"a frame cut short":    "\x82\x20\x00\x09ab",
		"a length cut short":   "\x82\x01\x00",
	} {
		t.Run(name, func(t *testing.T) {
			t.Parallel() // each waits for the second that UDP has alone
			dial := web(t, http.HandlerFunc(func(w http.ResponseWriter, r *http.Request) {
				c, _, err := http.NewResponseController(w).Hijack()
				if err != nil {
					t.Error(err)
					return
				}
				defer c.Close()
				sum := sha1.Sum([]byte(r.Header.Get("Sec-WebSocket-Key") + "258EAFA5-E914-47DA-95CA-C5AB0DC85B11"))
				io.WriteString(c, "HTTP/1.1 101 Switching Protocols\r\nUpgrade: websocket\r\nConnection: Upgrade\r\nSec-WebSocket-Accept: "+
					base64.StdEncoding.EncodeToString(sum[:])+"\r\n\r\n"+words)
			}))
			var dials atomic.Int32
			h := newHost(t, 11, Options{Dial: func(ctx context.Context, r Relay) (*relay.Stream, error) {
				dials.Add(1)
				return dial(ctx, r)
			}})
			h.SetRelays([]Relay{at(11, netip.MustParseAddrPort("127.0.0.1:9"))})
			h.until("tls_streams_broken", 1)
			if r := h.Relays(); r[0].State == "up" {
				t.Errorf("%+v", r)
			}
			if n := dials.Load(); n > 2 || h.Counters()["tls_dials"] == 0 {
				t.Errorf("%d dials, %v", n, h.Counters())
			}
		})
	}
}
