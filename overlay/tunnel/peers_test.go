package tunnel

import (
	"net/netip"
	"strings"
	"testing"
	"time"

	"github.com/google/go-cmp/cmp"

	"overlayd/overlay/key"
)

func prefixes(list ...string) (all []netip.Prefix) {
	for _, s := range list {
		all = append(all, netip.MustParsePrefix(s))
	}
	return all
}

func TestDiff(t *testing.T) {
	a, b := key.NewPrivate().Public(), key.NewPrivate().Public()
	for name, c := range map[string]struct {
		have, want []Peer
		set        string
	}{
		"nothing": {},
		"new": {
			want: []Peer{{Key: a, Endpoint: "x", AllowedIPs: prefixes("10.0.0.1/32"), Keepalive: 25 * time.Second}},
			set:  "public_key=A\nendpoint=x\npersistent_keepalive_interval=25\nallowed_ip=10.0.0.1/32\n",
		},
		"new and bare": {want: []Peer{{Key: a}}, set: "public_key=A\n"},
		"same": {
			have: []Peer{{Key: a, Endpoint: "x", AllowedIPs: prefixes("10.0.0.0/24", "10.0.1.0/24")}},
			want: []Peer{{Key: a, Endpoint: "x", AllowedIPs: prefixes("10.0.1.0/24", "10.0.0.7/24", "10.0.0.0/24")}},
		},
		"gone": {
			have: []Peer{{Key: a, Endpoint: "x"}},
			set:  "public_key=A\nremove=true\n",
		},
		"prefix moves": {
			have: []Peer{{Key: a, AllowedIPs: prefixes("10.0.0.0/24")}, {Key: b}},
			want: []Peer{{Key: b, AllowedIPs: prefixes("10.0.0.0/24")}, {Key: a}},
			set:  "public_key=A\nupdate_only=true\nallowed_ip=-10.0.0.0/24\npublic_key=B\nupdate_only=true\nallowed_ip=10.0.0.0/24\n",
		},
		"prefixes change places": {
			have: []Peer{{Key: a, AllowedIPs: prefixes("10.0.0.0/24")}, {Key: b, AllowedIPs: prefixes("10.0.1.0/24")}},
			want: []Peer{{Key: a, AllowedIPs: prefixes("10.0.1.0/24")}, {Key: b, AllowedIPs: prefixes("10.0.0.0/24")}},
			set: "public_key=A\nupdate_only=true\nallowed_ip=-10.0.0.0/24\npublic_key=B\nupdate_only=true\nallowed_ip=-10.0.1.0/24\n" +
				"public_key=A\nupdate_only=true\nallowed_ip=10.0.1.0/24\npublic_key=B\nupdate_only=true\nallowed_ip=10.0.0.0/24\n",
		},
		"keepalive off": {
			have: []Peer{{Key: a, Keepalive: time.Minute}},
			want: []Peer{{Key: a}},
			set:  "public_key=A\nupdate_only=true\npersistent_keepalive_interval=0\n",
		},
	} {
		t.Run(name, func(t *testing.T) {
			have := map[key.Public]Peer{}
			for _, p := range c.have {
				have[p.Key] = p
			}
			got := strings.NewReplacer(a.Hex(), "A", b.Hex(), "B").Replace(diff(have, c.want))
			if d := cmp.Diff(c.set, got); d != "" {
				t.Error(d)
			}
		})
	}
}

func TestParseConfig(t *testing.T) {
	k := key.NewPrivate().Public()
	text := "private_key=00\nlisten_port=1\npublic_key=" + k.Hex() + "\npreshared_key=00\nprotocol_version=1\nendpoint=e\n" +
		"last_handshake_time_sec=5\nlast_handshake_time_nsec=6\ntx_bytes=7\nrx_bytes=8\npersistent_keepalive_interval=25\nallowed_ip=10.0.0.0/24\n"
	c, err := parseConfig(text)
	if err != nil {
		t.Fatal(err)
	}
	if got, want := c.stats[k], (Stat{RxBytes: 8, TxBytes: 7, LastHandshake: time.Unix(5, 6), Endpoint: "e"}); got != want {
		t.Errorf("stat %+v, want %+v", got, want)
	}
	p := c.peers[k]
	if p.Endpoint != "e" || p.Keepalive != 25*time.Second || len(p.AllowedIPs) != 1 {
		t.Errorf("peer %+v", p)
	}
	for _, bad := range []string{"public_key=zz\n", "rx_bytes=x\n", "allowed_ip=1\n", "last_handshake_time_sec=\n"} {
		if _, err := parseConfig(bad); err == nil {
			t.Errorf("%q was taken", bad)
		}
	}
}

func FuzzParseConfig(f *testing.F) {
	f.Add("public_key=" + strings.Repeat("ab", 32) + "\nallowed_ip=10.0.0.0/8\nrx_bytes=1\n")
	f.Fuzz(func(t *testing.T, text string) {
		if c, err := parseConfig(text); err == nil && len(c.peers) != len(c.stats) {
			t.Error("peers without stats")
		}
	})
}
