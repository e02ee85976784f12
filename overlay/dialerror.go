package overlay

import (
	"context"
	"errors"
	"fmt"
	"net"
	"net/netip"
	"strings"
	"syscall"
	"time"

	"overlayd/overlay/coord"
)

// DialReason says why there is no connection.
type DialReason string

// The reasons.
const (
	ReasonNoName      DialReason = "unknown_name"     // nobody knows the name
	ReasonOutside     DialReason = "outside"          // no node carries the address
	ReasonPolicy      DialReason = "denied_by_policy" // the node that carries it lets nobody like us in
	ReasonRefused     DialReason = "refused"          // the host has nothing on that port
	ReasonUnreachable DialReason = "unreachable"      // the node that carries it cannot reach the host
	ReasonOffline     DialReason = "gateway_offline"  // the node that carries it is away
	ReasonTimeout     DialReason = "timeout"          // nobody answered
	ReasonBarred      DialReason = "barred"           // this machine takes no part: its key expired, or it was disabled
	ReasonFailed      DialReason = "failed"           // this machine could not even try
)

// DialError is why DialContext made no connection. It is also a [Fault], for
// those who ask with errors.As, with a hint that names the fix.
type DialError struct {
	Reason DialReason
	Target string // as it was called, with the address where that is another
	Via    string // the node that carries the target; "": none

	why    string   // more than the reason says
	silent []string // gateways that did not answer
	beyond bool     // the target is outside of the network
	local  bool     // who asked might have meant a host outside
	err    error    // what the sockets said; nil: they were not asked
	proto  string   // tcp, udp; "": not known
	barred *coord.Problem
}

// Error says what was tried and why it failed, without the hint.
func (e *DialError) Error() string { return e.fault().Message }

// Unwrap gives the Fault, and the error of the socket.
func (e *DialError) Unwrap() []error {
	list := []error{e.fault()}
	if e.err != nil {
		list = append(list, e.err)
	}
	return list
}

// Timeout reports whether nobody answered: part of net.Error.
func (e *DialError) Timeout() bool { return e.Reason == ReasonTimeout || e.Reason == ReasonOffline }

// Temporary is the rest of net.Error.
func (e *DialError) Temporary() bool { return e.Timeout() }

var _ net.Error = (*DialError)(nil)

func (e *DialError) fault() *Fault {
	about := fmt.Sprintf("connect to %.200s: ", e.Target)
	if e.beyond {
		return fault(ExitUnreachable, "it is not in this network: see whether this machine reaches it without overlayd's proxy",
			"connect to %.200s, outside of the network: %v", e.Target, e.err)
	}
	switch e.Reason {
	case ReasonNoName:
		why := e.why
		if len(e.silent) > 0 {
			return fault(ExitUnreachable, "look at `overlayd status`, or use the host's address",
				"%sno machine of the network is called so, and %s did not answer for its LAN", about, strings.Join(e.silent, ", "))
		}
		if why == "" {
			why = "no machine of the network and no LAN behind a gateway knows that name"
		}
		return fault(ExitFailure, "`overlayd peers` lists the machines; a host of a LAN also answers at its address", "%s%s", about, why)
	case ReasonOutside:
		if e.local {
			return fault(ExitUnreachable, "`overlayd routes` lists what can be reached; for a host of this machine's own network leave out the proxy: no_proxy="+plainTarget(e.Target), "%s%s", about, e.why)
		}
		return fault(ExitUnreachable, outsideHint(e.wish()), "%s%s", about, e.why)
	case ReasonPolicy:
		if e.why != "" {
			return fault(ExitDenied, requestHint(e.wish()), "%s%s", about, e.why)
		}
		return fault(ExitDenied, requestHint(e.wish()), "%srefused by the policy that %s enforces", about, e.carrierText())
	case ReasonRefused:
		return fault(ExitUnreachable, "check the port, and that the service runs there", "%srefused by the host: nothing listens on that port", about)
	case ReasonUnreachable:
		return fault(ExitUnreachable, "check that the host is on, and its address", "%s%s says that the host does not answer", about, e.carrierText())
	case ReasonOffline:
		return fault(ExitUnreachable, "look at `overlayd status` on "+e.Via, "%s%s, which carries it, is offline", about, e.Via)
	case ReasonTimeout:
		return fault(ExitUnreachable, "try `overlayd ping "+plainTarget(e.Target)+"`, which shows the path", "%sno answer in time", about)
	}
	if e.Reason == ReasonBarred {
		return fault(problemCodes[e.barred.Kind], e.barred.Hint, "%s%s", about, e.barred.Message)
	}
	return fault(ExitFailure, "look at `overlayd status`", "%s%v", about, e.err)
}

// wish is the target as overlayd request takes it: no more than what was refused.
func (e *DialError) wish() string {
	t, _, _ := strings.Cut(e.Target, " (")
	if e.proto == "udp" {
		t += "/udp"
	}
	return t
}

func (e *DialError) carrierText() string {
	if e.Via == "" {
		return "the node that carries it"
	}
	return e.Via
}

// plainTarget is a target without the address in brackets.
func plainTarget(t string) string {
	t, _, _ = strings.Cut(t, " (")
	if host, _, err := net.SplitHostPort(t); err == nil {
		return host
	}
	return t
}

// outsideHint is for who wonders why no node carries an address: a map has only
// those that its machine may reach, and the coordinator knows the rest.
func outsideHint(target string) string {
	return "`overlayd routes` lists what can be reached, `overlayd explain " + target + "` says why this cannot"
}

// requestHint is for whom the policy refused something.
func requestHint(target string) string { return "ask for access with overlayd request " + target }

// closedWords says that nothing of a network is for this machine.
func closedWords(p netip.Prefix) string {
	return fmt.Sprintf("refused by the policy, which lets this machine reach nothing in %s", p)
}

// outside says why no node carries an address.
func (v view) outside(proto string, to target) *DialError {
	e := &DialError{Reason: ReasonOutside, Target: to.String(), proto: proto, why: "no node carries that address, so it is not reached through the overlay"}
	if p, ok := v.plan.closedAt(to.at.Addr()); ok {
		e.Reason, e.why = ReasonPolicy, closedWords(p)
		return e
	}
	for _, r := range v.plan.Routes {
		if !r.Prefix.Contains(to.at.Addr()) {
			continue
		}
		switch r.State {
		case RouteClash, RoutePending, RouteOffline:
			e.Via, e.why = r.Via, fmt.Sprintf("%s is not used: %s", r.words(), r.Reason)
		case RouteAdvertised:
			e.Via, e.why = r.Via, fmt.Sprintf("%s is behind this machine itself", r.Prefix)
		}
	}
	return e
}

// explainDial says why the sockets made no connection that was tried since
// began.
func (n *Node) explainDial(proto string, to target, began time.Time, err error) error {
	v := n.look()
	e := &DialError{Reason: ReasonFailed, Target: to.String(), err: err, proto: proto}
	offline := false
	if v.plan != nil && v.m != nil {
		e.Via, offline = v.carrierOf(to.at.Addr())
	}
	e.Reason = reasonFor(err, offline)
	if (e.Reason == ReasonRefused || e.Reason == ReasonUnreachable) && n.guard.refused(proto, to.at, began) {
		e.Reason = ReasonPolicy
	}
	return e
}

// reasonFor puts the error of a socket into a word. offline says that the node
// that carries the target is thought to be away.
func reasonFor(err error, offline bool) DialReason {
	var timeout net.Error
	switch {
	case errors.Is(err, syscall.ECONNREFUSED):
		return ReasonRefused
	case errors.Is(err, syscall.EHOSTUNREACH):
		return ReasonUnreachable
	case errors.Is(err, syscall.ENETUNREACH):
		return ReasonOutside
	case errors.Is(err, syscall.ETIMEDOUT), errors.Is(err, context.DeadlineExceeded), errors.As(err, &timeout) && timeout.Timeout():
		if offline {
			return ReasonOffline
		}
		return ReasonTimeout
	}
	return ReasonFailed
}

// carrierOf names the node that carries an address, and says whether the
// coordinator thinks that it is away.
func (v view) carrierOf(a netip.Addr) (name string, offline bool) {
	p := v.plan.carrier(a)
	if p == nil {
		return "", false
	}
	for _, peer := range v.m.Peers {
		if peer.WireGuard == p.Key {
			return p.Name, !peer.Online
		}
	}
	return p.Name, false
}

// plainName is a name as names are compared: without the root's dot, in lower
// case.
func plainName(s string) string { return strings.ToLower(strings.TrimSuffix(s, ".")) }
