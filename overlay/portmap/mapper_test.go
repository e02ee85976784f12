package portmap

import (
	"context"
	"encoding/binary"
	"errors"
	"fmt"
	"io"
	"net"
	"net/http"
	"net/http/httptest"
	"net/netip"
	"net/url"
	"slices"
	"strings"
	"sync"
	"testing"
	"time"

	"go.uber.org/goleak"
)

var loopback = netip.MustParseAddr("127.0.0.1")

// fakeRouter answers datagrams on loopback as it likes.
type fakeRouter struct {
	conn   *net.UDPConn
	answer func([]byte) [][]byte
	done   chan struct{}
	asked  chan struct{} // closed with the first question

	mu   sync.Mutex // guards seen
	seen [][]byte
}

func startRouter(t *testing.T, answer func([]byte) [][]byte) *fakeRouter {
	conn, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(netip.AddrPortFrom(loopback, 0)))
	if err != nil {
		t.Fatal(err)
	}
	r := &fakeRouter{conn: conn, answer: answer, done: make(chan struct{}), asked: make(chan struct{})}
	go r.serve()
	t.Cleanup(func() {
		conn.Close()
		<-r.done
	})
	return r
}

func (r *fakeRouter) serve() {
	defer close(r.done)
	b := make([]byte, 2000)
	for {
		n, from, err := r.conn.ReadFromUDPAddrPort(b)
		if err != nil {
			return
		}
		q := slices.Clone(b[:n])
		r.mu.Lock()
		if r.seen == nil {
			close(r.asked)
		}
		r.seen = append(r.seen, q)
		r.mu.Unlock()
		for _, a := range r.answer(q) {
			r.conn.WriteToUDPAddrPort(a, from)
		}
	}
}

func (r *fakeRouter) port() uint16 { return uint16(r.conn.LocalAddr().(*net.UDPAddr).Port) }

func (r *fakeRouter) last() []byte {
	r.mu.Lock()
	defer r.mu.Unlock()
	if len(r.seen) == 0 {
		return nil
	}
	return r.seen[len(r.seen)-1]
}

// speaksPCP grants what is asked for, on 11.0.0.2.
func speaksPCP(q []byte) [][]byte {
	a := slices.Clone(q)
	a[1] += opAnswer
	a[3] = 0
	binary.BigEndian.PutUint32(a[8:], 1000)
	for i := 12; i < 24; i++ {
		a[i] = 0
	}
	if len(a) >= pcpMapSize {
		ip := netip.MustParseAddr("11.0.0.2").As16()
		copy(a[44:], ip[:])
	}
	return [][]byte{a}
}

// speaksNATPMP does the same, and knows no PCP.
func speaksNATPMP(q []byte) [][]byte {
	switch {
	case q[0] != versionNATPMP:
		return [][]byte{{0, q[1] + opAnswer, 0, resultVersion, 0, 0, 3, 232}}
	case q[1] == opAddress:
		return [][]byte{{0, opAnswer, 0, 0, 0, 0, 3, 232, 11, 0, 0, 2}}
	}
	a := append([]byte{0, opAnswer + opMap, 0, 0, 0, 0, 3, 232}, q[4:]...)
	return [][]byte{a}
}

func garbage(q []byte) [][]byte {
	wrong := speaksPCP(q)[0]
	if len(wrong) > 30 {
		wrong[30]++ // another nonce
	}
	return [][]byte{{}, {0}, {2, 0x81}, make([]byte, 1500), q, wrong}
}

// started runs a Mapper against a router on loopback.
func started(t *testing.T, r *fakeRouter, order ...Protocol) (m *Mapper, offered chan netip.AddrPort, stop func() time.Duration) {
	offered = make(chan netip.AddrPort, 100)
	m = New(Options{Changed: func(a netip.AddrPort) { offered <- a }, port: r.port()})
	m.keeper.order = order
	ctx, cancel := context.WithCancel(t.Context())
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.Run(ctx)
	}()
	m.SetTarget(Target{Gateway: loopback, Local: loopback, Link: "lo", Port: 4000})
	stop = func() time.Duration {
		at := time.Now()
		cancel()
		<-done
		return time.Since(at)
	}
	return m, offered, stop
}

func TestMapper(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	for _, c := range []struct {
		name   string
		answer func([]byte) [][]byte
		want   Protocol
	}{{"pcp", speaksPCP, PCP}, {"nat-pmp", speaksNATPMP, NATPMP}} {
		t.Run(c.name, func(t *testing.T) {
			r := startRouter(t, c.answer)
			m, offered, stop := started(t, r, PCP, NATPMP)
			if a := <-offered; a.String() != "11.0.0.2:4000" || m.Status().Protocol != c.want {
				t.Errorf("%v is offered, %+v", a, m.Status())
			}
			m.SetPort(4001)
			if a, b := <-offered, <-offered; a.IsValid() || b.String() != "11.0.0.2:4001" {
				t.Errorf("after another port, %v and %v are offered", a, b)
			}
			if took := stop(); took > leaveTime {
				t.Errorf("it stopped after %v", took)
			}
			if a := <-offered; a.IsValid() {
				t.Errorf("at the end, %v is offered", a)
			}
			last := r.last() // the end of the mapping: a lifetime of 0
			if life := map[Protocol]int{PCP: 4, NATPMP: 8}[c.want]; binary.BigEndian.Uint32(last[life:]) != 0 {
				t.Errorf("the last question was %x", last)
			}
		})
	}
}

// TestSilentRouter: one that says nothing, or nothing of use, stops nobody from
// stopping.
func TestSilentRouter(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	for name, answer := range map[string]func([]byte) [][]byte{
		"silent":  func([]byte) [][]byte { return nil },
		"garbage": garbage,
	} {
		t.Run(name, func(t *testing.T) {
			r := startRouter(t, answer)
			m, offered, stop := started(t, r, PCP)
			<-r.asked
			if st := m.Status(); st.Reason != ReasonAsking {
				t.Errorf("%+v", st)
			}
			if took := stop(); took > leaveTime+500*time.Millisecond {
				t.Errorf("it stopped after %v", took)
			}
			if len(offered) > 0 {
				t.Errorf("%v was offered", <-offered)
			}
			if last := r.last(); binary.BigEndian.Uint32(last[4:]) != 0 {
				t.Errorf("what was asked for is not released: %x", last)
			}
		})
	}
}

// fakeIGD is a router's UPnP service.
type fakeIGD struct {
	mu      sync.Mutex
	address string
	faults  []int // of the next AddPortMapping requests
	added   []string
	mapping string // of the last, "port client internal lease"
}

func tag(body, name string) string {
	_, rest, _ := strings.Cut(body, "<"+name+">")
	text, _, _ := strings.Cut(rest, "</"+name+">")
	return text
}

func (f *fakeIGD) ServeHTTP(w http.ResponseWriter, req *http.Request) {
	f.mu.Lock()
	defer f.mu.Unlock()
	b, _ := io.ReadAll(req.Body)
	body := string(b)
	_, action, _ := strings.Cut(strings.Trim(req.Header.Get("SOAPAction"), `"`), "#")
	reply := func(inner string) {
		fmt.Fprintf(w, `<?xml version="1.0"?><s:Envelope xmlns:s="http://schemas.xmlsoap.org/soap/envelope/"><s:Body>%s</s:Body></s:Envelope>`, inner)
	}
	fault := func(code int) {
		w.WriteHeader(http.StatusInternalServerError)
		reply(fmt.Sprintf(`<s:Fault><faultcode>s:Client</faultcode><faultstring>UPnPError</faultstring><detail><UPnPError xmlns="urn:schemas-upnp-org:control-1-0"><errorCode>%d</errorCode><errorDescription>No</errorDescription></UPnPError></detail></s:Fault>`, code))
	}
	done := func(inner string) {
		reply(fmt.Sprintf(`<u:%sResponse xmlns:u="urn:schemas-upnp-org:service:WANIPConnection:1">%s</u:%sResponse>`, action, inner, action))
	}
	switch action {
	case "GetExternalIPAddress":
		done("<NewExternalIPAddress>" + f.address + "</NewExternalIPAddress>")
	case "AddPortMapping":
		f.added = append(f.added, tag(body, "NewExternalPort")+"/"+tag(body, "NewLeaseDuration"))
		if len(f.faults) > 0 {
			code := f.faults[0]
			f.faults = f.faults[1:]
			fault(code)
			return
		}
		f.mapping = tag(body, "NewExternalPort") + " " + tag(body, "NewInternalClient") + " " + tag(body, "NewInternalPort")
		done("")
	case "GetSpecificPortMappingEntry":
		p := strings.Fields(f.mapping)
		if len(p) != 3 || p[0] != tag(body, "NewExternalPort") {
			fault(faultNoEntry)
			return
		}
		done("<NewInternalPort>" + p[2] + "</NewInternalPort><NewInternalClient>" + p[1] + "</NewInternalClient><NewEnabled>1</NewEnabled><NewPortMappingDescription>x</NewPortMappingDescription><NewLeaseDuration>9</NewLeaseDuration>")
	case "DeletePortMapping":
		f.mapping = ""
		done("")
	default:
		http.Redirect(w, req, "http://203.0.113.1/", http.StatusFound)
	}
}

// TestUPnPConversation: obtain, check and release with a router's SOAP service.
func TestUPnPConversation(t *testing.T) {
	for _, c := range []struct {
		name    string
		address string
		faults  []int
		added   int    // how many times it is asked for
		life    string // the last time
		want    string // of the error; "": none
	}{
		{"plain", "11.0.0.2", nil, 1, "1200", ""},
		{"no leases", "11.0.0.2", []int{faultPermanent}, 2, "0", ""},
		{"taken ports", "11.0.0.2", []int{faultConflict, faultConflict}, 3, "1200", ""},
		{"all ports taken", "11.0.0.2", []int{faultConflict, faultConflict, faultConflict, faultConflict, faultConflict}, 4, "1200", "(718)"},
		{"not allowed", "11.0.0.2", []int{606}, 1, "1200", "(606)"},
		{"offline", "0.0.0.0", nil, 0, "", "no external address"},
		{"empty", "", nil, 0, "", "no external address"},
	} {
		t.Run(c.name, func(t *testing.T) {
			igd := &fakeIGD{address: c.address, faults: c.faults}
			srv := httptest.NewServer(igd)
			defer srv.Close()
			at, err := url.Parse(srv.URL)
			if err != nil {
				t.Fatal(err)
			}
			root, err := parseDescription(descriptionOf("", "/ctl"), at)
			if err != nil {
				t.Fatal(err)
			}
			target := Target{Gateway: loopback, Local: loopback, Link: "lo", Port: 4000}
			all := connections(root, loopback)
			w, err := pickWAN(t.Context(), all, new(Options).httpClient(target))
			var l lease
			if err == nil {
				l, err = converse(t.Context(), task{kind: obtain, protocol: UPnP, target: target}, w)
			}
			if c.want == "" && err != nil || c.want != "" && (err == nil || !strings.Contains(err.Error(), c.want)) {
				t.Fatalf("%v, want %q", err, c.want)
			}
			if len(igd.added) != c.added || c.added > 0 && !strings.HasSuffix(igd.added[c.added-1], "/"+c.life) {
				t.Errorf("asked for %q", igd.added)
			}
			if err != nil {
				return
			}
			again := task{kind: check, protocol: UPnP, target: target, lease: l}
			if _, err := converse(t.Context(), again, w); err != nil {
				t.Error(err)
			}
			igd.mapping = strings.Replace(igd.mapping, "127.0.0.1", "127.0.0.9", 1)
			if _, err := converse(t.Context(), again, w); !errors.Is(err, errGone) {
				t.Errorf("a mapping that is another's: %v", err)
			}
			again.kind = release
			if _, err := converse(t.Context(), again, w); err != nil || igd.mapping != "" {
				t.Errorf("%v, %q is left", err, igd.mapping)
			}
			again.kind = check
			if _, err := converse(t.Context(), again, w); !errors.Is(err, errGone) {
				t.Errorf("a mapping that is no more: %v", err)
			}
		})
	}
}

// TestHTTPClient: it reaches the gateway, follows nobody elsewhere, and stops
// reading some time.
func TestHTTPClient(t *testing.T) {
	srv := httptest.NewServer(http.HandlerFunc(func(w http.ResponseWriter, req *http.Request) {
		if req.URL.Path == "/long" {
			io.Copy(w, io.LimitReader(zeros{}, 10*mostBody))
			return
		}
		http.Redirect(w, req, "/long", http.StatusFound)
	}))
	defer srv.Close()
	target := Target{Gateway: loopback, Local: loopback}
	client := new(Options).httpClient(target)
	res, err := client.Get(srv.URL + "/long")
	if err != nil {
		t.Fatal(err)
	}
	b, err := io.ReadAll(res.Body)
	res.Body.Close()
	if err != nil || len(b) != mostBody {
		t.Errorf("%d bytes, %v", len(b), err)
	}
	if res, err = client.Get(srv.URL + "/"); err != nil || res.StatusCode != http.StatusFound {
		t.Errorf("%v, %v", res, err)
	} else {
		res.Body.Close()
	}
	elsewhere := strings.Replace(srv.URL, "127.0.0.1", "127.0.0.2", 1)
	if _, err := client.Get(elsewhere); err == nil || !strings.Contains(err.Error(), "is not the router") {
		t.Errorf("somebody else: %v", err)
	}
}

type zeros struct{}

func (zeros) Read(b []byte) (int, error) { return len(b), nil }
