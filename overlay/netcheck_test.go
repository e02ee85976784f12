package overlay

import (
	"encoding/json"
	"errors"
	"net/netip"
	"strings"
	"testing"
	"time"

	"overlayd/overlay/relay"
	"overlayd/overlay/underlay"
)

// checkOf is a measurement with one relay, which answers by UDP or not.
func checkOf(udp bool, tlsErr error, seen ...underlay.Seen) measurement {
	at := netip.MustParseAddrPort("203.0.113.10:443")
	e := underlay.Echo{Addr: at}
	if udp {
		e.RTT = 12 * time.Millisecond
	}
	return measurement{
		at: testNow, daemon: true,
		check: underlay.Check{
			IPv4: true, Own: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.5:4000")}, Seen: seen,
			Relays: []underlay.RelayCheck{{
				RelayStatus: underlay.RelayStatus{ID: "1", Name: "vps", Endpoint: "203.0.113.10:443", State: relay.Up.String(), Transport: "udp"},
				Echoes:      []underlay.Echo{e},
			}},
		},
		tls: []tlsTry{{30 * time.Millisecond, tlsErr}}, proxies: []string{""},
	}
}

func seenAs(by, as string) underlay.Seen {
	return underlay.Seen{By: netip.MustParseAddrPort(by), As: netip.MustParseAddrPort(as)}
}

func TestNetcheck(t *testing.T) {
	first := seenAs("203.0.113.10:443", "198.51.100.2:4000")
	login := &relay.DialError{Obstacle: relay.ObstacleProxy, Proxy: "10.0.0.1:3128", Err: errors.New("it wants a login (407)")}
	for name, c := range map[string]struct {
		m                 measurement
		udp, tls, mapping string
		findings          string
	}{
		"all is well":       {checkOf(true, nil, first, seenAs("192.0.2.9:5", "198.51.100.2:4000")), NetWorks, NetWorks, "endpoint_independent", ""},
		"a hard NAT":        {checkOf(true, nil, first, seenAs("192.0.2.9:5", "198.51.100.2:4001")), NetWorks, NetWorks, "address_or_port_dependent", "symmetric_nat"},
		"one witness":       {checkOf(true, nil, first), NetWorks, NetWorks, "unknown", "mapping_unknown"},
		"no NAT":            {checkOf(true, nil, seenAs("203.0.113.10:443", "10.0.0.5:4000")), NetWorks, NetWorks, "none", ""},
		"UDP blocked":       {checkOf(false, nil), NetSilent, NetWorks, "unknown", "udp_blocked"},
		"nothing":           {checkOf(false, login), NetSilent, NetSilent, "unknown", "relay_unreachable"},
		"TLS blocked":       {checkOf(true, login, first), NetWorks, NetSilent, "unknown", "no_tls mapping_unknown"},
		"the relay is full": {checkOf(true, &relay.DialError{Obstacle: relay.ObstacleFull, Err: errors.New("x")}, first), NetWorks, NetFull, "unknown", "no_tls mapping_unknown"},
		"no relay":          {measurement{at: testNow}, NetUntried, NetUntried, "unknown", "no_relay"},
	} {
		t.Run(name, func(t *testing.T) {
			got := c.m.netcheck()
			var ids []string
			for _, f := range got.Findings {
				ids = append(ids, f.ID)
				if f.Title == "" || f.Fix == "" {
					t.Errorf("%s has no words: %+v", f.ID, f)
				}
			}
			if got.UDP != c.udp || got.TLS != c.tls || got.IPv4.Mapping != c.mapping || strings.Join(ids, " ") != c.findings {
				t.Errorf("udp %s, tls %s, mapping %s, findings %v", got.UDP, got.TLS, got.IPv4.Mapping, ids)
			}
			b, err := json.Marshal(got)
			for _, list := range []string{"relays", "udp", "seen", "counters", "findings"} {
				if err != nil || strings.Contains(string(b), `"`+list+`":null`) {
					t.Errorf("%s is not []: %v, %s", list, err, b)
				}
			}
		})
	}
}

func TestNetcheckFamilies(t *testing.T) {
	m := checkOf(true, nil)
	v6 := underlay.Echo{Addr: netip.MustParseAddrPort("[2001:db8::1]:443"), Err: errors.New("network is unreachable")}
	m.check.Relays[0].Echoes = append(m.check.Relays[0].Echoes, v6)
	if got := m.netcheck().IPv6.State; got != NetMissing {
		t.Errorf("without an address: %s", got)
	}
	m.check.Own = append(m.check.Own, netip.MustParseAddrPort("[2001:db8::5]:4000"))
	if got := m.netcheck().IPv6.State; got != NetUntried {
		t.Errorf("nothing could be sent: %s", got)
	}
	m.check.Relays[0].Echoes[1].Err = nil
	if got := m.netcheck().IPv6.State; got != NetSilent {
		t.Errorf("nothing came back: %s", got)
	}
	m.check.Relays[0].Echoes[1].RTT = time.Millisecond
	m.check.Unasked = testNow
	if got := m.netcheck(); got.IPv6.State != NetWorks || got.IPv4.Filtering != "endpoint_independent" || got.IPv6.Filtering != "unknown" {
		t.Errorf("%+v", got)
	}
}

// TestParseProxy: what a proxy's URL may look like, and that errors keep its
// password to themselves.
func TestParseProxy(t *testing.T) {
	for in, ok := range map[string]bool{
		"http://proxy.example.org:3128": true, "https://10.0.0.1": true, "socks5://127.0.0.1:1080/": true, "http://me:secret@proxy:1": true,
		"": false, "proxy": false, "proxy:3128": false, "ftp://proxy": false, "http://": false, "http://:3128": false,
		"http://me:secret@proxy/path": false, "http://me:secret@[proxy": false, "http://me:secret@proxy?x": false,
	} {
		_, err := ParseProxy(in)
		if (err == nil) != ok {
			t.Errorf("%s: %v", in, err)
		}
		if err != nil && strings.Contains(err.Error()+AsFault(err).Hint, "secret") {
			t.Errorf("%s: the password is told: %v", in, err)
		}
	}
	none, err := chooseProxy(NoProxy)
	if err != nil {
		t.Fatal(err)
	}
	if u, err := none(nil); u != nil || err != nil {
		t.Errorf("none is %v, %v", u, err)
	}
	if _, err := New(Options{Proxy: "gopher://x"}); AsFault(err).Code != ExitUsage {
		t.Errorf("a node with a malformed proxy: %v", err)
	}
}
