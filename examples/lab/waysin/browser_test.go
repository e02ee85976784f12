//go:build linux

package waysin_test

import (
	"context"
	"encoding/base32"
	"encoding/base64"
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"strings"
	"testing"
	"time"

	"golang.org/x/net/websocket"

	"overlayd/examples/lab"
	"overlayd/examples/lab/labtest"
	"overlayd/overlay"
	"overlayd/overlay/login"
)

// browser is Debian's chromium without a window, driven by its own protocol.
type browser struct {
	t  *testing.T
	ws *websocket.Conn
	n  int
}

// debugPort is where the browser is driven, on the machine's loopback.
const debugPort = "127.0.0.1:9222"

// newBrowser starts a browser on a machine.
func newBrowser(ctx context.Context, t *testing.T, l *lab.Lab, m *lab.Machine, args ...string) *browser {
	t.Helper()
	args = append([]string{
		"--headless=new", "--no-sandbox", "--disable-gpu", "--disable-dev-shm-usage", "--no-first-run", "--hide-scrollbars", "--disable-background-networking",
		"--remote-debugging-port=9222", "--remote-allow-origins=*", "--window-size=900,700", "--user-data-dir=" + filepath.Join(l.Dir, "browser"),
	}, append(args, "about:blank")...)
	must[*lab.Process](t)(m.Start("chromium", args...))
	b := &browser{t: t}
	err := lab.Until(ctx, func(ctx context.Context) error {
		out, err := m.Run(ctx, "curl", "-sS", "http://"+debugPort+"/json/list")
		if err != nil {
			return err
		}
		var pages []struct {
			Type string `json:"type"`
			URL  string `json:"webSocketDebuggerUrl"`
		}
		if err := json.Unmarshal([]byte(out), &pages); err != nil {
			return err
		}
		for _, p := range pages {
			if p.Type != "page" {
				continue
			}
			conn, err := m.DialContext(ctx, "tcp", debugPort)
			if err != nil {
				return err
			}
			config, err := websocket.NewConfig(p.URL, "http://"+debugPort)
			if err != nil {
				return err
			}
			_ = conn.SetDeadline(time.Now().Add(10 * time.Second)) // it may listen and not answer yet
			b.ws, err = websocket.NewClient(config, conn)
			return err
		}
		return errors.New("the browser has no page yet")
	})
	if err != nil {
		t.Fatal(err)
	}
	t.Cleanup(func() { b.ws.Close() })
	_ = b.ws.SetDeadline(time.Now().Add(time.Minute))
	return b
}

// call asks the browser for something.
func (b *browser) call(method string, params map[string]any) map[string]any {
	b.t.Helper()
	b.n++
	if err := websocket.JSON.Send(b.ws, map[string]any{"id": b.n, "method": method, "params": params}); err != nil {
		b.t.Fatal(err)
	}
	for {
		var answer struct {
			ID     int            `json:"id"`
			Result map[string]any `json:"result"`
			Error  any            `json:"error"`
		}
		if err := websocket.JSON.Receive(b.ws, &answer); err != nil {
			b.t.Fatalf("%s: %v", method, err)
		}
		if answer.ID != b.n {
			continue // an event
		}
		if answer.Error != nil {
			b.t.Fatalf("%s: %v", method, answer.Error)
		}
		return answer.Result
	}
}

// eval runs a script in the page, and returns what it says.
func (b *browser) eval(script string) string {
	b.t.Helper()
	r, _ := b.call("Runtime.evaluate", map[string]any{"expression": script, "returnByValue": true})["result"].(map[string]any)
	s, _ := r["value"].(string)
	return s
}

// shows waits until the page has some words on it.
func (b *browser) shows(ctx context.Context, words string) {
	b.t.Helper()
	err := lab.Until(ctx, func(context.Context) error {
		if text := b.eval("document.body ? document.body.innerText : ''"); !strings.Contains(text, words) {
			return fmt.Errorf("the page %s shows %q, want %q", b.eval("location.href"), text, words)
		}
		return nil
	})
	if err != nil {
		b.t.Fatal(err)
	}
}

// keep writes what the page looks like into LAB_SCREENSHOTS, if that is set.
func (b *browser) keep(name string) {
	b.t.Helper()
	dir := os.Getenv("LAB_SCREENSHOTS")
	if dir == "" {
		return
	}
	data, _ := b.call("Page.captureScreenshot", nil)["data"].(string)
	png, err := base64.StdEncoding.DecodeString(data)
	if err == nil {
		err = os.WriteFile(filepath.Join(dir, name+".png"), png, 0o644)
	}
	if err != nil {
		b.t.Error(err)
	}
}

// Bob has a browser and nothing else. He logs in to a published page and reads it;
// when the gateway is away the page says so, and when he is revoked he has to log in.
// LAB_LONG=1 runs it: chromium is large.
func TestBrowser(t *testing.T) {
	if !labtest.Long() {
		t.Skip("SKIPPED: LAB_LONG=1 runs it, and it needs chromium")
	}
	ctx, s := newSite(t, lab.Options{})
	serveLAN(t, s.Host)
	run := func(args ...string) string { return must[string](t)(s.VPS.Overlayd(ctx, args...)) }
	run("expose", "nas:80", "--on", ":8443", "--proto", "http", "--tls", "self", "--login")
	password := run("users", "set-password", "bob")
	seed := must[login.Seed](t)(login.ParseSeed(must[[]byte](t)(base32.StdEncoding.DecodeString(strings.Split(run("users", "totp", "bob"), "\n")[1]))))
	b := newBrowser(ctx, t, s.Lab, s.Laptop, "--ignore-certificate-errors")
	visit := func(url string) { b.call("Page.navigate", map[string]any{"url": url}) }
	fill := func(password, code string) {
		b.eval(fmt.Sprintf(`for (const [n, v] of Object.entries({name: "bob", password: %q, code: %q})) document.querySelector("input[name="+n+"]").value = v; document.querySelector("form").requestSubmit(); ""`, password, code))
	}
	visit("https://" + lab.VPSAddr + ":8443/files")
	b.shows(ctx, "Log in")
	b.keep("login")
	fill("not the password", "000000")
	b.shows(ctx, "is wrong")
	b.keep("login-wrong")
	fill(password, seed.Code(time.Now()))
	b.shows(ctx, "Asked by bob")
	b.keep("page")
	if at := b.eval("location.href"); at != "https://"+lab.VPSAddr+":8443/files" {
		t.Errorf("after the login the browser is at %s", at)
	}
	s.gateway.Kill()
	visit("https://" + lab.VPSAddr + ":8443/files")
	b.shows(ctx, "Not reachable now")
	b.keep("away")
	b.call("Emulation.setEmulatedMedia", map[string]any{"features": []map[string]string{{"name": "prefers-color-scheme", "value": "dark"}}})
	b.keep("away-dark")
	// The gateway is gone and hears of it later, which the exit code says.
	if _, err := s.VPS.Overlayd(ctx, "revoke", "bob"); lab.ExitCode(err) != overlay.ExitDegraded {
		t.Errorf("revoke: %v", err)
	}
	visit("https://" + lab.VPSAddr + ":8443/files")
	b.shows(ctx, "Log in")
	b.keep("login-dark")
	b.call("Emulation.setDeviceMetricsOverride", map[string]any{"width": 360, "height": 740, "deviceScaleFactor": 2, "mobile": true})
	b.keep("login-phone")
}

// Alice's machine has no interface and no routes. Her browser is given the PAC file,
// and shows a page of the LAN by a name that only the LAN knows.
func TestBrowserPAC(t *testing.T) {
	if !labtest.Long() {
		t.Skip("SKIPPED: LAB_LONG=1 runs it, and it needs chromium")
	}
	ctx, w := newWorld(t, "userspace")
	w.overlayd(ctx, t, "proxy")
	b := newBrowser(ctx, t, w.Lab, w.Laptop, "--proxy-pac-url=http://127.0.0.1:1080/proxy.pac")
	b.call("Page.navigate", map[string]any{"url": "http://nas.lab/"})
	b.shows(ctx, page)
	b.keep("pac")
}
