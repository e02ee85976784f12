package main

import (
	"fmt"
	"log/slog"
	"net"
	"net/netip"
	"net/url"
	"strconv"
	"strings"
	"time"

	"overlayd/overlay"
	"overlayd/overlay/coord"
)

// The values of flags that the flag package does not know. Each checks what it
// is given, so that flags, environment and config file refuse the same things
// with the same words.

// hintedError is what is wrong with a value, and what would be right.
type hintedError struct{ text, hint string }

func (e *hintedError) Error() string { return e.text }

func hinted(hint, format string, args ...any) error {
	return &hintedError{text: fmt.Sprintf(format, args...), hint: hint}
}

// lanPrefix refuses what nobody can advertise.
func lanPrefix(s string) (netip.Prefix, error) {
	p, err := netip.ParsePrefix(s)
	switch {
	case err != nil:
		return netip.Prefix{}, hinted("write it as 192.168.1.0/24", "%q is not a network prefix", s)
	case !p.Addr().Is4():
		return netip.Prefix{}, hinted("write it as 192.168.1.0/24", "%s is not an IPv4 prefix", p)
	case p != p.Masked():
		return netip.Prefix{}, hinted("did you mean "+p.Masked().String()+"?", "%s has host bits set", p)
	case p.Bits() == 0:
		return netip.Prefix{}, hinted("name the networks behind the gateway one by one", "%s is everything there is", p)
	case p.Addr().IsLoopback(), p.Addr().IsMulticast(), p.Addr().IsLinkLocalUnicast():
		return netip.Prefix{}, hinted("name a network of the LAN", "%s is loopback, link-local or multicast", p)
	}
	return p, nil
}

// prefixes is a flag that may be given several times.
type prefixes []netip.Prefix

func (l *prefixes) Set(s string) error {
	for _, word := range strings.Split(s, ",") {
		p, err := lanPrefix(strings.TrimSpace(word))
		if err != nil {
			return err
		}
		*l = append(*l, p)
	}
	return nil
}

func (l *prefixes) String() string { return joinAny(*l, ", ") }
func (l *prefixes) Type() string   { return "PREFIX" }
func (l *prefixes) isList()        {}

// list is a flag's value that takes several.
type list interface{ isList() }

// overlayPrefix is the network of the nodes' own addresses.
type overlayPrefix struct{ netip.Prefix }

func (o *overlayPrefix) Set(s string) error {
	p, err := lanPrefix(s)
	if err != nil {
		return err
	}
	if p.Bits() < 8 || p.Bits() > 30 {
		return hinted("take a private prefix from /8 to /30, for instance 100.88.0.0/24",
			"%s is too large or too small for an overlay", p)
	}
	o.Prefix = p
	return nil
}

func (o *overlayPrefix) String() string {
	if !o.IsValid() {
		return ""
	}
	return o.Prefix.String()
}
func (o *overlayPrefix) Type() string { return "PREFIX" }

// address is an IP address, or none.
type address struct{ netip.Addr }

func (a *address) Set(s string) error {
	ip, err := netip.ParseAddr(s)
	if err != nil || ip.Zone() != "" {
		return fmt.Errorf("%q is not an IP address", s)
	}
	a.Addr = ip.Unmap()
	return nil
}

func (a *address) String() string {
	if !a.IsValid() {
		return ""
	}
	return a.Addr.String()
}
func (a *address) Type() string { return "IP" }

// listenAddress is [HOST]:PORT.
type listenAddress string

func (l *listenAddress) Set(s string) error {
	host, port, err := net.SplitHostPort(s)
	if err != nil {
		return fmt.Errorf("%q is not [HOST]:PORT, for instance :443", s)
	}
	if host != "" {
		if _, err := netip.ParseAddr(host); err != nil {
			return fmt.Errorf("%q: the host is an IP address of this machine, or nothing for all of them", s)
		}
	}
	if _, err := portNumber(port); err != nil {
		return err
	}
	*l = listenAddress(s)
	return nil
}

func (l *listenAddress) String() string { return string(*l) }
func (l *listenAddress) Type() string   { return "[HOST]:PORT" }

// publicAddress is HOST[:PORT] as the other machines reach it.
type publicAddress string

func (a *publicAddress) Set(s string) error {
	host := s
	if ip, err := netip.ParseAddr(s); err != nil { // not a bare address, which may be IPv6 with its colons
		if h, port, err := net.SplitHostPort(s); err == nil {
			if _, err := portNumber(port); err != nil {
				return err
			}
			host = h
		}
	} else if ip.Zone() != "" || ip.IsUnspecified() {
		return fmt.Errorf("%q is no address that others can reach", s)
	}
	if ip, err := netip.ParseAddr(host); err == nil {
		if ip.IsUnspecified() {
			return fmt.Errorf("%q is no address that others can reach", s)
		}
	} else if !hostName(host) {
		return fmt.Errorf("%q is not HOST or HOST:PORT", s)
	}
	*a = publicAddress(s)
	return nil
}

func (a *publicAddress) String() string { return string(*a) }
func (a *publicAddress) Type() string   { return "HOST[:PORT]" }

// hostName reports whether s can be a DNS name (RFC 1123 section 2.1).
func hostName(s string) bool {
	if len(s) == 0 || len(s) > 253 {
		return false
	}
	for _, l := range strings.Split(strings.TrimSuffix(s, "."), ".") {
		if !nodeName(strings.ToLower(l)) {
			return false
		}
	}
	return true
}

// nodeName reports whether s is a DNS label: what a node may be called.
func nodeName(s string) bool {
	if len(s) == 0 || len(s) > 63 || s[0] == '-' || s[len(s)-1] == '-' {
		return false
	}
	for _, c := range s {
		if (c < 'a' || c > 'z') && (c < '0' || c > '9') && c != '-' {
			return false
		}
	}
	return true
}

// name is what a node wishes to be called.
type name string

func (n *name) Set(s string) error {
	s = strings.ToLower(s)
	if !nodeName(s) {
		return fmt.Errorf("%q is not a name: letters, digits and inner hyphens, at most 63", s)
	}
	*n = name(s)
	return nil
}

func (n *name) String() string { return string(*n) }
func (n *name) Type() string   { return "NAME" }

// portNumber reads a port from 1 to 65535.
func portNumber(s string) (uint16, error) {
	n, err := strconv.ParseUint(s, 10, 16)
	if err != nil || n == 0 {
		return 0, fmt.Errorf("%q is not a port: 1 to 65535", s)
	}
	return uint16(n), nil
}

// port is a UDP port, or any.
type port uint16

func (p *port) Set(s string) error {
	if s == "0" || s == "any" {
		*p = 0
		return nil
	}
	n, err := portNumber(s)
	*p = port(n)
	return err
}

func (p *port) String() string {
	if *p == 0 {
		return "any"
	}
	return strconv.Itoa(int(*p))
}
func (p *port) Type() string { return "PORT" }

// endpoints are addresses at which others can reach a port of this machine.
type endpoints []netip.AddrPort

func (l *endpoints) Set(s string) error {
	for _, word := range strings.Split(s, ",") {
		a, err := netip.ParseAddrPort(strings.TrimSpace(word))
		ip := a.Addr().Unmap()
		switch {
		case err != nil:
			return hinted("write it as 198.51.100.2:41641", "%q is not IP:PORT", word)
		case a.Port() == 0, !ip.IsGlobalUnicast(), ip.Zone() != "":
			return hinted("name the router's outer address and port", "%s is nothing that others can reach", a)
		}
		*l = append(*l, netip.AddrPortFrom(ip, a.Port()))
	}
	return nil
}

func (l *endpoints) String() string { return joinAny(*l, ", ") }
func (l *endpoints) Type() string   { return "IP:PORT" }
func (l *endpoints) isList()        {}

// span is a duration above zero; days are understood.
type span time.Duration

func (d *span) Set(s string) error {
	var v time.Duration
	if days, ok := strings.CutSuffix(s, "d"); ok {
		n, err := strconv.ParseUint(days, 10, 16)
		if err != nil {
			return fmt.Errorf("%q is not a time span like 30m, 24h or 7d", s)
		}
		v = time.Duration(n) * 24 * time.Hour
	} else {
		var err error
		if v, err = time.ParseDuration(s); err != nil {
			return fmt.Errorf("%q is not a time span like 30m, 24h or 7d", s)
		}
	}
	if v <= 0 {
		return hinted("write it as 30m, 24h or 7d", "%q is not above zero", s)
	}
	*d = span(v)
	return nil
}

// String returns "" for none, which the help then calls no default.
func (d *span) String() string {
	if *d == 0 {
		return ""
	}
	return spanText(time.Duration(*d))
}
func (d *span) Type() string { return "D" }

// lifetime is a span, or never.
type lifetime time.Duration

func (d *lifetime) Set(s string) error {
	if s == "never" {
		*d = lifetime(coord.ForEver)
		return nil
	}
	var v span
	if err := v.Set(s); err != nil {
		return err
	}
	*d = lifetime(v)
	return nil
}

func (d *lifetime) String() string {
	switch *d {
	case 0:
		return ""
	case lifetime(coord.ForEver):
		return "never"
	}
	return spanText(time.Duration(*d))
}
func (d *lifetime) Type() string { return "D|never" }

// level is how much a daemon logs.
type level slog.Level

func (l *level) Set(s string) error {
	for _, v := range []slog.Level{slog.LevelDebug, slog.LevelInfo, slog.LevelWarn, slog.LevelError} {
		if strings.EqualFold(s, v.String()) {
			*l = level(v)
			return nil
		}
	}
	return fmt.Errorf("%q is none of debug, info, warn, error", s)
}

func (l *level) String() string { return strings.ToLower(slog.Level(*l).String()) }
func (l *level) Type() string   { return "LEVEL" }

// choice is one word of several.
type choice struct {
	word  string
	words []string
}

func (c *choice) Set(s string) error {
	for _, w := range c.words {
		if s == w {
			c.word = w
			return nil
		}
	}
	return fmt.Errorf("%q is none of %s", s, strings.Join(c.words, ", "))
}

func (c *choice) String() string { return c.word }
func (c *choice) Type() string   { return strings.Join(c.words, "|") }

// joinAny writes the String forms of vs with sep between them.
func joinAny[T fmt.Stringer](vs []T, sep string) string {
	words := make([]string, len(vs))
	for i, v := range vs {
		words[i] = v.String()
	}
	return strings.Join(words, sep)
}

// text is a plain string with a word for what it holds.
type text struct {
	to   *string
	kind string
}

func (t text) Set(s string) error { *t.to = s; return nil }
func (t text) String() string {
	if t.to == nil { // the flag package asks zero values for theirs
		return ""
	}
	return *t.to
}
func (t text) Type() string { return t.kind }

// number is a count.
type number int

func (n *number) Set(s string) error {
	v, err := strconv.ParseUint(s, 10, 31)
	if err != nil {
		return fmt.Errorf("%q is not a whole number, 0 or more", s)
	}
	*n = number(v)
	return nil
}

func (n *number) String() string { return strconv.Itoa(int(*n)) }
func (n *number) Type() string   { return "N" }

// proxyURL is the URL of an HTTP proxy, or none. It is never printed with its
// password.
type proxyURL string

func (v *proxyURL) Set(s string) error {
	if s == overlay.NoProxy {
		*v = proxyURL(s)
		return nil
	}
	if _, err := overlay.ParseProxy(s); err != nil {
		f := overlay.AsFault(err)
		return hinted(f.Hint, "%s", f.Message)
	}
	*v = proxyURL(s)
	return nil
}

// secret reports whether the URL has a password.
func (v *proxyURL) secret() bool {
	u, err := url.Parse(string(*v))
	if err != nil {
		return true
	}
	_, has := u.User.Password()
	return has
}

func (v *proxyURL) String() string {
	u, err := url.Parse(string(*v))
	if err != nil {
		return ""
	}
	return u.Redacted()
}

func (v *proxyURL) Type() string { return "URL" }
