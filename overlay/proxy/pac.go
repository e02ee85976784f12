package proxy

import (
	"context"
	"encoding/json"
	"fmt"
	"net"
	"net/http"
	"net/netip"
	"strings"
)

// PACPath is where the PAC file is.
const PACPath = "/proxy.pac"

// Reach is what the PAC file sends to the proxy.
type Reach struct {
	Prefixes []netip.Prefix
	Names    []string // of machines
	Domains  []string // of LANs: names that end in them
}

// servePAC serves the PAC file to who may have it: see the package's text.
func (s *Server) servePAC(w http.ResponseWriter, r *http.Request) {
	w.Header().Set("X-Content-Type-Options", "nosniff")
	w.Header().Set("Cross-Origin-Resource-Policy", "same-origin")
	w.Header().Set("Cache-Control", "no-store")
	switch {
	case !ownHost(r.Host):
		s.counters.garbage.Add(1)
		http.Error(w, "ask for this by an address or as localhost", http.StatusMisdirectedRequest)
		return
	case byPage(r.Header):
		s.counters.garbage.Add(1)
		http.Error(w, "this is not for web pages", http.StatusForbidden)
		return
	case r.URL.Path != PACPath:
		http.Error(w, "this is a proxy, for SOCKS5 and HTTP; its PAC file is "+PACPath, http.StatusNotFound)
		return
	case r.Method != http.MethodGet && r.Method != http.MethodHead:
		w.Header().Set("Allow", "GET, HEAD")
		http.Error(w, "the PAC file can only be read", http.StatusMethodNotAllowed)
		return
	}
	local, _ := r.Context().Value(http.LocalAddrContextKey).(net.Addr)
	remote, _ := netip.ParseAddrPort(r.RemoteAddr)
	if !remote.Addr().Unmap().IsLoopback() && !s.loggedIn(r.Context(), r.Header.Get("Authorization")) {
		w.Header().Set("WWW-Authenticate", `Basic realm="overlayd"`)
		http.Error(w, "the PAC file needs the proxy's name and password", http.StatusUnauthorized)
		return
	}
	s.counters.pac.Add(1)
	w.Header().Set("Content-Type", "application/x-ns-proxy-autoconfig")
	fmt.Fprint(w, pacFile(s.reach(r.Context()), local.String()))
}

func (s *Server) reach(ctx context.Context) Reach {
	if s.o.Reach == nil {
		return Reach{}
	}
	return s.o.Reach(ctx)
}

// ownHost reports whether a Host header names this machine in a way that nobody
// else can point here: a page's owner may let any name lead to 127.0.0.1.
func ownHost(host string) bool {
	name := host
	if h, _, err := net.SplitHostPort(host); err == nil {
		name = h
	}
	_, err := netip.ParseAddr(strings.Trim(name, "[]"))
	return err == nil || strings.EqualFold(name, "localhost")
}

// byPage reports whether a browser says that a page caused the request, and not
// the person or the browser itself (Fetch Metadata, W3C).
func byPage(h http.Header) bool {
	site := h.Get("Sec-Fetch-Site")
	return h.Get("Origin") != "" || site != "" && site != "none"
}

// pacFile writes the file. at is the proxy as the client reached it.
func pacFile(r Reach, at string) string {
	var nets []string
	for _, p := range r.Prefixes {
		if p.Addr().Is4() {
			mask := netip.AddrFrom4([4]byte(net.CIDRMask(p.Bits(), 32)))
			nets = append(nets, fmt.Sprintf("[%s, %s]", quoted(p.Masked().Addr().String()), quoted(mask.String())))
		}
	}
	var b strings.Builder
	b.WriteString("// Only what lies in the overlay or behind its gateways goes through the proxy.\n")
	fmt.Fprintf(&b, "var ovlProxy = %s;\n", quoted("PROXY "+at))
	fmt.Fprintf(&b, "var ovlNets = [%s];\n", strings.Join(nets, ", "))
	fmt.Fprintf(&b, "var ovlNames = [%s];\n", strings.Join(lowered(r.Names), ", "))
	fmt.Fprintf(&b, "var ovlDomains = [%s];\n", strings.Join(lowered(r.Domains), ", "))
	b.WriteString(pacCode)
	return b.String()
}

func lowered(words []string) (list []string) {
	for _, w := range words {
		list = append(list, quoted(strings.ToLower(strings.Trim(w, "."))))
	}
	return list
}

// quoted is a string of JavaScript; what JSON escapes is more than enough.
func quoted(s string) string {
	b, err := json.Marshal(s)
	if err != nil {
		return `""` // no string fails
	}
	return string(b)
}

// pacCode decides about an address. It looks no name up: that would ask the
// system's DNS for names that it has no business with.
const pacCode = `function FindProxyForURL(url, host) {
  host = host.toLowerCase().replace(/\.$/, "");
  var i;
  if (/^\d+\.\d+\.\d+\.\d+$/.test(host)) {
    for (i = 0; i < ovlNets.length; i++) {
      if (isInNet(host, ovlNets[i][0], ovlNets[i][1])) return ovlProxy;
    }
    return "DIRECT";
  }
  for (i = 0; i < ovlNames.length; i++) {
    if (host === ovlNames[i]) return ovlProxy;
  }
  for (i = 0; i < ovlDomains.length; i++) {
    if (host === ovlDomains[i] || dnsDomainIs(host, "." + ovlDomains[i])) return ovlProxy;
  }
  return "DIRECT";
}
`
