package main

import (
	"strings"
	"testing"
)

// TestAdvertisedEndpoints: what --advertise-endpoint takes.
func TestAdvertisedEndpoints(t *testing.T) {
	for in, want := range map[string]string{
		"198.51.100.2:41641":                 "198.51.100.2:41641",
		"[2001:db8::1]:5, 198.51.100.2:6":    "[2001:db8::1]:5, 198.51.100.2:6",
		"[::ffff:198.51.100.2]:7":            "198.51.100.2:7",
		"198.51.100.2":                       "",
		"198.51.100.2:0":                     "",
		"127.0.0.1:5":                        "",
		"0.0.0.0:5":                          "",
		"vps.example.org:5":                  "",
		"[fe80::1%eth0]:5":                   "",
		"198.51.100.2:41641,255.255.255.255": "",
	} {
		var l endpoints
		err := l.Set(in)
		if want == "" && err == nil || want != "" && (err != nil || l.String() != want) {
			t.Errorf("%s: %q, %v", in, l.String(), err)
		}
	}
	var m member
	m.forwards = endpoints{}
	if err := m.forwards.Set("198.51.100.2:5"); err != nil {
		t.Fatal(err)
	}
	if _, err := new(program).memberOptions(&m, nil); err == nil || !strings.Contains(err.Error(), "--port") {
		t.Errorf("an endpoint without a port: %v", err)
	}
}
