package overlay

import (
	"errors"
	"net/netip"
	"strings"
	"testing"
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
