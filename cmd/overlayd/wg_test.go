package main

import (
	"bytes"
	"encoding/base64"
	"image"
	"strings"
	"testing"

	"github.com/boombuler/barcode/qr"

	"overlayd/overlay"
	"overlayd/overlay/coord"
	"overlayd/overlay/key"
)

// relayKey is of who carries a device.
var relayKey, _ = key.PublicFromBytes(bytes.Repeat([]byte{1}, key.Size))

const relayKeyText = "AQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQEBAQE="

func TestAddDevice(t *testing.T) {
	w := newWorld(t)
	if code := w.do("wg", "add", "phone", "--user", "alice"); code != 0 {
		t.Fatalf("exit %d: %s", code, w.err.String())
	}
	lines := strings.Split(w.out.String(), "\n")
	secret, err := base64.StdEncoding.DecodeString(strings.TrimPrefix(lines[2], "PrivateKey = "))
	if err != nil {
		t.Fatalf("no private key in\n%s", w.out.String())
	}
	k, err := key.ParsePrivate(secret)
	if err != nil || k.Public() != w.added {
		t.Errorf("the private key shown is not that of the key %s that was added (%v)", w.added, err)
	}
	lines[2] = "PrivateKey = (secret)"
	want := `# phone of alice
[Interface]
PrivateKey = (secret)
Address = 172.18.0.14/32
MTU = 1280

[Peer]
PublicKey = ` + relayKeyText + `
Endpoint = 203.0.113.10:443
AllowedIPs = 172.18.0.0/24, 192.168.1.0/24
PersistentKeepalive = 25
`
	if got := strings.Join(lines, "\n"); got != want {
		t.Errorf("got\n%s\nwant\n%s", got, want)
	}
	for _, words := range []string{"VPS can read what this device sends", "shown this once", "wg remove phone"} {
		if !strings.Contains(w.err.String(), words) {
			t.Errorf("nothing is said of %q:\n%s", words, w.err.String())
		}
	}
	if strings.ContainsAny(w.err.String(), "▀█") {
		t.Error("a QR code is drawn where nobody looks")
	}

	w = newWorld(t)
	w.terminal = true
	if code := w.do("wg", "add", "phone", "--user", "alice"); code != 0 || !strings.Contains(w.err.String(), "▀") {
		t.Errorf("exit %d, and no QR code on a terminal: %s", code, w.err.String())
	}

	w = newWorld(t)
	if code := w.do("wg", "add", "phone", "--user", "alice", "--public-key", relayKeyText); code != 0 || w.added != relayKey {
		t.Fatalf("exit %d: %s", code, w.err.String())
	}
	if got := w.out.String(); strings.Contains(got, "\nPrivateKey") || !strings.Contains(got, "# PrivateKey") || strings.Contains(w.err.String(), "shown this once") {
		t.Errorf("with a key of its own:\n%s%s", got, w.err.String())
	}
	for _, args := range [][]string{
		{"wg", "add", "phone"}, {"wg", "add", "--user", "alice"}, {"wg", "add", "a b", "--user", "alice"},
		{"wg", "add", "phone", "--user", "alice", "--public-key", "short"}, {"wg", "remove", "nobody"},
	} {
		w := newWorld(t)
		if code := w.do(args...); code != int(overlay.ExitUsage) {
			t.Errorf("%v: exit %d, %s", args, code, w.err.String())
		}
	}
}

// TestCodes: an authenticator app scans what a terminal shows; a program gets lines.
func TestCodes(t *testing.T) {
	for _, terminal := range []bool{false, true} {
		w := newWorld(t)
		w.terminal = terminal
		if code := w.do("users", "totp", "alice"); code != 0 || w.out.String() != "otpauth://totp/overlayd:alice?secret=AAAA\nAAAA\n" {
			t.Errorf("exit %d: %s", code, w.out.String())
		}
		if drawn := strings.Contains(w.err.String(), "▀"); drawn != terminal {
			t.Errorf("on a terminal (%t) a QR code is drawn: %t", terminal, drawn)
		}
	}
}

func TestListDevices(t *testing.T) {
	w := newWorld(t)
	w.nodes = []coord.NodeInfo{
		{Node: coord.Node{ID: "n1", Name: "vps", Role: coord.RoleRelay}},
		{Node: coord.Node{ID: "n2", Name: "phone", User: "alice", Host: "n1", State: coord.NodeActive, WireGuard: relayKey}},
		{Node: coord.Node{ID: "n3", Name: "alice-at-vps", User: "alice", Host: "n1", Seat: true, State: coord.NodeActive}},
	}
	if code := w.do("wg"); code != 0 || !strings.Contains(w.out.String(), "device at vps") || strings.Contains(w.out.String(), "alice-at-vps") {
		t.Errorf("exit %d:\n%s", code, w.out.String())
	}
	w.out.Reset()
	if code := w.do("nodes"); code != 0 || !strings.Contains(w.out.String(), "device at vps") || !strings.Contains(w.out.String(), "seat at vps") {
		t.Errorf("exit %d:\n%s", code, w.out.String())
	}
}

// TestQR: what is drawn is the code, with its quiet zone.
func TestQR(t *testing.T) {
	const content = "[Interface]\nPrivateKey = x\n"
	code, err := qr.Encode(content, qr.L, qr.Auto)
	if err != nil {
		t.Fatal(err)
	}
	drawn, err := qrText(content)
	if err != nil {
		t.Fatal(err)
	}
	size := code.Bounds().Dx()
	at := func(x, y int) bool {
		if !(image.Point{x, y}).In(code.Bounds()) {
			return false
		}
		r, _, _, _ := code.At(x, y).RGBA()
		return r == 0
	}
	for i, line := range strings.Split(strings.TrimSuffix(drawn, "\n"), "\n") {
		line = strings.TrimSuffix(strings.TrimPrefix(line, "\x1b[30;107m"), "\x1b[0m")
		cells := []rune(line)
		if len(cells) != size+8 {
			t.Fatalf("line %d has %d cells for %d modules", i, len(cells), size)
		}
		for j, c := range cells {
			x, y := j-4, 2*i-4
			if top := c == '▀' || c == '█'; top != at(x, y) {
				t.Fatalf("the module %d,%d is drawn wrong", x, y)
			}
			if bottom := c == '▄' || c == '█'; bottom != at(x, y+1) {
				t.Fatalf("the module %d,%d is drawn wrong", x, y+1)
			}
		}
	}
}
