package portmap

import (
	"encoding/hex"
	"errors"
	"net/http"
	"net/netip"
	"net/url"
	"strings"
	"testing"
	"time"
)

var (
	testGateway = netip.MustParseAddr("192.168.77.1")
	testLocal   = netip.MustParseAddr("192.168.77.2")
	testTarget  = Target{Gateway: testGateway, Local: testLocal, Link: "eth0", Port: 41642}
	testNonce   = nonce([]byte("nnnnnnnnnnnn"))
)

// The answers of Debian's miniupnpd 2.3.1 to the questions below.
const (
	miniPCP      = "028100000000025800000001000000000000000000000000" + "6e6e6e6e6e6e6e6e6e6e6e6e" + "11000000" + "a2aaa2aa" + "00000000000000000000ffff0b000002"
	miniAnnounce = "028000000000000000000001000000000000000000000000"
	miniAddress  = "00800000000000010b000002"
	miniMap      = "0081000000000001a2a9a2a900000258"
)

func unhex(t testing.TB, s string) []byte {
	t.Helper()
	b, err := hex.DecodeString(s)
	if err != nil {
		t.Fatal(err)
	}
	return b
}

func TestQuestions(t *testing.T) {
	client := "00000000000000000000ffffc0a84d02"
	for name, c := range map[string]struct {
		got  []byte
		want string
	}{
		"pcp announce": {appendPCP(nil, testLocal, nil), "0200000000000000" + client},
		"pcp map": {appendPCP(nil, testLocal, &pcpMap{testNonce, 10 * time.Minute, 41642, netip.AddrPortFrom(netip.Addr{}, 41642)}),
			"0201000000000258" + client + "6e6e6e6e6e6e6e6e6e6e6e6e" + "11000000" + "a2aaa2aa" + "00000000000000000000ffff00000000"},
		"pcp end": {appendPCP(nil, testLocal, &pcpMap{nonce: testNonce, internal: 1}),
			"0201000000000000" + client + "6e6e6e6e6e6e6e6e6e6e6e6e" + "11000000" + "00010000" + "00000000000000000000ffff00000000"},
		"nat-pmp map": {appendNATPMP(nil, 41641, 41641, 10*time.Minute), "00010000a2a9a2a900000258"},
		"nat-pmp end": {appendNATPMP(nil, 41641, 0, 0), "00010000a2a9000000000000"},
	} {
		if hex.EncodeToString(c.got) != c.want {
			t.Errorf("%s: %x, want %s", name, c.got, c.want)
		}
	}
}

func TestAnswers(t *testing.T) {
	for name, c := range map[string]struct {
		parse func([]byte) (answer, error)
		in    string
		want  answer
		bad   bool
	}{
		"pcp map":             {parsePCP, miniPCP, answer{op: opMap, epoch: 1, lifetime: 10 * time.Minute, internal: 41642, external: netip.MustParseAddrPort("11.0.0.2:41642"), nonce: testNonce}, false},
		"pcp announce":        {parsePCP, miniAnnounce, answer{epoch: 1}, false},
		"pcp refusal":         {parsePCP, "0281000200000000" + "0000000100000000" + "0000000000000000" + miniPCP[48:], answer{op: opMap, result: 2, epoch: 1, internal: 41642, external: netip.MustParseAddrPort("11.0.0.2:41642"), nonce: testNonce}, false},
		"pcp request":         {parsePCP, "0201" + miniPCP[4:], answer{}, true},
		"pcp of another kind": {parsePCP, "0181" + miniPCP[4:], answer{}, true},
		"pcp cut":             {parsePCP, miniPCP[:len(miniPCP)-8], answer{}, true},
		"pcp odd":             {parsePCP, miniPCP + "00", answer{}, true},
		"pcp tcp":             {parsePCP, strings.Replace(miniPCP, "11000000", "06000000", 1), answer{}, true},
		"pcp long":            {parsePCP, miniPCP + strings.Repeat("00000000", 300), answer{}, true},
		"nat-pmp address":     {parseNATPMP, miniAddress, answer{epoch: 1, external: netip.AddrPortFrom(netip.MustParseAddr("11.0.0.2"), 0)}, false},
		"nat-pmp map":         {parseNATPMP, miniMap, answer{op: opMap, epoch: 1, lifetime: 10 * time.Minute, internal: 41641, external: netip.AddrPortFrom(netip.Addr{}, 41641)}, false},
		"nat-pmp refusal":     {parseNATPMP, "0081000200000001", answer{op: opMap, result: 2, epoch: 1}, false},
		"nat-pmp cut":         {parseNATPMP, miniMap[:24], answer{}, true},
		"nat-pmp request":     {parseNATPMP, "0001" + miniMap[4:], answer{}, true},
		"empty":               {parseNATPMP, "", answer{}, true},
	} {
		t.Run(name, func(t *testing.T) {
			got, err := c.parse(unhex(t, c.in))
			if (err != nil) != c.bad || got != c.want {
				t.Errorf("%+v, %v; want %+v", got, err, c.want)
			}
		})
	}
}

func TestRefused(t *testing.T) {
	for _, by := range []Protocol{PCP, NATPMP} {
		if err := refused(by, 0); err != nil {
			t.Error(err)
		}
		if err := refused(by, resultVersion); !errors.Is(err, errSilent) {
			t.Errorf("%s: another version is %v", by, err)
		}
		for code := 2; code < 20; code++ {
			if _, ok := errors.AsType[refusal](refused(by, code)); !ok {
				t.Errorf("%s: result %d is no refusal", by, code)
			}
		}
	}
}

func FuzzAnswers(f *testing.F) {
	for _, s := range []string{miniPCP, miniAnnounce, miniAddress, miniMap, ""} {
		f.Add(unhex(f, s))
	}
	f.Fuzz(func(t *testing.T, b []byte) {
		if a, err := parsePCP(b); err != nil && a != (answer{}) || err == nil && len(b) < pcpHeader {
			t.Errorf("%+v, %v", a, err)
		}
		if a, err := parseNATPMP(b); err != nil && a != (answer{}) || err == nil && a.external.Addr().Is6() {
			t.Errorf("%+v, %v", a, err)
		}
	})
}

const testDescription = `<?xml version="1.0"?>
<root xmlns="urn:schemas-upnp-org:device-1-0"><specVersion><major>1</major><minor>1</minor></specVersion>%BASE%
<device><deviceType>urn:schemas-upnp-org:device:InternetGatewayDevice:1</deviceType><deviceList><device>
<deviceType>urn:schemas-upnp-org:device:WANDevice:1</deviceType><deviceList><device>
<deviceType>urn:schemas-upnp-org:device:WANConnectionDevice:1</deviceType><serviceList><service>
<serviceType>urn:schemas-upnp-org:service:WANIPConnection:1</serviceType><serviceId>urn:upnp-org:serviceId:WANIPConn1</serviceId>
<controlURL>%CONTROL%</controlURL><eventSubURL>/evt</eventSubURL><SCPDURL>/WANIPCn.xml</SCPDURL>
</service></serviceList></device></deviceList></device></deviceList></device></root>`

func descriptionOf(base, control string) []byte {
	if base != "" {
		base = "<URLBase>" + base + "</URLBase>"
	}
	return []byte(strings.NewReplacer("%BASE%", base, "%CONTROL%", control).Replace(testDescription))
}

// TestOfGateway: a description may point to the gateway only.
func TestOfGateway(t *testing.T) {
	at := &url.URL{Scheme: "http", Host: "192.168.77.1:5000", Path: "/root.xml"}
	for _, c := range []struct {
		base, control string
		want          int
	}{
		{"", "/ctl", 1},
		{"", "ctl", 1},
		{"", "http://192.168.77.1:81/ctl", 1},
		{"http://192.168.77.1:5001/", "/ctl", 1},
		{"", "http://192.168.77.3/ctl", 0},
		{"", "http://router.example/ctl", 0},
		{"", "https://192.168.77.1/ctl", 0},
		{"", "http://me:secret@192.168.77.1/ctl", 0},
		{"", "//203.0.113.1/ctl", 0},
		{"http://203.0.113.1/", "/ctl", 0},
		{"http://203.0.113.1/", "http://192.168.77.1/ctl", 1},
	} {
		root, err := parseDescription(descriptionOf(c.base, c.control), at)
		if err != nil {
			t.Fatal(err)
		}
		if got := len(connections(root, testGateway)); got != c.want {
			t.Errorf("base %q, control %q: %d connections, want %d", c.base, c.control, got, c.want)
		}
	}
}

func testFound(location string) []byte {
	return []byte("HTTP/1.1 200 OK\r\nCACHE-CONTROL: max-age=120\r\nST: " + searchTarget + "\r\nUSN: uuid:1::" + searchTarget + "\r\nEXT:\r\nLOCATION: " + location + "\r\n\r\n")
}

func TestParseFound(t *testing.T) {
	req := &http.Request{Method: "M-SEARCH", URL: &url.URL{Opaque: "*"}}
	for in, want := range map[string]bool{
		string(testFound("http://192.168.77.1:5000/root.xml")):                                      true,
		string(testFound("http://192.168.77.9:5000/root.xml")):                                      false,
		string(testFound("http://localhost/root.xml")):                                              false,
		string(testFound("ftp://192.168.77.1/root.xml")):                                            false,
		string(testFound("")):                                                                       false,
		strings.Replace(string(testFound("http://192.168.77.1/")), "200 OK", "500 No", 1):           false,
		strings.Replace(string(testFound("http://192.168.77.1/")), ":device:", ":toaster:", 1):      false,
		"NOTIFY * HTTP/1.1\r\nHOST: 239.255.255.250:1900\r\nLOCATION: http://192.168.77.1/\r\n\r\n": false,
		"": false,
	} {
		if _, ok := parseFound([]byte(in), req, testGateway); ok != want {
			t.Errorf("%q: %v, want %v", in, ok, want)
		}
	}
}

func FuzzUPnP(f *testing.F) {
	f.Add(testFound("http://192.168.77.1:5000/root.xml"), descriptionOf("", "/ctl"))
	f.Add(testFound("http://192.168.77.9/"), descriptionOf("http://203.0.113.1/", "//x"))
	req := &http.Request{Method: "M-SEARCH", URL: &url.URL{Opaque: "*"}}
	f.Fuzz(func(t *testing.T, found, description []byte) {
		at := &url.URL{Scheme: "http", Host: testGateway.String()}
		if res, ok := parseFound(found, req, testGateway); ok {
			u, err := res.Location()
			if err != nil || u.Hostname() != testGateway.String() {
				t.Fatalf("%v, %v", u, err)
			}
			at = u
		}
		root, err := parseDescription(description, at)
		if err != nil {
			return
		}
		for _, w := range connections(root, testGateway) {
			if u := w.GetServiceClient().SOAPClient.EndpointURL; u.Hostname() != testGateway.String() {
				t.Errorf("control at %v", u.String())
			}
		}
	})
}
