package overlay

import (
	"errors"
	"net/netip"
	"strings"
	"testing"

	"overlayd/overlay/key"
)

func TestCheckAdvertised(t *testing.T) {
	tests := []struct {
		prefix string
		want   string // part of the error; "": fine
	}{
		{"192.168.1.0/24", ""},
		{"10.1.2.3/32", ""},
		{"192.168.1.5/24", "bits set"},
		{"0.0.0.0/0", "default route"},
		{"fd00::/64", "IPv4"},
	}
	for _, tt := range tests {
		err := checkAdvertised(netip.MustParsePrefix(tt.prefix))
		if tt.want == "" && err != nil || tt.want != "" && (err == nil || !strings.Contains(err.Error(), tt.want)) {
			t.Errorf("%s: %v, want %q", tt.prefix, err, tt.want)
		}
		if f, ok := errors.AsType[*Fault](err); ok && (f.Code != ExitUsage || f.Hint == "") {
			t.Errorf("%s: code %d, hint %q", tt.prefix, f.Code, f.Hint)
		}
	}
}

func TestHubAddresses(t *testing.T) {
	tests := []struct {
		public, listen string
		wantPublic, at string
		wantErr        string
	}{
		{public: "203.0.113.10", wantPublic: "203.0.113.10:443", at: "0.0.0.0:443"},
		{public: "203.0.113.10:8443", wantPublic: "203.0.113.10:8443", at: "0.0.0.0:8443"},
		{public: "vps.example.org", listen: ":4443", wantPublic: "vps.example.org:4443", at: "0.0.0.0:4443"},
		{public: "vps.example.org:443", listen: "10.0.0.4:8443", wantPublic: "vps.example.org:443", at: "10.0.0.4:8443"},
		{at: "0.0.0.0:443"},
		{public: "203.0.113.10", listen: "443", wantErr: "malformed"},
		{public: "203.0.113.10", listen: ":0", wantErr: "port"},
		{public: "203.0.113.10", listen: "vps:443", wantErr: "no IP address"},
	}
	for _, tt := range tests {
		h, err := NewHub(HubOptions{Public: tt.public, Listen: tt.listen})
		if tt.wantErr != "" {
			if err == nil || !strings.Contains(err.Error(), tt.wantErr) {
				t.Errorf("%q %q: %v, want %q", tt.public, tt.listen, err, tt.wantErr)
			}
			continue
		}
		if err != nil {
			t.Errorf("%q %q: %v", tt.public, tt.listen, err)
			continue
		}
		if h.public != tt.wantPublic || h.listen.String() != tt.at {
			t.Errorf("%q %q: public %q at %s, want %q at %s", tt.public, tt.listen, h.public, h.listen, tt.wantPublic, tt.at)
		}
	}
}

// TestHubProxy: a relay's coordinator may be behind a proxy when it is another
// machine's.
func TestHubProxy(t *testing.T) {
	h, err := NewHub(HubOptions{Options: Options{Link: "x", Proxy: "http://proxy.example.org:3128"}, Public: "203.0.113.10"})
	if err != nil {
		t.Fatal(err)
	}
	if got := h.node.proxyFor("203.0.113.1:443"); got != "proxy.example.org:3128" {
		t.Errorf("by %q", got)
	}
	if err := h.node.setProxy(NoProxy); err != nil || h.node.proxyFor("203.0.113.1:443") != "" {
		t.Errorf("there is a proxy, or %v", err)
	}
}

// TestHubJoins says whose network a relay belongs to.
func TestHubJoins(t *testing.T) {
	for name, c := range map[string]struct {
		link   string
		stored *hubJSON // nil: the first start
		member bool     // there is an identity that joined
		joins  bool
		code   int // of the refusal; 0: none
	}{
		"the first start":             {"", nil, false, false, 0},
		"the first start, a link":     {"x", nil, false, true, 0},
		"its own network":             {"", &hubJSON{Schema: stateSchema}, true, false, 0},
		"another's":                   {"", &hubJSON{Schema: stateSchema, Joined: true}, true, true, 0},
		"another's that refused":      {"", &hubJSON{Schema: stateSchema, Joined: true}, false, false, ExitNotJoined},
		"another's that refused once": {"x", &hubJSON{Schema: stateSchema, Joined: true}, false, true, 0},
	} {
		t.Run(name, func(t *testing.T) {
			d := stateDir{t.TempDir()}
			if c.stored != nil {
				if err := d.writeJSON(hubFile, c.stored); err != nil {
					t.Fatal(err)
				}
			}
			if c.member {
				if err := d.saveIdentity(&identity{Machine: key.NewMachine(), WireGuard: key.NewPrivate(), NodeID: "n1"}); err != nil {
					t.Fatal(err)
				}
			}
			h, err := NewHub(HubOptions{Options: Options{StateDir: d.path, Link: c.link}, Public: "203.0.113.10"})
			if err != nil {
				t.Fatal(err)
			}
			joins, err := h.joins()
			if joins != c.joins || (err != nil) != (c.code != 0) {
				t.Errorf("joins: %v, %v", joins, err)
			}
			if err != nil && (AsFault(err).Code != c.code || AsFault(err).Hint == "") {
				t.Errorf("refused: %v", err)
			}
		})
	}
}

func TestCheckOverlay(t *testing.T) {
	for p, want := range map[string]string{
		"172.18.0.0/24": "", "10.0.0.0/8": "", "100.88.0.0/30": "",
		"172.18.0.9/24": "bits set", "9.0.0.0/7": "bits set", "8.0.0.0/7": "between 8 and 30",
		"10.0.0.0/31": "between 8 and 30", "127.0.0.0/8": "another meaning", "224.0.0.0/8": "another meaning", "fd00::/64": "IPv4",
	} {
		err := checkOverlay(netip.MustParsePrefix(p))
		if want == "" && err != nil || want != "" && (err == nil || !strings.Contains(err.Error(), want)) {
			t.Errorf("%s: %v, want %q", p, err, want)
		}
	}
}
