package overlay

import (
	"bufio"
	"context"
	"errors"
	"io"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"os"
	"slices"
	"strings"
	"testing"
	"testing/synctest"

	"overlayd/overlay/coord"
)

// fakeWorld is what is outside: names, and every connection that is made there.
type fakeWorld struct {
	names  map[string][]string
	errs   map[string]error
	asked  []string
	dialed []string
}

func (w *fakeWorld) outer() outer {
	return outer{
		lookup: func(ctx context.Context, host string) (addrs []netip.Addr, err error) {
			w.asked = append(w.asked, host)
			if host == "dead.example.org" {
				<-ctx.Done()
				return nil, &net.DNSError{Err: "no answer", Name: host, IsTimeout: true}
			}
			for _, a := range w.names[host] {
				addrs = append(addrs, netip.MustParseAddr(a))
			}
			return addrs, nil
		},
		dial: func(_ context.Context, address string) (net.Conn, error) {
			w.dialed = append(w.dialed, address)
			if err := w.errs[address]; err != nil {
				return nil, err
			}
			c, other := net.Pipe()
			other.Close()
			return c, nil
		},
	}
}

// TestOutside: what a program of this machine gets by the proxy: the network what is
// or ever was of the network, and the world the rest.
func TestOutside(t *testing.T) {
	const nowhere = ""
	names := map[string][]string{
		"example.org": {"93.184.216.34"}, "six.example.org": {"2001:db8::1", "93.184.216.34"}, "public.example.org": {"192.168.1.10"},
		"was.example.org": {"10.66.0.1"}, "rebound.example.org": {"127.0.0.1"}, "mixed.example.org": {"172.18.0.77", "93.184.216.34"},
		"new.lab": {"93.184.216.34"}, "nas": {"93.184.216.34"}, "wiki.example.org": {"93.184.216.34"},
	}
	for _, test := range []struct {
		address string
		inside  string // what is dialed there
		outside string // and there
		asked   string // the name that the world is asked for
		says    string // part of the error; "": there is a connection
	}{
		{"192.168.1.10:80", "tcp 192.168.1.10:80", nowhere, "", ""},
		{"lab-gw:80", "tcp 172.18.0.200:80", nowhere, "", ""},
		{"nas.lab:80", "tcp 192.168.1.10:80", nowhere, "", ""},
		{"wiki.example.org:443", "tcp 192.168.1.11:443", nowhere, "", ""}, // the LAN's before the world's
		{"example.org:443", nowhere, "93.184.216.34:443", "example.org", ""},
		{"EXAMPLE.org.:443", nowhere, "93.184.216.34:443", "example.org", ""},
		{"93.184.216.34:22", nowhere, "93.184.216.34:22", "", ""},
		{"[2001:db8::1]:443", nowhere, "[2001:db8::1]:443", "", ""},
		{"six.example.org:443", nowhere, "[2001:db8::1]:443", "six.example.org", ""},
		{"192.168.3.9:80", nowhere, "192.168.3.9:80", "", ""}, // nobody's but this machine's own
		{"public.example.org:80", "tcp 192.168.1.10:80", nowhere, "public.example.org", ""},
		{"192.168.7.9:80", "tcp 192.168.7.9:80", nowhere, "", ""}, // of a gateway that is away
		{"10.9.0.7:80", nowhere, nowhere, "", "is itself on"},     // offered, and not used
		{"10.77.0.7:80", nowhere, nowhere, "", "no node carries"}, // offered, and not approved
		{"172.18.0.77:80", nowhere, nowhere, "", "172.18.0.0/24 is of this network"},
		{"10.66.0.1:80", nowhere, nowhere, "", "10.66.0.0/16 is of this network, or was"},
		{"was.example.org:80", nowhere, nowhere, "was.example.org", "10.66.0.0/16"},
		{"mixed.example.org:80", nowhere, "93.184.216.34:80", "mixed.example.org", ""},
		{"rebound.example.org:80", nowhere, nowhere, "rebound.example.org", "this machine"},
		{"127.0.0.1:22", nowhere, nowhere, "", "this machine"},
		{"[::ffff:127.0.0.1]:22", nowhere, nowhere, "", "this machine"},
		{"[::1]:22", nowhere, nowhere, "", "this machine"},
		{"0.0.0.0:22", nowhere, nowhere, "", "this machine"},
		{"169.254.169.254:80", nowhere, nowhere, "", "this machine"},
		{"224.0.0.1:80", nowhere, nowhere, "", "no single host"},
		{"new.lab:80", nowhere, nowhere, "", "names of lab are the LAN's"},
		{"nas:80", nowhere, nowhere, "", "knows that name"},
		{"gone.example.org:80", nowhere, nowhere, "gone.example.org", "neither the network nor the resolver"},
		{"dead.example.org:80", nowhere, nowhere, "dead.example.org", "the resolver of this machine does not answer"},
		{"down.example.org:80", nowhere, nowhere, "", "Lab-GW did not answer"},
	} {
		t.Run(test.address, func(t *testing.T) {
			synctest.Test(t, func(t *testing.T) {
				lan := map[string][]string{"nas.lab": {"192.168.1.10"}, "wiki.example.org": {"192.168.1.11"}, "_domains.overlayd.invalid": {"lab"}}
				s := &lanSockets{lans: map[string]map[string][]string{nearGW: lan}}
				if strings.HasPrefix(test.address, "down.") {
					delete(s.lans, nearGW)
				}
				n := outsideNode(t, s)
				w := &fakeWorld{names: names}
				n.outer = w.outer()
				c, err := n.dialLocal(t.Context(), "tcp", test.address)
				if err == nil {
					c.Close()
				}
				if (err == nil) != (test.says == "") || err != nil && !strings.Contains(err.Error(), test.says) {
					t.Errorf("%v, want %q", err, test.says)
				}
				if in, out, asked := strings.Join(s.dialed, " "), strings.Join(w.dialed, " "), strings.Join(w.asked, " "); in != test.inside || out != test.outside || asked != test.asked {
					t.Errorf("dialed inside %q, want %q; outside %q, want %q; asked for %q, want %q", in, test.inside, out, test.outside, asked, test.asked)
				}
				w.dialed, w.asked = nil, nil
				if c, err := n.dialLocal(t.Context(), "udp", test.address); err == nil {
					c.Close()
				}
				if len(w.dialed) > 0 {
					t.Errorf("datagrams go to %q", w.dialed)
				}
				w.asked = nil
				if c, err := n.DialContext(t.Context(), "tcp", test.address); err == nil {
					c.Close()
				}
				if len(w.dialed)+len(w.asked) > 0 {
					t.Errorf("who may not go outside goes to %q, and asks for %q", w.dialed, w.asked)
				}
			})
		})
	}
}

// TestClosedAtHome: a network that is closed is refused by the proxy, too, but not
// where this machine is on it itself.
func TestClosedAtHome(t *testing.T) {
	n := dialingNode(t, &lanSockets{})
	w := &fakeWorld{}
	n.outer = w.outer()
	m := *n.look().m
	m.Closed = []netip.Prefix{prefix("10.55.0.0/16"), prefix("192.168.5.0/24")}
	if err := n.inside.learn(n.dir, &m); err != nil {
		t.Fatal(err)
	}
	n.update(func(v *view) { v.m, v.plan = &m, testPlan(&m, testHost("192.168.5.7/25")) })
	for address, reason := range map[string]DialReason{"10.55.0.1:80": ReasonPolicy, "192.168.5.1:80": ""} {
		c, err := n.dialLocal(t.Context(), "tcp", address)
		if d, ok := errors.AsType[*DialError](err); ok != (reason != "") || ok && d.Reason != reason {
			t.Errorf("%s: %v, want %q", address, err, reason)
		}
		if err == nil {
			c.Close()
		}
	}
	if !slices.Equal(w.dialed, []string{"192.168.5.1:80"}) {
		t.Errorf("dialed outside: %q", w.dialed)
	}
	if _, err := n.DialContext(t.Context(), "tcp", "192.168.5.1:80"); err == nil || !strings.Contains(err.Error(), "192.168.5.0/24 is not used: eth0 is itself on") {
		t.Errorf("who may not go outside: %v", err)
	}
}

// outsideNode is a dialingNode that once heard of 10.66.0.0/16, and of a prefix that
// waits for its approval.
func outsideNode(t *testing.T, s sockets) *Node {
	t.Helper()
	n := dialingNode(t, s)
	for _, r := range []coord.Route{approved("10.66.0.0/16"), pending("10.77.0.0/16")} {
		if err := n.inside.learn(n.dir, testMap(testNode("laptop", 11, coord.RoleMember, true), testNode("old-gw", 202, coord.RoleGateway, true, r))); err != nil {
			t.Fatal(err)
		}
	}
	if err := n.inside.learn(n.dir, n.look().m); err != nil {
		t.Fatal(err)
	}
	return n
}

// TestGatewayGone: a name and a network that were a LAN's stay inside when the
// gateway is away, after a restart, and when the file cannot be read.
func TestGatewayGone(t *testing.T) {
	s := &lanSockets{lans: map[string]map[string][]string{nearGW: {"wiki.example.org": {"192.168.1.11"}, "_domains.overlayd.invalid": {"lab"}}}}
	n := outsideNode(t, s)
	w := &fakeWorld{names: map[string][]string{"wiki.example.org": {"93.184.216.34"}, "x.lab": {"93.184.216.34"}}}
	n.outer = w.outer()
	if c, err := n.dialLocal(t.Context(), "tcp", "wiki.example.org:80"); err != nil {
		t.Fatal(err)
	} else {
		c.Close()
	}
	n.lanDomains(t.Context(), n.look())
	alone := testMap(testNode("laptop", 11, coord.RoleMember, true))
	n.update(func(v *view) { v.m, v.plan = alone, testPlan(alone, testHost("10.8.0.5/16")) })
	for key, a := range n.names.known {
		a.until = a.until.Add(-keepName)
		n.names.known[key] = a
	}
	refused := func(n *Node, address string) {
		t.Helper()
		if c, err := n.dialLocal(t.Context(), "tcp", address); err == nil {
			c.Close()
			t.Errorf("%s is sought outside", address)
		}
	}
	refused(n, "wiki.example.org:80")
	again := dialingNode(t, s)
	again.dir, again.outer = n.dir, w.outer()
	again.update(func(v *view) { v.m, v.plan = alone, testPlan(alone, testHost("10.8.0.5/16")) })
	if err := again.inside.load(again.dir); err != nil {
		t.Fatal(err)
	}
	refused(again, "192.168.1.10:80")
	refused(again, "10.66.0.1:80")
	refused(again, "x.lab:80")
	if len(w.dialed) > 0 {
		t.Errorf("dialed %q", w.dialed)
	}
	if err := os.WriteFile(n.dir.file(insideFile), []byte("{"), 0o600); err != nil {
		t.Fatal(err)
	}
	if err := again.inside.load(again.dir); err == nil {
		t.Error("a damaged file is read")
	}
	refused(again, "93.184.216.34:80")
	if err := again.inside.learn(again.dir, alone); err != nil {
		t.Error(err)
	}
	if b, err := os.ReadFile(n.dir.file(insideFile)); err != nil || string(b) != "{" {
		t.Errorf("the damaged file was not left as it was: %q, %v", b, err)
	}
}

// TestInsideBounds: of too many networks the oldest are forgotten.
func TestInsideBounds(t *testing.T) {
	all := withNew([]int{1, 2, 3}, []int{2, 4, 5}, 4)
	if !slices.Equal(all, []int{2, 3, 4, 5}) {
		t.Errorf("got %v", all)
	}
}

// TestOutsideByProxy: where this machine's network has an HTTP proxy, the way
// outside is by that, with the names that it alone may know; but never by ourselves.
func TestOutsideByProxy(t *testing.T) {
	n := outsideNode(t, &lanSockets{lans: map[string]map[string][]string{nearGW: {}}})
	w := &fakeWorld{}
	n.outer = w.outer()
	asked := make(chan string, 1)
	n.outer.dial = func(_ context.Context, address string) (net.Conn, error) {
		w.dialed = append(w.dialed, address)
		near, far := net.Pipe()
		go func() {
			defer far.Close()
			r, err := http.ReadRequest(bufio.NewReader(far))
			if err != nil {
				return
			}
			asked <- r.Method + " " + r.Host + " " + r.Header.Get("Proxy-Authorization")
			if r.Host == "denied.example.org:443" {
				io.WriteString(far, "HTTP/1.1 403 Forbidden\r\nContent-Length: 0\r\n\r\n")
				return
			}
			io.WriteString(far, "HTTP/1.1 200 OK\r\n\r\nSSH-2.0-first")
		}()
		return near, nil
	}
	n.proxy = func(*http.Request) (*url.URL, error) {
		return url.Parse("http://me:secret@proxy.example.org:3128")
	}
	c, err := n.dialLocal(t.Context(), "tcp", "nobody-here-knows.example.org:22")
	if err != nil {
		t.Fatal(err)
	}
	if b, err := io.ReadAll(c); string(b) != "SSH-2.0-first" || err != nil {
		t.Errorf("got %q, %v", b, err)
	}
	if got := <-asked; got != "CONNECT nobody-here-knows.example.org:22 Basic bWU6c2VjcmV0" || w.dialed[0] != "proxy.example.org:3128" {
		t.Errorf("asked %s for %s", w.dialed, got)
	}
	_, err = n.dialLocal(t.Context(), "tcp", "denied.example.org:443")
	if d, ok := errors.AsType[*DialError](err); !ok || !strings.Contains(err.Error(), "403") || strings.Contains(err.Error(), "secret") || d.Reason != ReasonFailed {
		t.Errorf("got %v", err)
	}
	n.ways.at.Store(&[]netip.AddrPort{netip.MustParseAddrPort("127.0.0.1:1080")}[0])
	if !n.ways.isOwn("127.0.0.1:1080") || n.ways.isOwn("127.0.0.1:1081") || n.ways.isOwn("proxy.example.org:1080") {
		t.Error("our own proxy is not told from others")
	}
}
