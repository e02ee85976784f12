//go:build linux

package waysin_test

import (
	"context"
	"io"
	"net/http"
	"os"
	"os/exec"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"overlayd/examples/lab"
	"overlayd/examples/lab/labtest"
)

// The example of a program that is a member by itself does what it says, and
// stays under 60 lines.
func TestEmbed(t *testing.T) {
	labtest.NeedRoot(t)
	source, err := os.ReadFile("../../embed/main.go")
	if err != nil {
		t.Fatal(err)
	}
	if n := strings.Count(string(source), "\n"); n >= 60 {
		t.Errorf("the example has %d lines", n)
	}
	program := filepath.Join(filepath.Dir(labtest.Overlayd(t)), "embed")
	build := exec.CommandContext(t.Context(), "go", "build", "-buildvcs=false", "-o", program, "overlayd/examples/embed")
	if out, err := build.CombinedOutput(); err != nil {
		t.Fatalf("%v\n%s", err, out)
	}
	ctx, n := newNetwork(t)
	if _, err := n.admin.ApplyPolicy(ctx, "rules: [{name: everything, src: \"*\", dst: \"*\"}]\n"); err != nil {
		t.Fatal(err)
	}
	if _, err := n.Gateway.Serve(ctx, "gateway", n.gatewayLink(ctx, t)); err != nil {
		t.Fatal(err)
	}
	serveHTTP(t, n.Host, lab.HostAddr+":80", func(w http.ResponseWriter, _ *http.Request) { io.WriteString(w, "the LAN's page\n") })

	alice := newPerson(t, n.Laptop)
	args := append(append([]string{}, alice.unit[1:]...), program, filepath.Join(alice.home, "embed"), "http://"+lab.HostAddr+"/", n.link(ctx, t, "alice-1"))
	p, err := n.Laptop.Start(alice.unit[0], args...)
	if err != nil {
		t.Fatal(err)
	}
	var at string
	err = lab.Until(ctx, func(context.Context) error {
		if !p.Running() {
			t.Fatalf("it ended: %v\n%s", p.Err(), p.Tail())
		}
		_, rest, ok := strings.Cut(p.Tail(), "serving on ")
		if !ok {
			return io.ErrUnexpectedEOF
		}
		at = strings.Fields(rest)[0]
		return nil
	})
	if err != nil || !strings.Contains(p.Tail(), "the LAN's page") {
		t.Fatalf("%v\n%s", err, p.Tail())
	}
	client := http.Client{Transport: &http.Transport{DialContext: n.VPS.DialContext}, Timeout: 10 * time.Second}
	defer client.CloseIdleConnections()
	res, err := client.Get("http://" + at + "/")
	if err != nil {
		t.Fatal(err)
	}
	defer res.Body.Close()
	if page, err := io.ReadAll(res.Body); err != nil || !strings.HasPrefix(string(page), "hello, "+lab.VPSOverlay+":") {
		t.Errorf("got %q, %v", page, err)
	}
}
