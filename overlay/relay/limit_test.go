package relay

import (
	"net/netip"
	"testing"
	"time"

	"overlayd/overlay/key"
)

func TestLimiter(t *testing.T) {
	l := newLimiter(bySource, 10, 5)
	src := l.host(netip.MustParseAddr("192.0.2.1"))
	count := func(now time.Duration, tries int) (n int) {
		for range tries {
			if l.allow(src, now) {
				n++
			}
		}
		return n
	}
	if n := count(0, 100); n != 6 {
		t.Errorf("burst of %d", n)
	}
	total := 0
	for i := range 1000 {
		total += count(time.Duration(i)*10*time.Millisecond, 3)
	}
	if total < 95 || total > 105 {
		t.Errorf("%d in 10 s", total)
	}
	if a, b := l.host(netip.MustParseAddr("2001:db8::1")), l.host(netip.MustParseAddr("2001:db8::2:3:4")); a != b {
		t.Error("two addresses of one /64 are two sources")
	}
	if a, b := l.host(netip.MustParseAddr("192.0.2.1")), l.host(netip.MustParseAddr("::ffff:192.0.2.1")); a != b {
		t.Error("a mapped address is another source")
	}
}

// TestFloodOfAttaches sends ATTACHes without tokens, all authentic, from one
// host: the answers are limited, and one who proved its address gets in.
func TestFloodOfAttaches(t *testing.T) {
	now := time.Unix(1_000_000, 0)
	tb := newTable(10, 10)
	d := newDoor(testSecret, now, tb)
	b, k := pass(testNetwork, 5, 1, now.Add(time.Hour))
	f := attach{nonce: nonce{1}, ticket: [ticketSize]byte(b)}
	src := netip.MustParseAddrPort("192.0.2.1:1")
	reply, what := d.control(nil, now, byUDP(src), f.Append(nil, k))
	if what != challenged {
		t.Fatal(eventNames[what])
	}
	seen := map[event]int{}
	for i := range 5000 {
		_, what := d.control(nil, now, byUDP(netip.AddrPortFrom(src.Addr(), uint16(i))), f.Append(nil, k))
		seen[what]++
	}
	if seen[challenged] != 5000 { // however many nodes share an address
		t.Errorf("%v", seen)
	}
	clear(seen)
	forged := f.Append(nil, k)
	forged[len(forged)-1]++
	other := netip.MustParseAddr("192.0.2.2") // showed nothing yet
	for i := range 5000 {
		_, what := d.control(nil, now, byUDP(netip.AddrPortFrom(other, uint16(i))), forged)
		seen[what]++
	}
	if n := seen[dropForged]; n < forgedBurst || n > forgedBurst+1 || seen[dropLimited] != 5000-n {
		t.Errorf("%v", seen)
	}
	now = now.Add(time.Second)
	f.token = parseChallenge(reply).token
	if _, what := d.control(nil, now, byUDP(src), f.Append(nil, k)); what != attached {
		t.Errorf("proved, and still: %s", eventNames[what])
	}
}

// TestTokens says which tokens count.
func TestTokens(t *testing.T) {
	src, other := netip.MustParseAddrPort("192.0.2.1:1"), netip.MustParseAddrPort("192.0.2.1:2")
	f := attach{nonce: nonce{1}, ticket: [ticketSize]byte{1}}
	made := 30 * time.Second
	for name, tc := range map[string]struct {
		now    time.Duration
		src    netip.AddrPort
		change func(*attach)
		ok     bool
	}{
		"at once":            {made, src, nil, true},
		"after its life":     {made + tokenLife + 1, src, nil, false},
		"just within":        {made + tokenLife, src, nil, true},
		"other port":         {made, other, nil, false},
		"other nonce":        {made, src, func(a *attach) { a.nonce[3]++ }, false},
		"other ticket":       {made, src, func(a *attach) { a.ticket[3]++ }, false},
		"other time":         {made, src, func(a *attach) { a.token[0]++ }, false},
		"before it was made": {made - 1, src, nil, false},
		"none":               {made, src, func(a *attach) { a.token = token{} }, false},
	} {
		t.Run(name, func(t *testing.T) {
			k := newTokens()
			a := f
			a.token = k.make(made, byUDP(src), f)
			if tc.change != nil {
				tc.change(&a)
			}
			if at, ok := k.made(tc.now, byUDP(tc.src), a); ok != tc.ok || ok && at != made {
				t.Errorf("%v, %v", at, ok)
			}
		})
	}
	t.Run("over a change of keys", func(t *testing.T) {
		k := newTokens()
		a := f
		a.token = k.make(tokenKeyLife-time.Second, byUDP(src), f)
		if _, ok := k.made(tokenKeyLife+time.Second, byUDP(src), a); !ok {
			t.Error("a token of the key before is refused")
		}
		k.keys(tokenKeyLife + time.Second)
		k.keys(2*tokenKeyLife + 2*time.Second)
		if k.previous.IsZero() {
			t.Error("no key")
		}
	})
}

func TestRevoked(t *testing.T) {
	tb := switchTable(t, 3)
	if _, ok := tb.revoke(testNetwork, 2, 0); ok { // its seat was taken with a later ticket
		t.Error("the label's next owner was sent away")
	}
	if _, ok := tb.revoke(testNetwork, 2, 5); !ok {
		t.Error("no farewell")
	}
	at := func(l Label, serial uint64) event {
		k := Ticket{Network: testNetwork, Label: l, NotAfter: time.Unix(1<<40, 0), Serial: serial}
		what, _ := tb.admit(time.Hour, time.Unix(0, 0), admission{byUDP(nodeAddr(l)), key.Secret{}, k, nonce{7}, time.Hour})
		return what
	}
	for _, serial := range []uint64{1, 5} { // 5 was made, and not shown before
		if what := at(2, serial); what != refused {
			t.Errorf("its ticket %d: %s", serial, eventNames[what])
		}
	}
	if what := at(2, 6); what != attached {
		t.Errorf("the label's next owner: %s", eventNames[what])
	}
	for l := range Label(3 * maxRevoked) {
		tb.revoke(testNetwork, l+100, 1)
	}
	if len(tb.revoked) != maxRevoked || len(tb.oldest) != maxRevoked {
		t.Errorf("%d remembered", len(tb.revoked))
	}
}

func TestOwnLabelIsTaken(t *testing.T) {
	tb := switchTable(t, 3)
	k := Ticket{Network: testNetwork, Label: 10, NotAfter: time.Unix(1<<40, 0), Serial: 1}
	if what, _ := tb.admit(time.Hour, time.Unix(0, 0), admission{byUDP(nodeAddr(10)), key.Secret{}, k, nonce{7}, time.Hour}); what != dropOwnLabel {
		t.Error(eventNames[what])
	}
}
