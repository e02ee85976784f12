package overlay

import (
	"net/http"
	"net/url"
)

// NoProxy is the setting that leaves the proxy of the environment unused.
const NoProxy = "none"

// proxyFunc says by which HTTP proxy to reach coordinator and relays.
type proxyFunc func(*http.Request) (*url.URL, error)

// chooseProxy reads the setting: a URL, NoProxy, or "" for the environment's.
func chooseProxy(setting string) (proxyFunc, error) {
	switch setting {
	case "":
		return http.ProxyFromEnvironment, nil
	case NoProxy:
		return func(*http.Request) (*url.URL, error) { return nil, nil }, nil
	}
	u, err := ParseProxy(setting)
	if err != nil {
		return nil, err
	}
	return http.ProxyURL(u), nil
}

// setProxy takes another setting; not while the node runs.
func (n *Node) setProxy(setting string) (err error) {
	n.o.Proxy = setting
	choose, err := chooseProxy(setting)
	n.proxy = func(r *http.Request) (*url.URL, error) {
		u, err := choose(r)
		if u != nil && n.ways.isOwn(u.Host) {
			return nil, nil
		}
		return u, err
	}
	return err
}

// ParseProxy reads the URL of a proxy. The error does not repeat it: there may
// be a password in it.
func ParseProxy(s string) (*url.URL, error) {
	const fix = "write it as http://proxy.example.org:3128"
	u, err := url.Parse(s)
	if err != nil || u.Host == "" || u.Hostname() == "" {
		return nil, fault(ExitUsage, fix, "the URL of the proxy is malformed")
	}
	switch u.Scheme {
	case "http", "https", "socks5", "socks5h":
	default:
		return nil, fault(ExitUsage, fix, "a proxy is reached by http, https or socks5, not by %q", u.Scheme)
	}
	if u.Path != "" && u.Path != "/" || u.RawQuery != "" || u.Fragment != "" {
		return nil, fault(ExitUsage, fix, "the URL of the proxy has something behind the host")
	}
	return u, nil
}

// proxyFor names the proxy on the way to an endpoint, as host:port; "": none, or
// the setting cannot be read.
func (n *Node) proxyFor(endpoint string) string {
	req, err := http.NewRequest(http.MethodGet, "https://"+endpoint, nil)
	if err != nil {
		return ""
	}
	u, err := n.proxy(req)
	if err != nil || u == nil {
		return ""
	}
	return u.Host
}

// proxySource says who named the proxy.
func (o Options) proxySource() string {
	if o.Proxy != "" {
		return "setting"
	}
	return "environment"
}

// EnvironmentProxy reports whether the environment names a proxy for HTTPS.
func EnvironmentProxy(getenv func(string) string) bool {
	return getenv("HTTPS_PROXY") != "" || getenv("https_proxy") != ""
}
