package resolver

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync/atomic"
	"testing"
	"time"

	"go.uber.org/goleak"
	"golang.org/x/net/dns/dnsmessage"
)

func TestMain(m *testing.M) { goleak.VerifyTestMain(m) }

func addrs(words ...string) (list []netip.Addr) {
	for _, w := range words {
		list = append(list, netip.MustParseAddr(w))
	}
	return list
}

// lan is what the gateway's resolver knows.
var lan = map[string][]netip.Addr{
	"nas.lab":   addrs("192.168.1.10", "fd01::10"),
	"two.lab":   addrs("203.0.113.9", "192.168.1.11", "::ffff:192.168.1.12"),
	"evil.test": addrs("203.0.113.9", "127.0.0.1", "172.18.0.10"),
	"six.lab":   addrs("fd01::6"),
	"nas":       addrs("192.168.1.10"),
	"many.lab":  slices.Repeat(addrs("192.168.1.1"), 100),
	"crowded.lab": func() (list []netip.Addr) {
		for i := range 100 {
			list = append(list, netip.AddrFrom4([4]byte{192, 168, 1, byte(i)}))
		}
		return list
	}(),
}

func lookup(_ context.Context, name string) ([]netip.Addr, error) {
	if name == "broken.lab" {
		return nil, errors.New("the resolver is down")
	}
	if a := lan[name]; a != nil {
		return a, nil
	}
	return nil, &net.DNSError{Err: "no such host", Name: name, IsNotFound: true}
}

func serve(t *testing.T, s *Server) net.Conn {
	t.Helper()
	c, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	ctx, stop := context.WithCancel(context.Background())
	done := make(chan error, 1)
	go func() { done <- s.Serve(ctx, c) }()
	out, err := net.Dial("udp", c.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() {
		out.Close()
		stop()
		if err := <-done; err != nil {
			t.Error(err)
		}
	})
	return out
}

func testServer() *Server {
	return &Server{
		Lookup: lookup,
		Allowed: func() []netip.Prefix {
			return []netip.Prefix{netip.MustParsePrefix("192.168.1.0/24"), netip.MustParsePrefix("fd01::/64")}
		},
		Domains: func() []string { return []string{"lab", "not a domain", "com", "co.uk", "localhost", "two.lab."} },
	}
}

// TestAsk: names of the LAN are found, and nothing of elsewhere is told.
func TestAsk(t *testing.T) {
	c := serve(t, testServer())
	ctx, cancel := context.WithTimeout(t.Context(), 20*time.Second)
	defer cancel()
	for _, test := range []struct {
		name string
		v6   bool
		want []netip.Addr // nil: ErrNoName
	}{
		{"nas.lab", false, addrs("192.168.1.10")},
		{"NAS.Lab.", false, addrs("192.168.1.10")},
		{"nas.lab", true, addrs("fd01::10")},
		{"nas", false, addrs("192.168.1.10")},
		{"two.lab", false, addrs("192.168.1.11", "192.168.1.12")},
		{"evil.test", false, nil},
		{"six.lab", false, nil},
		{"nowhere.lab", false, nil},
		{"many.lab", false, addrs("192.168.1.1")},
		{"crowded.lab", false, lan["crowded.lab"][:mostAddrs]},
		{"", false, nil},
		{"a b", false, nil},
		{"-x.lab", false, nil},
		{strings.Repeat("x", 64) + ".lab", false, nil},
		{strings.Repeat("x.", 130) + "lab", false, nil},
	} {
		got, err := Ask(ctx, c, test.name, test.v6)
		if !slices.Equal(got, test.want) || (test.want == nil) != errors.Is(err, ErrNoName) {
			t.Errorf("%s (v6 %t): %v, %v, want %v", test.name, test.v6, got, err, test.want)
		}
	}
	if _, err := Ask(ctx, c, "broken.lab", false); err == nil || errors.Is(err, ErrNoName) {
		t.Errorf("a resolver that fails: %v", err)
	}
	got, err := Domains(ctx, c)
	if want := []string{"lab", "two.lab"}; err != nil || !slices.Equal(got, want) {
		t.Errorf("domains %v, %v, want %v", got, err, want)
	}
}

// TestMay: what who asks may not know of does not exist.
func TestMay(t *testing.T) {
	s := testServer()
	s.May = func(asker, host netip.Addr) bool {
		return asker == netip.MustParseAddr("127.0.0.1") && host == netip.MustParseAddr("192.168.1.12")
	}
	c := serve(t, s)
	if _, err := Ask(t.Context(), c, "nas.lab", false); !errors.Is(err, ErrNoName) {
		t.Errorf("a host that is not to be known: %v", err)
	}
	if got, err := Ask(t.Context(), c, "two.lab", false); err != nil || !slices.Equal(got, addrs("192.168.1.12")) {
		t.Errorf("one that is: %v, %v", got, err)
	}
}

// TestAskAgain: a lost question is asked again; an answer that is not to it is
// not heard.
func TestAskAgain(t *testing.T) {
	server, err := net.ListenPacket("udp", "127.0.0.1:0")
	if err != nil {
		t.Fatal(err)
	}
	done := make(chan struct{})
	go func() {
		defer close(done)
		s := testServer()
		buf := make([]byte, longest)
		for i := 0; ; i++ {
			n, from, err := server.ReadFrom(buf)
			if err != nil {
				return
			}
			q, err := parseQuestion(buf[:n])
			if err != nil {
				t.Error(err)
				return
			}
			a := s.find(context.Background(), netip.Addr{}, q)
			switch i {
			case 0: // lost
				continue
			case 1: // of somebody who guesses
				wrong := q
				wrong.id++
				forged := answer{addrs: addrs("192.168.1.66")}
				b, _ := appendMessage(nil, wrong, &forged)
				server.WriteTo(b, from)
				wrong = q
				wrong.name = "other.lab."
				b, _ = appendMessage(nil, wrong, &forged)
				server.WriteTo(b, from)
				server.WriteTo([]byte("noise"), from)
			}
			b, _ := appendMessage(nil, q, &a)
			server.WriteTo(b, from)
		}
	}()
	defer func() { server.Close(); <-done }()
	c, err := net.Dial("udp", server.LocalAddr().String())
	if err != nil {
		t.Fatal(err)
	}
	defer c.Close()
	got, err := Ask(t.Context(), c, "nas.lab", false)
	if err != nil || !slices.Equal(got, addrs("192.168.1.10")) {
		t.Errorf("%v, %v", got, err)
	}
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if _, err := Ask(ctx, c, "nas.lab", false); !errors.Is(err, context.Canceled) {
		t.Errorf("after the end: %v", err)
	}
}

// TestBusy: more questions than are looked up at once are dropped, and those that
// hang end.
func TestBusy(t *testing.T) {
	var hanging atomic.Int32
	s := testServer()
	s.Lookup = func(ctx context.Context, name string) ([]netip.Addr, error) {
		hanging.Add(1)
		<-ctx.Done()
		return nil, ctx.Err()
	}
	c := serve(t, s)
	for i := range 2 * mostQuestions {
		b, err := appendQuery(nil, question{uint16(i), "nas.lab.", dnsmessage.TypeA})
		if err != nil {
			t.Fatal(err)
		}
		c.Write(b)
	}
	c.Write([]byte("noise"))
	for end := time.Now().Add(10 * time.Second); s.dropped.Load() < mostQuestions+1 || hanging.Load() < mostQuestions; <-time.After(time.Millisecond) {
		if time.Now().After(end) {
			t.Fatalf("%d were dropped, want %d", s.dropped.Load(), mostQuestions+1)
		}
	}
	if n := hanging.Load(); n != mostQuestions {
		t.Errorf("%d are looked up, want %d", n, mostQuestions)
	}
}

// FuzzQuestion: what is taken for a question can be asked, and is the same then.
func FuzzQuestion(f *testing.F) {
	for _, q := range []question{{1, "nas.lab.", dnsmessage.TypeA}, {2, domainsName, dnsmessage.TypeTXT}} {
		b, err := appendQuery(nil, q)
		if err != nil {
			f.Fatal(err)
		}
		f.Add(b)
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		q, err := parseQuestion(b)
		if err != nil {
			return
		}
		again, err := appendQuery(nil, q)
		if err != nil {
			return // a name that only a foreign message can have
		}
		if p, err := parseQuestion(again); err != nil || p != q && hostname(q.name) {
			t.Fatalf("%+v is read again as %+v: %v", q, p, err)
		}
		a := testServer().find(context.Background(), netip.Addr{}, q)
		if m, err := appendMessage(nil, q, &a); err == nil && len(m) > longest {
			t.Fatalf("the answer to %+v has %d bytes", q, len(m))
		}
	})
}

// FuzzAnswer: nothing that is no answer is taken for one, nor more than there may
// be.
func FuzzAnswer(f *testing.F) {
	q := question{7, "nas.lab.", dnsmessage.TypeA}
	b, err := appendMessage(nil, q, &answer{addrs: addrs("192.168.1.10")})
	if err != nil {
		f.Fatal(err)
	}
	f.Add(b)
	f.Fuzz(func(t *testing.T, b []byte) {
		for _, kind := range []dnsmessage.Type{dnsmessage.TypeA, dnsmessage.TypeAAAA, dnsmessage.TypeTXT} {
			a, err := parseAnswer(b, question{7, "nas.lab.", kind})
			if err != nil {
				continue
			}
			if len(a.addrs) > mostAddrs || len(a.domains) > mostDomains {
				t.Fatalf("%+v", a)
			}
			for _, d := range a.domains {
				if !hostname(d + ".") {
					t.Fatalf("%q is no domain", d)
				}
			}
		}
	})
}
