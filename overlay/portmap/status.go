package portmap

import (
	"errors"
	"net/netip"
	"strings"
	"time"
	"unicode"
)

// Reasons why a mapping is not offered to peers.
const (
	ReasonOff      = "off"             // switched off, or there is no need
	ReasonNoRouter = "no_router"       // no default route by a gateway
	ReasonAsking   = "asking"          // the first answer is not there yet
	ReasonSilent   = "no_answer"       // no router answered
	ReasonRefused  = "refused"         // it answered, and said no
	ReasonPrivate  = "private_address" // its own address is not public: there is another NAT
)

// Status is what is known of the mapping.
type Status struct {
	Gateway  netip.Addr     // who is asked; invalid: nobody
	Protocol Protocol       // by which there is a mapping; "": there is none
	External netip.AddrPort // what is mapped to our port
	Expires  time.Time      // unless it is renewed, as it is at half time
	Reason   string         // why it is not offered; "": it is
	Detail   string         // more about the reason, in the router's words or ours
}

// Status tells how things are.
func (k *keeper) Status() Status {
	s := Status{Gateway: k.target.Gateway}
	if k.failed != nil {
		s.Detail = shorten(k.failed.Error())
	}
	if k.held {
		s.Protocol, s.External, s.Expires = k.lease.protocol, k.lease.external, k.expires
		if !public(s.External.Addr()) {
			s.Reason = ReasonPrivate
			s.Detail = "the router's own address " + s.External.Addr().String() + " is not public: there is another NAT behind it"
		}
		return s
	}
	_, said := errors.AsType[refusal](k.failed)
	switch {
	case !k.target.Gateway.IsValid():
		s.Reason = ReasonNoRouter
	case k.failed == nil:
		s.Reason = ReasonAsking
	case said:
		s.Reason = ReasonRefused
	default:
		s.Reason = ReasonSilent
	}
	return s
}

// shorten bounds what a router may put into our status and log, and keeps what
// would move a terminal's cursor out of it.
func shorten(text string) string {
	const most = 200 // bytes; two lines of a terminal
	if len(text) > most {
		text = strings.ToValidUTF8(text[:most], "") // the cut may lie within a letter
	}
	return strings.Map(func(r rune) rune {
		if unicode.IsPrint(r) {
			return r
		}
		return ' '
	}, text)
}

// Offered returns the address to tell peers, the zero value when there is none.
func (s Status) Offered() netip.AddrPort {
	if s.Reason != "" {
		return netip.AddrPort{}
	}
	return s.External
}

// inner are the ranges, besides those that netip knows, which nobody reaches
// from the internet.
var inner = []netip.Prefix{
	netip.MustParsePrefix("0.0.0.0/8"),
	netip.MustParsePrefix("100.64.0.0/10"), // RFC 6598: a provider's NAT
	netip.MustParsePrefix("192.0.0.0/24"),  // RFC 6333: DS-Lite, among others
	netip.MustParsePrefix("198.18.0.0/15"),
	netip.MustParsePrefix("240.0.0.0/4"),
}

// public reports whether an address can be reached from the internet.
func public(a netip.Addr) bool {
	if !a.Is4() || !a.IsGlobalUnicast() || a.IsPrivate() {
		return false
	}
	for _, p := range inner {
		if p.Contains(a) {
			return false
		}
	}
	return true
}
