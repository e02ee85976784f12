package publish

import (
	"bytes"
	"context"
	"crypto/sha256"
	"crypto/tls"
	"crypto/x509"
	"encoding/hex"
	"errors"
	"fmt"
	"log/slog"
	"net/http"
	"path/filepath"
	"slices"
	"sync"
	"sync/atomic"
	"time"

	"golang.org/x/crypto/acme"
	"golang.org/x/crypto/acme/autocert"
)

// certificates are those by ACME.
type certificates struct {
	dir  string // set by newCertificates, then read-only
	log  *slog.Logger
	ctx  context.Context // ends with the server
	stop context.CancelFunc

	mu    sync.Mutex // guards what follows
	hosts map[string]*authority
}

// authority gets the certificates of one name. A manager that has one renews it for
// as long as the program runs, and nothing ends that: so one that is published no
// more rests, which means that it asks nobody, and it is there when the name is
// published again.
type authority struct {
	of      ACME // set by certificates.of, then read-only, like manager and http01
	manager *autocert.Manager
	http01  http.Handler // answers the authority on port 80
	rests   atomic.Bool
	failed  string // why the last attempt did; guarded by certificates.mu
}

func newCertificates(dir string, log *slog.Logger) *certificates {
	c := &certificates{dir: dir, log: log, hosts: map[string]*authority{}}
	c.ctx, c.stop = context.WithCancel(context.Background())
	return c
}

func (c *certificates) close() { c.stop() }

// acmeTimeout bounds one request to an authority.
const acmeTimeout = 30 * time.Second

// of returns the authority for a name, as the exposure wants it.
func (c *certificates) of(host string, a ACME) (*authority, error) {
	c.mu.Lock()
	au := c.hosts[host]
	c.mu.Unlock()
	if au != nil && au.of.Directory == a.Directory && bytes.Equal(au.of.CA, a.CA) {
		au.rests.Store(false)
		return au, nil // as when a port is tried again, and again
	}
	next := &authority{of: a}
	directory := a.Directory
	if directory == "" {
		directory = autocert.DefaultACMEDirectory
	}
	web := &http.Transport{Proxy: http.ProxyFromEnvironment, TLSHandshakeTimeout: acmeTimeout, IdleConnTimeout: acmeTimeout}
	if len(a.CA) > 0 {
		pool := x509.NewCertPool()
		if !pool.AppendCertsFromPEM(a.CA) {
			return nil, fmt.Errorf("there is no certificate in what is to check %s with", directory)
		}
		web.TLSClientConfig = &tls.Config{RootCAs: pool, MinVersion: tls.VersionTLS12}
	}
	sum := sha256.Sum256([]byte(directory)) // one authority's account is nothing to another
	m := &autocert.Manager{
		Prompt: autocert.AcceptTOS, HostPolicy: autocert.HostWhitelist(host),
		Cache: autocert.DirCache(filepath.Join(c.dir, hex.EncodeToString(sum[:8]))),
		Client: &acme.Client{
			DirectoryURL: directory, UserAgent: "overlayd",
			HTTPClient: &http.Client{Transport: until{c.ctx, &next.rests, web}, Timeout: acmeTimeout},
		},
	}
	next.manager, next.http01 = m, m.HTTPHandler(http.NotFoundHandler())
	c.mu.Lock()
	defer c.mu.Unlock()
	if au != nil {
		au.rests.Store(true)
	}
	c.hosts[host] = next
	return next, nil
}

// keep lets every authority rest whose name is published no more.
func (c *certificates) keep(published map[string]bool) {
	c.mu.Lock()
	defer c.mu.Unlock()
	for host, au := range c.hosts {
		if !published[host] {
			au.rests.Store(true)
		}
	}
}

// awake returns the authority of a name that is published, nil when there is none.
func (c *certificates) awake(host string) *authority {
	c.mu.Lock()
	defer c.mu.Unlock()
	if au := c.hosts[host]; au != nil && !au.rests.Load() {
		return au
	}
	return nil
}

// errRests is what an authority is told that asks for something.
var errRests = errors.New("nothing is published under this name any more")

// until is a transport whose requests end with a context, and while an authority
// rests.
type until struct {
	ctx   context.Context
	rests *atomic.Bool
	web   *http.Transport
}

// RoundTrip implements http.RoundTripper.
func (u until) RoundTrip(r *http.Request) (*http.Response, error) {
	err := u.ctx.Err()
	if err == nil && u.rests.Load() {
		err = errRests
	}
	if err != nil {
		u.web.CloseIdleConnections()
		return nil, err
	}
	return u.web.RoundTrip(r)
}

// certificate returns the certificate of a name, and asks the authority if need
// be: that takes seconds.
func (c *certificates) certificate(host string, hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
	au := c.awake(host)
	if au == nil {
		return nil, fmt.Errorf("no certificate is to be had for %.80q", host)
	}
	if hello.ServerName == "" { // a client that says no name gets the only one there is
		named := *hello
		named.ServerName = host
		hello = &named
	}
	cert, err := au.manager.GetCertificate(hello)
	failed := ""
	if err != nil && hello.ServerName == host {
		failed = "no certificate: " + err.Error()
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	if au.failed != failed && failed != "" {
		c.log.Error("no certificate by ACME", "host", host, "err", err)
	}
	if hello.ServerName == host {
		au.failed = failed
	}
	return cert, err
}

// problem says why there is no certificate for a name.
func (c *certificates) problem(host string) string {
	au := c.awake(host)
	if au == nil {
		return ""
	}
	c.mu.Lock()
	defer c.mu.Unlock()
	return au.failed
}

// challenged returns what answers an authority's request by HTTP, nil when it is
// none or about another name.
func (c *certificates) challenged(host string) http.Handler {
	if au := c.awake(host); au != nil {
		return au.http01
	}
	return nil
}

// Challenge makes the TLS of another listener on this machine answer the requests
// of certificate authorities too (RFC 8737), and nobody else differently.
func (s *Server) Challenge(c *tls.Config) {
	before := c.GetCertificate
	c.NextProtos = append(slices.Clone(c.NextProtos), acme.ALPNProto)
	c.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		if isChallenge(hello) {
			return s.certs.certificate(hello.ServerName, hello)
		}
		if before != nil {
			return before(hello)
		}
		return nil, nil // the certificates of the configuration
	}
}

func isChallenge(hello *tls.ClientHelloInfo) bool {
	return len(hello.SupportedProtos) == 1 && hello.SupportedProtos[0] == acme.ALPNProto
}

// tlsConfig is the TLS of a port.
func (p *port) tlsConfig() (*tls.Config, error) {
	c := &tls.Config{MinVersion: tls.VersionTLS12, NextProtos: slices.Clone(webProtocols)}
	if p.e.ACME == nil {
		cert, err := tls.X509KeyPair(p.e.Certificate, p.e.Key)
		if err != nil {
			return nil, fmt.Errorf("read the certificate: %w", err)
		}
		c.Certificates = []tls.Certificate{cert}
		return c, nil
	}
	if _, err := p.s.certs.of(p.e.Host, *p.e.ACME); err != nil {
		return nil, err
	}
	c.NextProtos = append(c.NextProtos, acme.ALPNProto)
	c.GetCertificate = func(hello *tls.ClientHelloInfo) (*tls.Certificate, error) {
		return p.s.certs.certificate(p.e.Host, hello)
	}
	return c, nil
}
