package overlay

import (
	"context"
	"errors"
	"net"
	"net/netip"
	"slices"
	"strings"
	"sync"
	"syscall"
	"testing"
	"testing/synctest"
	"time"

	"golang.org/x/net/dns/dnsmessage"

	"overlayd/overlay/filter"
)

// lanSockets answer questions for names: by gateway, what each name leads to; a
// gateway that is not listed is silent.
type lanSockets struct {
	fakeSockets
	lans  map[string]map[string][]string
	delay map[string]time.Duration

	mu    sync.Mutex // guards what follows: gateways are asked at once
	asked []string
	from  []netip.Addr
}

func (l *lanSockets) Dial(ctx context.Context, network string, from netip.Addr, to netip.AddrPort) (net.Conn, error) {
	if to.Port() != 5053 {
		return l.fakeSockets.Dial(ctx, network, from, to)
	}
	l.mu.Lock()
	l.asked, l.from = append(l.asked, to.Addr().String()), append(l.from, from)
	l.mu.Unlock()
	lan, ok := l.lans[to.Addr().String()]
	if !ok {
		return nil, &net.OpError{Op: "dial", Net: network, Err: syscall.EHOSTUNREACH}
	}
	near, far := net.Pipe()
	go func() {
		defer far.Close()
		buf := make([]byte, 1500)
		for {
			n, err := far.Read(buf)
			if err != nil {
				return
			}
			var m dnsmessage.Message
			if err := m.Unpack(buf[:n]); err != nil {
				return
			}
			select {
			case <-time.After(l.delay[to.Addr().String()]):
			case <-ctx.Done():
				return
			}
			q := m.Questions[0]
			m.Response, m.RCode = true, dnsmessage.RCodeNameError
			for _, a := range lan[strings.TrimSuffix(q.Name.String(), ".")] {
				m.RCode = dnsmessage.RCodeSuccess
				head := dnsmessage.ResourceHeader{Name: q.Name, Type: q.Type, Class: q.Class}
				if q.Type == dnsmessage.TypeTXT {
					m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.TXTResource{TXT: []string{a}}})
				} else {
					m.Answers = append(m.Answers, dnsmessage.Resource{Header: head, Body: &dnsmessage.AResource{A: netip.MustParseAddr(a).As4()}})
				}
			}
			b, err := m.Pack()
			if err != nil {
				return
			}
			far.Write(b)
		}
	}()
	return near, nil
}

const nearGW, farGW = "172.18.0.200", "172.18.0.201" // see dialingNode: the far one is away

// TestLookupLAN: who is asked for a name, and who is believed.
func TestLookupLAN(t *testing.T) {
	for _, test := range []struct {
		name  string
		lans  map[string]map[string][]string
		delay map[string]time.Duration
		ask   string
		want  string // addresses
		code  int
		says  string
	}{
		{"one knows", map[string]map[string][]string{nearGW: {"nas.lab": {"192.168.1.10"}}, farGW: {}}, nil, "nas.lab", "192.168.1.10", 0, ""},
		{"in another case", map[string]map[string][]string{nearGW: {"nas.lab": {"192.168.1.10"}}, farGW: {}}, nil, "NAS.Lab.", "192.168.1.10", 0, ""},
		{"both know", map[string]map[string][]string{nearGW: {"nas.lab": {"192.168.1.10"}}, farGW: {"nas.lab": {"192.168.7.10"}}}, nil, "nas.lab", "192.168.1.10", 0, ""},
		{"both know, the better a little later", map[string]map[string][]string{nearGW: {"nas.lab": {"192.168.1.10"}}, farGW: {"nas.lab": {"192.168.7.10"}}},
			map[string]time.Duration{nearGW: 100 * time.Millisecond}, "nas.lab", "192.168.1.10", 0, ""},
		{"both know, the better too late", map[string]map[string][]string{nearGW: {"nas.lab": {"192.168.1.10"}}, farGW: {"nas.lab": {"192.168.7.10"}}},
			map[string]time.Duration{nearGW: 250 * time.Millisecond}, "nas.lab", "192.168.7.10", 0, ""},
		{"a neighbour's address", map[string]map[string][]string{nearGW: {"nas.lab": {"192.168.7.10"}}, farGW: {}}, nil, "nas.lab", "", ExitFailure, "knows that name"},
		{"an address of the overlay", map[string]map[string][]string{nearGW: {"nas.lab": {"172.18.0.200", "172.18.0.11"}}, farGW: {}}, nil, "nas.lab", "", ExitFailure, "knows that name"},
		{"the world's", map[string]map[string][]string{nearGW: {"nas.lab": {"8.8.8.8", "127.0.0.1", "192.168.1.10"}}, farGW: {}}, nil, "nas.lab", "192.168.1.10", 0, ""},
		{"nobody knows", map[string]map[string][]string{nearGW: {}, farGW: {}}, nil, "nas.lab", "", ExitFailure, "knows that name"},
		{"one is silent", map[string]map[string][]string{nearGW: {}}, nil, "nas.lab", "", ExitUnreachable, "far-gw did not answer"},
		{"a node's name wins", map[string]map[string][]string{nearGW: {"far-gw": {"192.168.1.10"}}}, nil, "far-gw", farGW, 0, ""},
	} {
		t.Run(test.name, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				s := &lanSockets{lans: test.lans, delay: test.delay}
				n := dialingNode(t, s)
				for range 2 { // the second time from memory
					got, err := n.Resolve(t.Context(), test.ask)
					var words []string
					for _, a := range got {
						words = append(words, a.String())
					}
					if strings.Join(words, " ") != test.want {
						t.Errorf("got %v, want %s", words, test.want)
					}
					if test.code != 0 {
						if f := AsFault(err); err == nil || f.Code != test.code || !strings.Contains(f.Message, test.says) {
							t.Errorf("got %v, want %d %s", err, test.code, test.says)
						}
					} else if err != nil {
						t.Error(err)
					}
				}
				if len(s.asked) > 2 {
					t.Errorf("asked %v: what is known is asked again", s.asked)
				}
			})
		})
	}
}

// TestNamesAreForgotten: what is kept is bounded in number and in time.
func TestNamesAreForgotten(t *testing.T) {
	var l lanNames
	now := time.Date(2026, 3, 2, 12, 0, 0, 0, time.UTC)
	known := lanAnswer{addrs: []netip.Addr{netip.MustParseAddr("192.168.1.10")}}
	l.keep("nas", known, now)
	l.keep("none", lanAnswer{err: errors.New("no")}, now)
	for _, c := range []struct {
		name  string
		after time.Duration
		want  bool
	}{{"nas", keepName - 1, true}, {"nas", keepName, false}, {"none", keepNoName - 1, true}, {"none", keepNoName, false}, {"other", 0, false}} {
		if _, ok := l.find(c.name, now.Add(c.after)); ok != c.want {
			t.Errorf("%s is known after %v: %t", c.name, c.after, ok)
		}
	}
	for i := range 3 * mostNames {
		l.keep(string(rune('a'+i)), known, now)
	}
	if len(l.known) > mostNames {
		t.Errorf("%d names are kept", len(l.known))
	}
}

// TestLookupLANFor: what is asked on behalf of somebody is asked from there, only of
// gateways that have something for him, and is kept for nobody else.
func TestLookupLANFor(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		s := &lanSockets{lans: map[string]map[string][]string{nearGW: {"nas.lab": {"192.168.1.10"}}, farGW: {}}}
		n := dialingNode(t, s)
		alice := caller{from: netip.MustParseAddr("172.18.0.50"), lans: []netip.Prefix{netip.MustParsePrefix("192.168.1.0/24")}}
		for range 2 {
			if got, err := n.lookupLAN(t.Context(), n.look(), alice, "nas.lab"); err != nil || len(got) != 1 {
				t.Errorf("%v, %v", got, err)
			}
		}
		if len(s.asked) != 1 || s.asked[0] != nearGW || s.from[0] != alice.from {
			t.Errorf("asked %v from %v", s.asked, s.from)
		}
		if _, err := n.Resolve(t.Context(), "nas.lab"); err != nil || len(s.asked) != 3 {
			t.Errorf("another's answer is taken: asked %v, %v", s.asked, err)
		}
	})
}

// TestLANDomains: the domains of all gateways, each once.
func TestLANDomains(t *testing.T) {
	synctest.Test(t, func(t *testing.T) {
		n := dialingNode(t, &lanSockets{lans: map[string]map[string][]string{
			nearGW: {"_domains.overlayd.invalid": {"lab"}}, farGW: {"_domains.overlayd.invalid": {"lab"}},
		}})
		if got := n.lanDomains(t.Context(), n.look()); !slices.Equal(got, []string{"lab"}) {
			t.Errorf("got %v", got)
		}
	})
}

// TestParseSearch reads what resolv.conf(5) may hold.
func TestParseSearch(t *testing.T) {
	for text, want := range map[string][]string{
		"":                                 nil,
		"nameserver 192.168.1.1\n":         nil,
		"search lab Home.Example.\n":       {"lab", "home.example"},
		"domain lab\nsearch a b\n":         {"a", "b"},
		"search a\ndomain lab":             {"lab"},
		"# search x\noptions ndots:1\n":    nil,
		"search\t lab\nnameserver ::1\n\n": {"lab"},
	} {
		if got := parseSearch(text); !slices.Equal(got, want) {
			t.Errorf("%q: %v, want %v", text, got, want)
		}
	}
}

// TestParseNameServers: of resolv.conf(5), whom this machine asks; itself it reaches
// without a way.
func TestParseNameServers(t *testing.T) {
	for text, want := range map[string]string{
		"": "",
		"nameserver 127.0.0.53\nnameserver ::1\nnameserver 0.0.0.0\n":  "",
		"search lab\nnameserver 10.0.0.2\n nameserver\tfd00::53 # two": "10.0.0.2,fd00::53",
		"nameserver fe80::1%eth0\nnameserver ::ffff:10.0.0.3":          "fe80::1%eth0,10.0.0.3",
		"nameserver\n# nameserver 10.0.0.4\nnameserver lab":            "",
	} {
		if got := joinText(parseNameServers(text)); got != want {
			t.Errorf("%q: %s, want %s", text, got, want)
		}
	}
}

// FuzzParseNameServers: nothing that is found is this machine, or no address.
func FuzzParseNameServers(f *testing.F) {
	f.Add("nameserver 10.0.0.2\nnameserver 127.0.0.53\n")
	f.Fuzz(func(t *testing.T, text string) {
		for _, a := range parseNameServers(text) {
			if !a.IsValid() || a.IsLoopback() || a.Is4In6() || !strings.Contains(text, "nameserver") {
				t.Errorf("%q: %s", text, a)
			}
		}
	})
}

// TestWithNames: who may reach anything behind a gateway may ask it for names,
// and nobody else.
func TestWithNames(t *testing.T) {
	set := func(id string, prefixes ...string) filter.Set {
		s := filter.Set{ID: id}
		for _, p := range prefixes {
			s.Prefixes = append(s.Prefixes, prefix(p))
		}
		return s
	}
	rules := filter.Rules{
		Self:   []netip.Addr{netip.MustParseAddr(nearGW)},
		Routes: []netip.Prefix{prefix("192.168.1.0/24")},
		To:     []filter.Set{set("nas", "192.168.1.10/32"), set("gw", nearGW+"/32"), set("wide", "192.168.0.0/16")},
		Rules: []filter.Rule{
			{Name: "ssh", From: []string{"alice"}, To: []string{"nas"}, Services: []filter.Service{{Proto: 6, First: 22, Last: 22}}},
			{Name: "admin", From: []string{"bob"}, To: []string{"gw"}},
			{Name: "all", From: []string{"carol"}, To: []string{"gw", "wide"}},
		},
	}
	got := withNames(rules)
	var names []string
	for _, r := range got.Rules[len(rules.Rules):] {
		names = append(names, r.Name)
		if want := (filter.Service{Proto: 17, First: 5053, Last: 5053}); len(r.Services) != 1 || r.Services[0] != want || !slices.Equal(r.To, []string{namesSet}) {
			t.Errorf("%+v lets in more than questions", r)
		}
	}
	if !slices.Equal(names, []string{"ssh", "all"}) {
		t.Errorf("%v may ask, want those of ssh and all", names)
	}
	rules.Routes = nil
	if got := withNames(rules); len(got.Rules) != len(rules.Rules) || len(got.To) != len(rules.To) {
		t.Error("a node without a LAN answers for one")
	}
}
