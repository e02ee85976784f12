package coord

import (
	"errors"
	"fmt"
	"net/http"
	"net/http/httputil"
	"strings"

	"connectrpc.com/connect"

	"overlayd/overlay/coord/api"
)

// AdminProxy passes calls of the Admin service on to the coordinator, in the
// name of this machine. Whether they are done is for the coordinator to say.
func (c *Client) AdminProxy() (pattern string, h http.Handler) {
	refusals := connect.NewErrorWriter()
	proxy := &httputil.ReverseProxy{
		Transport: adminTransport{c},
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL.Scheme, r.Out.URL.Host, r.Out.Host = "https", c.o.Endpoint, c.o.Endpoint
			r.Out.Header.Del("Authorization")
		},
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			var p error
			if p, _ = errors.AsType[*Problem](err); p == (*Problem)(nil) {
				p = problem(KindUnreachable, "check that overlayd relay runs there, and that its TCP port is open",
					"the coordinator %s cannot be reached: %v", c.o.Endpoint, err)
			}
			if err := refusals.Write(w, r, wireError(p)); err != nil {
				c.o.Log.Debug("answer not sent", "err", err)
			}
		},
	}
	return "/" + api.AdminName + "/", proxy
}

// adminTransport makes each call over a connection of its own, with a token.
type adminTransport struct{ c *Client }

// RoundTrip implements http.RoundTripper.
func (t adminTransport) RoundTrip(r *http.Request) (*http.Response, error) {
	if !strings.HasPrefix(r.URL.Path, "/"+api.AdminName+"/") {
		return nil, fmt.Errorf("pass on %s: it is no call of the Admin service", r.URL.Path)
	}
	r = r.Clone(r.Context())
	if err := t.c.authorize(r.Header); err != nil {
		return nil, err
	}
	line := t.c.connect()
	line.transport.DisableKeepAlives = true
	return line.transport.RoundTrip(r)
}
