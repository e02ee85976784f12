package proxy

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"net/http"
	"net/http/httputil"
	"time"
)

// httpStatuses are the answers that say why Dial made no connection.
var httpStatuses = map[Reason]int{
	Failed: http.StatusBadGateway, Forbidden: http.StatusForbidden, NoName: http.StatusBadGateway,
	Refused: http.StatusBadGateway, Unreachable: http.StatusBadGateway, TimedOut: http.StatusGatewayTimeout,
}

// serveHTTP serves a request of HTTP: one for the proxy, or one for the PAC file.
func (s *Server) serveHTTP(ctx context.Context, w http.ResponseWriter, r *http.Request) {
	forProxy := r.Method == http.MethodConnect || r.URL.IsAbs()
	if !forProxy {
		s.servePAC(w, r)
		return
	}
	if !s.loggedIn(r.Context(), r.Header.Get("Proxy-Authorization")) {
		w.Header().Set("Proxy-Authenticate", `Basic realm="overlayd"`)
		http.Error(w, "this proxy needs a name and a password", http.StatusProxyAuthRequired)
		return
	}
	switch {
	case r.Method == http.MethodConnect:
		s.counters.connect.Add(1)
		s.serveConnect(ctx, w, r)
	case r.URL.Scheme == "http" && r.URL.Host != "":
		s.counters.plain.Add(1)
		s.running.Add(1) // a connection that is upgraded is not the HTTP server's to wait for
		defer s.running.Done()
		s.forward.ServeHTTP(w, r)
	default:
		s.counters.garbage.Add(1)
		http.Error(w, "this proxy takes http:// requests, and CONNECT for everything else", http.StatusBadRequest)
	}
}

// loggedIn checks a login in the Basic form (RFC 7617), when one is needed.
func (s *Server) loggedIn(ctx context.Context, header string) bool {
	if s.o.Login == nil {
		return true
	}
	r := http.Request{Header: http.Header{"Authorization": {header}}}
	name, password, ok := r.BasicAuth()
	if ok && s.o.Login.matches(name, password) {
		return true
	}
	if ok {
		s.wrongPassword(ctx)
	}
	return false
}

// serveConnect connects to the host and carries both directions. The request's
// own context is of no use: it ends when the client has sent all that it will.
func (s *Server) serveConnect(ctx context.Context, w http.ResponseWriter, r *http.Request) {
	address := r.Host
	if _, _, err := net.SplitHostPort(address); err != nil {
		s.counters.garbage.Add(1)
		http.Error(w, "CONNECT needs HOST:PORT", http.StatusBadRequest)
		return
	}
	remote, reason, text := s.dial(ctx, "tcp", address)
	if remote == nil {
		http.Error(w, text, httpStatuses[reason])
		return
	}
	defer remote.Close()
	s.running.Add(1) // from here on the HTTP server does not wait for it
	defer s.running.Done()
	raw, buffered, err := http.NewResponseController(w).Hijack()
	if err != nil {
		http.Error(w, "the connection cannot be taken over", http.StatusInternalServerError)
		return
	}
	defer raw.Close()
	c, ok := raw.(*client)
	if !ok {
		return
	}
	c.SetDeadline(time.Time{})
	if _, err := fmt.Fprint(c.Conn, "HTTP/1.1 200 Connection established\r\n\r\n"); err != nil {
		return
	}
	s.join(ctx, c, remote, buffered.Reader, c.in)
}

// dialError is why a plain request got no connection, on its way through the
// transport.
type dialError struct {
	reason Reason
	text   string
}

// Error returns the sentence for the client.
func (e *dialError) Error() string { return e.text }

// plainProxy passes on requests for http:// addresses.
func (s *Server) plainProxy() http.Handler {
	s.idle = &http.Transport{
		DialContext: func(ctx context.Context, _, address string) (net.Conn, error) {
			c, reason, text := s.dial(ctx, "tcp", address)
			if c == nil {
				return nil, &dialError{reason, text}
			}
			return c, nil
		},
		DisableCompression:    true, // the client's headers are its own
		MaxIdleConns:          64,
		MaxIdleConnsPerHost:   8,
		IdleConnTimeout:       30 * time.Second,
		ExpectContinueTimeout: time.Second,
	}
	return &httputil.ReverseProxy{
		Transport: s.idle,
		Rewrite: func(r *httputil.ProxyRequest) {
			r.Out.URL, r.Out.Host = r.In.URL, r.In.URL.Host
			if _, ok := r.Out.Header["User-Agent"]; !ok {
				r.Out.Header.Set("User-Agent", "") // or the transport would add its own
			}
		},
		ErrorLog: slog.NewLogLogger(s.o.Log.Handler(), slog.LevelDebug),
		ErrorHandler: func(w http.ResponseWriter, r *http.Request, err error) {
			if d, ok := errors.AsType[*dialError](err); ok {
				http.Error(w, d.text, httpStatuses[d.reason])
				return
			}
			http.Error(w, fmt.Sprintf("the host %s did not answer as it should", r.URL.Host), http.StatusBadGateway)
		},
	}
}
