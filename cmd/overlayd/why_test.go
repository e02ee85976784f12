package main

import (
	"bytes"
	"encoding/json"
	"net/netip"
	"slices"
	"strings"
	"testing"
	"time"

	"overlayd/overlay"
)

func relayedPath(reason string) overlay.PongPath {
	return overlay.PongPath{Kind: "relay", Transport: "udp", Relay: "vps", Endpoint: "203.0.113.10:443", Reason: reason}
}

var directPath = overlay.PongPath{Direct: true, Kind: "direct", Transport: "udp", Endpoint: "192.0.2.2:41641"}

func pongs(paths ...overlay.PongPath) (all []overlay.Pong) {
	for i, p := range paths {
		all = append(all, overlay.Pong{Seq: i + 1, Addr: netip.MustParseAddr("172.18.0.200"), RTT: 2 * time.Millisecond, Path: p})
	}
	return all
}

func TestPingUntilDirect(t *testing.T) {
	for name, c := range map[string]struct {
		pongs []overlay.Pong
		args  string
		code  int
		call  string
		out   string
		err   string
	}{
		"after two": {pongs(relayedPath("probing"), relayedPath("probing"), directPath, directPath), "--until-direct", 0,
			"ping lab-gw 0 1s", "seq 1, 2.00 ms, relay vps udp (looking for a direct path)\n", ""},
		"the first is enough": {pongs(directPath, directPath), "--until-direct -c 3 -i 200ms", 0, "ping lab-gw 3 200ms", "1 sent, 1 answered", ""},
		"never": {pongs(relayedPath("probing"), relayedPath("symmetric_nat_both")), "--until-direct -c 2", 7,
			"ping lab-gw 2 1s", "2 sent, 2 answered", "no answer from lab-gw came directly: the NATs, or firewalls, on both sides"},
		"nothing at all":  {nil, "--until-direct --timeout 1s", 7, "ping lab-gw 0 1s", "0 sent", "lab-gw does not answer"},
		"a direct loss":   {[]overlay.Pong{{Seq: 1, Lost: true, Path: directPath}}, "--until-direct -c 1", 7, "ping lab-gw 1 1s", "no answer", "does not answer"},
		"an unknown word": {pongs(relayedPath("moon_phase")), "--until-direct -c 1", 7, "ping lab-gw 1 1s", "(moon phase)", "directly: moon phase"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.pongs = c.pongs
			code := w.do(append([]string{"ping", "lab-gw"}, strings.Fields(c.args)...)...)
			if code != c.code || !strings.Contains(w.out.String(), c.out) || !strings.Contains(w.err.String(), c.err) {
				t.Errorf("code %d\n%s%s", code, w.out.String(), w.err.String())
			}
			if len(w.calls) != 1 || w.calls[0] != c.call {
				t.Errorf("asked %q, want %q", w.calls, c.call)
			}
		})
	}
}

// TestPingCarrier: when a host does not answer, it is said whether the machine that
// carries its packets does.
func TestPingCarrier(t *testing.T) {
	via := directPath
	via.Via = "lab-gw"
	lost, answer := overlay.Pong{Seq: 1, Lost: true, Path: via}, overlay.Pong{Seq: 1, RTT: time.Millisecond, Path: via}
	for name, c := range map[string]struct {
		host, carrier []overlay.Pong
		asked         bool
		code          int
		err, hint     string
	}{
		"answers":         {[]overlay.Pong{lost, lost}, []overlay.Pong{answer}, true, 7, "192.168.1.9 does not answer; lab-gw, which carries its packets, does", "lets pings in"},
		"is silent":       {[]overlay.Pong{lost, lost}, []overlay.Pong{lost}, true, 7, "192.168.1.9 does not answer, nor does lab-gw, which carries its packets", "lab-gw is on"},
		"refuses":         {[]overlay.Pong{lost}, []overlay.Pong{{Lost: true, Refused: "lab-gw"}}, true, 7, "192.168.1.9 does not answer\n", "overlayd ping lab-gw"},
		"cannot be asked": {[]overlay.Pong{lost, lost}, nil, true, 7, "192.168.1.9 does not answer\n", "overlayd ping lab-gw"},
		"cannot be reached": {[]overlay.Pong{{Seq: 1, Lost: true, Path: overlay.PongPath{Kind: "none", Via: "lab-gw", Reason: "relay_down"}}}, nil, false, 7,
			"there is no way to it now: its relay does not answer", "overlayd status"},
		"need not be":        {[]overlay.Pong{answer, lost}, nil, false, 0, "", ""},
		"the host is itself": {[]overlay.Pong{{Seq: 1, Lost: true, Path: directPath}}, nil, false, 7, "192.168.1.9 does not answer\n", "overlayd status says there"},
	} {
		t.Run(name, func(t *testing.T) {
			w := newWorld(t)
			w.pongs, w.carrier.name, w.carrier.pongs = c.host, "lab-gw", c.carrier
			code := w.do("ping", "192.168.1.9", "-c", "2")
			if err := w.err.String(); code != c.code || !strings.Contains(err, c.err) || !strings.Contains(err, c.hint) {
				t.Errorf("code %d\n%s", code, err)
			}
			if asked := slices.Contains(w.calls, "ping lab-gw 1 1s"); asked != c.asked || len(w.calls) > 2 {
				t.Errorf("asked %q", w.calls)
			}
		})
	}
}

func TestPingJSON(t *testing.T) {
	w := newWorld(t)
	w.pongs = append(pongs(relayedPath("probing"), directPath), overlay.Pong{Seq: 3, Lost: true, Path: directPath})
	if code := w.do("ping", "lab-gw", "--json"); code != 0 {
		t.Fatalf("code %d: %s", code, w.err.String())
	}
	var got pingJSON
	if err := json.Unmarshal(w.out.Bytes(), &got); err != nil {
		t.Fatalf("%v: %s", err, w.out.String())
	}
	if got.Schema != "overlayd.ping/v1" || got.Sent != 3 || got.Answered != 2 || !got.Direct || len(got.Pongs) != 3 ||
		got.Pongs[0].Path.Reason != "probing" || got.Pongs[2].RTTMS != nil || *got.MeanMS != 2 {
		t.Errorf("%+v", got)
	}
	if code := w.do("ping", "lab-gw", "--json", "-c", "0"); code != overlay.ExitUsage {
		t.Errorf("JSON without an end: code %d", code)
	}
	w.pongs = nil
	if code := w.do("ping", "lab-gw", "--json"); code != overlay.ExitUnreachable || !strings.Contains(w.out.String(), `"pongs": []`) {
		t.Errorf("nothing answered: code %d, %s", code, w.out.String())
	}
}

// TestReasonsHaveWords: every reason that the issue of a path can have is
// explained, with what to do.
func TestReasonsHaveWords(t *testing.T) {
	for _, r := range []string{"symmetric_nat_both", "udp_blocked", "no_common_family", "probing", "lossy", "peer_offline", "mtu", "idle"} {
		if w := reasons[r]; w.short == "" || w.long == "" || w.fix == "" {
			t.Errorf("%s: %+v", r, w)
		}
	}
}

func TestWhyLines(t *testing.T) {
	peer := func(name, reason string, online bool) overlay.StatusPeer {
		return overlay.StatusPeer{Name: name, Online: online, Path: overlay.StatusPath{Kind: "relay", Transport: "udp", Reason: reason}}
	}
	peers := []overlay.StatusPeer{
		peer("a", "probing", true), peer("b", "lossy", true), peer("c", "lossy", true), peer("d", "idle", true),
		peer("e", "lossy", true), peer("f", "lossy", true), peer("g", "no_common_family", false), peer("h", "", true), peer("i", "mtu", true),
	}
	got := strings.Join(whyLines(peers, 2), "\n")
	for _, want := range []string{"a not direct: ", "--until-direct", "ping a ", "b, c and 2 more not direct: ", "(lossy)", "and 1 more reasons"} {
		if !strings.Contains(got, want) {
			t.Errorf("no %q in:\n%s", want, got)
		}
	}
	if lines := whyLines(peers[3:4], 2); len(lines) != 0 {
		t.Errorf("idle is explained: %q", lines)
	}
}

func workingCheck() overlay.Netcheck {
	echo := func(addr string, ms *float64) overlay.NetcheckEcho {
		return overlay.NetcheckEcho{Addr: addr, RTTMS: ms}
	}
	return overlay.Netcheck{
		Schema: overlay.NetcheckSchema, ByDaemon: true, UDP: overlay.NetWorks, TLS: overlay.NetWorks,
		IPv4: overlay.NetcheckFamily{State: overlay.NetWorks, SeenAs: ptr("198.51.100.2:41641"), Mapping: "endpoint_independent",
			Filtering: "unknown", Seen: []overlay.NetcheckSeen{{By: "relay vps", As: "198.51.100.2:41641"}}},
		IPv6: overlay.NetcheckFamily{State: overlay.NetMissing, Mapping: "unknown", Filtering: "unknown"},
		Relays: []overlay.NetcheckRelay{
			{Name: "vps", Endpoint: "203.0.113.10:443", InUse: "udp", UDP: []overlay.NetcheckEcho{echo("203.0.113.10:443", ptr(12.34)), echo("[2001:db8::1]:443", nil)},
				TLS: overlay.NetcheckTLS{State: overlay.NetWorks, ConnectMS: ptr(41.2)}},
		},
		PortMapping: &overlay.StatusPortMapping{Protocol: "pcp", External: ptr(netip.MustParseAddrPort("198.51.100.2:41641"))},
		Counters:    []overlay.Counter{{Name: "drop_probe_forged", Value: 3}, {Name: "drop_held"}, {Name: "tls_dials", Value: 9}},
		Findings:    []overlay.HealthItem{},
	}
}

func TestNetcheck(t *testing.T) {
	blocked := workingCheck()
	blocked.UDP, blocked.IPv4 = overlay.NetSilent, overlay.NetcheckFamily{State: overlay.NetSilent, Mapping: "unknown", Filtering: "unknown"}
	blocked.Relays[0].UDP = []overlay.NetcheckEcho{{Addr: "203.0.113.10:443"}, {Addr: "[2001:db8::1]:443", Error: "network is unreachable"}}
	blocked.Relays[0].InUse = ""
	blocked.TLS = overlay.NetSilent
	blocked.Relays[0].TLS = overlay.NetcheckTLS{State: overlay.NetSilent, Reason: "proxy_refused", Detail: "by the proxy 10.0.0.1:3128: it wants a login (407)"}
	blocked.Proxy = &overlay.NetcheckProxy{Host: "10.0.0.1:3128", Source: "environment"}
	blocked.Findings = []overlay.HealthItem{{ID: "relay_unreachable", Severity: overlay.SeverityError,
		Title: "relay vps answers neither by UDP nor by TLS: by the proxy 10.0.0.1:3128: it wants a login (407)", Fix: "check the proxy"}}
	alone := workingCheck()
	blocked.PortMapping = &overlay.StatusPortMapping{Reason: "no_answer", Detail: "nobody spoke"}
	alone.PortMapping = nil
	alone.ByDaemon, alone.IPv4.Mapping, alone.Counters = false, "unknown", nil
	for file, c := range map[string]overlay.Netcheck{
		"netcheck.golden": workingCheck(), "netcheck_blocked.golden": blocked, "netcheck_alone.golden": alone,
	} {
		var b bytes.Buffer
		writeNetcheck(&b, c, style{})
		golden(t, file, b.String())
	}

	w := newWorld(t)
	w.check = workingCheck()
	if code := w.do("netcheck"); code != 0 || !strings.Contains(w.out.String(), "easy") {
		t.Errorf("code %d\n%s", code, w.out.String())
	}
	w.check = blocked
	if code := w.do("netcheck", "--json"); code != overlay.ExitUnreachable || !json.Valid(w.out.Bytes()) {
		t.Errorf("code %d\n%s", code, w.out.String())
	}
}

// TestNetcheckWithoutDaemon: a machine that has joined measures by itself, any
// other is told that no daemon runs.
func TestNetcheckWithoutDaemon(t *testing.T) {
	w := newWorld(t)
	w.down = &overlay.Fault{Code: overlay.ExitNotRunning, Message: "no overlayd answers on x", Hint: "start it"}
	w.check = workingCheck()
	w.check.ByDaemon = false
	if code := w.do("netcheck", "--state-dir", "/x"); code != 0 || !strings.Contains(w.out.String(), "no daemon runs") || w.calls[0] != "netcheck /x" {
		t.Errorf("code %d, %q\n%s%s", code, w.calls, w.out.String(), w.err.String())
	}
	w.alone = &overlay.Fault{Code: overlay.ExitNotJoined, Message: "nothing there"}
	if code := w.do("netcheck"); code != overlay.ExitNotRunning || !strings.Contains(w.err.String(), "no overlayd answers on x") {
		t.Errorf("code %d: %s", code, w.err.String())
	}
	w.alone = &overlay.Fault{Code: overlay.ExitPermission, Message: "read /x: permission denied"}
	if code := w.do("netcheck"); code != overlay.ExitPermission {
		t.Errorf("code %d: %s", code, w.err.String())
	}
}

func TestServiceProxy(t *testing.T) {
	w := newWorld(t)
	if code := w.do("service", "install", "--print", "up", "--proxy", "http://proxy.example.org:3128"); code != 0 ||
		!strings.Contains(w.out.String(), " --proxy=http://proxy.example.org:3128") {
		t.Errorf("code %d\n%s%s", code, w.out.String(), w.err.String())
	}
	w.env["OVERLAYD_PROXY"] = "none"
	if code := w.do("service", "install", "--print", "gateway"); code != 0 || !strings.Contains(w.out.String(), " --proxy=none") {
		t.Errorf("from the environment: code %d\n%s%s", code, w.out.String(), w.err.String())
	}
	w.env["OVERLAYD_PROXY"] = "http://me:secret@proxy.example.org:3128"
	if code := w.do("service", "install", "--print", "up"); code != overlay.ExitUsage ||
		strings.Contains(w.out.String()+w.err.String(), "secret@") || !strings.Contains(w.err.String(), "--config FILE") {
		t.Errorf("with a password: code %d\n%s%s", code, w.out.String(), w.err.String())
	}
	w.env = map[string]string{"HTTPS_PROXY": "http://proxy.example.org:3128"}
	if code := w.do("service", "install", "--print", "up"); code != 0 || !strings.Contains(w.err.String(), "add --proxy URL") {
		t.Errorf("the environment's is not mentioned: code %d\n%s", code, w.err.String())
	}
	for _, bad := range []string{"proxy:3128", "ftp://proxy", "http://", "http://proxy/path", "://x:secret@y"} {
		if code := w.do("up", "--proxy", bad); code != overlay.ExitUsage || strings.Contains(w.err.String(), "secret") {
			t.Errorf("%s: code %d: %s", bad, code, w.err.String())
		}
	}
	if code := w.do("up", "--proxy", "socks5://127.0.0.1:1080"); code != 0 || w.member.Proxy != "socks5://127.0.0.1:1080" {
		t.Errorf("code %d, %q: %s", code, w.member.Proxy, w.err.String())
	}
}

// TestProxyIsQuiet: whoever prints the flag's value prints no password.
func TestProxyIsQuiet(t *testing.T) {
	for in, want := range map[string]string{
		"none":                                 "none",
		"http://proxy.example.org:3128":        "http://proxy.example.org:3128",
		"http://me:hush@proxy.example.org:312": "http://me:xxxxx@proxy.example.org:312",
	} {
		var v proxyURL
		if err := v.Set(in); err != nil || v.String() != want || string(v) != in {
			t.Errorf("%s, %v, want %s", v.String(), err, want)
		}
	}
}
