package portmap

import (
	"bufio"
	"bytes"
	"context"
	"encoding/xml"
	"errors"
	"fmt"
	"io"
	"math/rand/v2"
	"net"
	"net/http"
	"net/netip"
	"net/url"
	"time"

	"github.com/huin/goupnp"
	igd2 "github.com/huin/goupnp/dcps/internetgateway2"
	"github.com/huin/goupnp/soap"
	"github.com/huin/goupnp/ssdp"
)

const (
	// searchTime is how long a router may take to answer a search: it may wait
	// for as many whole seconds as are in it, so that not all answer at once.
	searchTime = 1900 * time.Millisecond
	// callTime bounds each HTTP request to the router.
	callTime = 2 * time.Second
	// mostBody is how much of an HTTP answer is read; descriptions have some 5 KiB.
	mostBody = 64 << 10
	// mostWAN bounds the connections of a router that are looked at.
	mostWAN = 4
	// portTries is how many external ports are tried where others have some.
	portTries = 4

	searchTarget = "urn:schemas-upnp-org:device:InternetGatewayDevice:1" // version 2 answers it too
	description  = "overlayd"                                            // of the mapping, in the router's list

	// The errors of WANIPConnection that are handled.
	faultNoEntry   = 714
	faultConflict  = 718 // the port is somebody else's
	faultPermanent = 725 // leases end only with the router
)

// wan is a router's connection to the internet, as goupnp's clients for IGD
// versions 1 and 2 have it.
type wan interface {
	GetServiceClient() *goupnp.ServiceClient
	GetExternalIPAddressCtx(ctx context.Context) (string, error)
	AddPortMappingCtx(ctx context.Context, remote string, external uint16, protocol string, internal uint16, client string, enabled bool, description string, lease uint32) error
	GetSpecificPortMappingEntryCtx(ctx context.Context, remote string, external uint16, protocol string) (internal uint16, client string, enabled bool, description string, lease uint32, err error)
	DeletePortMappingCtx(ctx context.Context, remote string, external uint16, protocol string) error
}

// igd is what was found out about the router of a target.
type igd struct {
	target Target // its port does not matter
	wan    wan
}

// upnp has a conversation by UPnP. The router's description is fetched once.
func (o *Options) upnp(ctx context.Context, t task, known *igd) (lease, error) {
	where := t.target
	where.Port = 0
	if known.wan == nil || known.target != where || t.kind == obtain && t.lease.protocol != UPnP {
		*known = igd{}
		w, err := o.findWAN(ctx, where)
		if err != nil {
			return lease{}, err
		}
		*known = igd{where, w}
	}
	l, err := converse(ctx, t, known.wan)
	if _, said := errors.AsType[refusal](err); err != nil && !said && !errors.Is(err, errGone) {
		*known = igd{} // it may have moved: routers choose another port when they start
	}
	return l, err
}

// converse does a task on a connection.
func converse(ctx context.Context, t task, w wan) (lease, error) {
	switch t.kind {
	case release:
		err := w.DeletePortMappingCtx(ctx, "", t.lease.external.Port(), "UDP")
		return lease{}, upnpError("delete the mapping", err)
	case check:
		internal, client, _, _, _, err := w.GetSpecificPortMappingEntryCtx(ctx, "", t.lease.external.Port(), "UDP")
		if faultCode(err) == faultNoEntry || err == nil && (internal != t.lease.internal || client != t.target.Local.String()) {
			return lease{}, errGone
		}
		return lease{}, upnpError("look at the mapping", err)
	}
	at, err := externalAddr(ctx, w)
	if err != nil {
		return lease{}, err
	}
	port, life, err := addMapping(ctx, t, w)
	if err != nil {
		return lease{}, err
	}
	return lease{protocol: UPnP, internal: t.target.Port, external: netip.AddrPortFrom(at, port), lifetime: life}, nil
}

func externalAddr(ctx context.Context, w wan) (netip.Addr, error) {
	text, err := w.GetExternalIPAddressCtx(ctx)
	if err != nil {
		return netip.Addr{}, upnpError("ask for the external address", err)
	}
	at, err := netip.ParseAddr(text)
	if err != nil || !at.Is4() || at.IsUnspecified() {
		return netip.Addr{}, refusal{UPnP, 0, "it has no external address"}
	}
	return at, nil
}

// addMapping asks for the external port that we had or, at first, our own, and
// then for others.
func addMapping(ctx context.Context, t task, w wan) (port uint16, life time.Duration, err error) {
	port, life = t.target.Port, lifetime
	if had := t.lease.external.Port(); had != 0 {
		port = had
	}
	for range portTries {
		err = w.AddPortMappingCtx(ctx, "", port, "UDP", t.target.Port, t.target.Local.String(), true, description, uint32(life/time.Second))
		switch faultCode(err) {
		case faultPermanent:
			life = 0
		case faultConflict:
			port = uint16(1024 + rand.IntN(1<<16-1024)) // below lie the ports of well-known services
		default:
			return port, life, upnpError("add the mapping", err)
		}
	}
	return 0, 0, upnpError("add the mapping", err)
}

// faultCode returns the number of an error that the router told, 0 for others.
func faultCode(err error) int {
	if f, ok := errors.AsType[*soap.SOAPFaultError](err); ok {
		return f.Detail.UPnPError.Errorcode
	}
	return 0
}

// upnpError tells refusals from failures.
func upnpError(act string, err error) error {
	if err == nil {
		return nil
	}
	if f, ok := errors.AsType[*soap.SOAPFaultError](err); ok {
		return refusal{UPnP, f.Detail.UPnPError.Errorcode, act + ": " + shorten(f.Detail.UPnPError.ErrorDescription)}
	}
	return fmt.Errorf("%s: %s: %w", UPnP, act, err)
}

// findWAN looks for the router and its connection to the internet.
func (o *Options) findWAN(ctx context.Context, t Target) (wan, error) {
	at, err := o.search(ctx, t)
	if err != nil {
		return nil, err
	}
	client := o.httpClient(t)
	root, err := describe(ctx, client, at)
	if err != nil {
		return nil, fmt.Errorf("%s: read the router's description: %w", UPnP, err)
	}
	return pickWAN(ctx, connections(root, t.Gateway), client)
}

// pickWAN chooses the connection that has an address.
func pickWAN(ctx context.Context, all []wan, client *http.Client) (wan, error) {
	err := error(refusal{UPnP, 0, "its description names no connection to the internet"})
	for _, w := range all {
		w.GetServiceClient().SOAPClient.HTTPClient = *client
		if _, err = externalAddr(ctx, w); err == nil {
			return w, nil
		}
	}
	return nil, err
}

// connections lists a router's connections that it controls itself.
func connections(root *goupnp.RootDevice, gateway netip.Addr) []wan {
	var all []wan
	add := func(w wan) {
		if u := w.GetServiceClient().Service.ControlURL; u.Ok && ofGateway(&u.URL, gateway) && len(all) < mostWAN {
			all = append(all, w)
		}
	}
	// Each constructor's error says that there is none of its kind.
	v2, _ := igd2.NewWANIPConnection2ClientsFromRootDevice(root, nil)
	for _, w := range v2 {
		add(w)
	}
	v1, _ := igd2.NewWANIPConnection1ClientsFromRootDevice(root, nil)
	for _, w := range v1 {
		add(w)
	}
	ppp, _ := igd2.NewWANPPPConnection1ClientsFromRootDevice(root, nil)
	for _, w := range ppp {
		add(w)
	}
	return all
}

// ofGateway reports whether a URL is plain HTTP at the gateway's own address.
func ofGateway(u *url.URL, gateway netip.Addr) bool {
	host, err := netip.ParseAddr(u.Hostname())
	return err == nil && u.Scheme == "http" && u.User == nil && host == gateway
}

// describe fetches the router's description.
func describe(ctx context.Context, client *http.Client, at *url.URL) (*goupnp.RootDevice, error) {
	req, err := http.NewRequestWithContext(ctx, http.MethodGet, at.String(), nil)
	if err != nil {
		return nil, err
	}
	res, err := client.Do(req)
	if err != nil {
		return nil, err
	}
	defer res.Body.Close()
	if res.StatusCode != http.StatusOK {
		return nil, fmt.Errorf("http status %d", res.StatusCode)
	}
	b, err := io.ReadAll(res.Body)
	if err != nil {
		return nil, err
	}
	return parseDescription(b, at)
}

// parseDescription reads a device description that was found at a URL.
func parseDescription(b []byte, at *url.URL) (*goupnp.RootDevice, error) {
	root := new(goupnp.RootDevice)
	d := xml.NewDecoder(bytes.NewReader(b))
	d.DefaultSpace = goupnp.DeviceXMLNamespace
	if err := d.Decode(root); err != nil {
		return nil, err
	}
	base := at
	if root.URLBaseStr != "" {
		u, err := url.Parse(root.URLBaseStr)
		if err != nil {
			return nil, err
		}
		base = u
	}
	root.SetURLBase(base)
	return root, nil
}

// httpClient reaches the gateway and nobody else.
func (o *Options) httpClient(t Target) *http.Client {
	dialer := net.Dialer{LocalAddr: net.TCPAddrFromAddrPort(netip.AddrPortFrom(t.Local, 0)), Control: o.Control}
	transport := &http.Transport{
		DisableKeepAlives:      true, // there is a minute between two requests
		DisableCompression:     true,
		MaxResponseHeaderBytes: 16 << 10,
		DialContext: func(ctx context.Context, network, addr string) (net.Conn, error) {
			if to, err := netip.ParseAddrPort(addr); err != nil || to.Addr() != t.Gateway {
				return nil, fmt.Errorf("%s is not the router %s", addr, t.Gateway)
			}
			return dialer.DialContext(ctx, "tcp4", addr)
		},
	}
	return &http.Client{
		Transport:     shortBodies{transport},
		Timeout:       callTime,
		CheckRedirect: func(*http.Request, []*http.Request) error { return http.ErrUseLastResponse },
	}
}

// shortBodies cuts off what is longer than any honest answer.
type shortBodies struct{ http.RoundTripper }

func (s shortBodies) RoundTrip(req *http.Request) (*http.Response, error) {
	res, err := s.RoundTripper.RoundTrip(req)
	if err == nil {
		res.Body = struct {
			io.Reader
			io.Closer
		}{io.LimitReader(res.Body, mostBody), res.Body}
	}
	return res, err
}

// search asks who on the link is a router, and returns where the gateway's
// description is.
func (o *Options) search(ctx context.Context, t Target) (*url.URL, error) {
	ctx, cancel := context.WithTimeout(ctx, searchTime)
	defer cancel()
	found, err := ssdp.RawSearch(ctx, searcher{o, t}, searchTarget, 2) // of two datagrams rarely both get lost
	if err != nil {
		return nil, fmt.Errorf("%s: search the router: %w", UPnP, err)
	}
	for _, res := range found {
		if at, err := res.Location(); err == nil && ofGateway(at, t.Gateway) {
			return at, nil
		}
	}
	return nil, fmt.Errorf("%w at %s", errSilent, t.Gateway)
}

// searcher sends goupnp's searches by sockets of ours, and ends them with the
// first answer of the gateway's.
type searcher struct {
	o *Options
	t Target
}

func (s searcher) DoWithContext(req *http.Request, sends int) ([]*http.Response, error) {
	ctx := req.Context()
	var question bytes.Buffer
	fmt.Fprintf(&question, "%s %s HTTP/1.1\r\n", req.Method, req.URL.RequestURI())
	if err := req.Header.Write(&question); err != nil {
		return nil, err
	}
	question.WriteString("\r\n")

	lc := net.ListenConfig{Control: s.o.Control}
	pc, err := lc.ListenPacket(ctx, "udp4", netip.AddrPortFrom(s.t.Local, 0).String())
	if err != nil {
		return nil, err
	}
	defer pc.Close()
	stop := context.AfterFunc(ctx, func() { pc.SetDeadline(time.Unix(1, 0)) })
	defer stop()
	group, err := netip.ParseAddrPort(req.Host)
	if err != nil {
		return nil, err
	}
	conn := pc.(*net.UDPConn)
	for range sends {
		if _, err := conn.WriteToUDPAddrPort(question.Bytes(), group); err != nil {
			return nil, err
		}
	}
	return s.collect(conn, req), nil
}

// collect waits for an answer of the gateway that points to the gateway.
func (s searcher) collect(conn *net.UDPConn, req *http.Request) []*http.Response {
	buf := make([]byte, 2048) // answers have some 500 bytes
	for {
		n, from, err := conn.ReadFromUDPAddrPort(buf)
		if err != nil {
			return nil // the time is over
		}
		if from.Addr().Unmap() != s.t.Gateway {
			continue
		}
		if res, ok := parseFound(buf[:n], req, s.t.Gateway); ok {
			return []*http.Response{res}
		}
	}
}

// parseFound reads an answer to a search; ok when it is of use.
func parseFound(b []byte, req *http.Request, gateway netip.Addr) (res *http.Response, ok bool) {
	res, err := http.ReadResponse(bufio.NewReader(bytes.NewReader(b)), req)
	if err != nil || res.StatusCode != http.StatusOK || res.Header.Get("ST") != searchTarget {
		return nil, false
	}
	at, err := res.Location()
	return res, err == nil && ofGateway(at, gateway)
}
