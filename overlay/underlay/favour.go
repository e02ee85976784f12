package underlay

import (
	"net/netip"
	"time"
)

const (
	// mostPongs and mostEchoes are what an address that has not answered yet gets
	// because pings came from it, before a pause that grows like quiet does: who
	// sends them may have written somebody else's address on them. A peer that is
	// there sends a handful, and proves itself by the first echo that arrives.
	mostPongs  = 8
	mostEchoes = 5
)

// favour is what was sent to an address because pings came from it.
type favour struct {
	pongs, echoes int
	echoAt        time.Time
	until         time.Time // when it begins anew: wait after the last of them
	wait          time.Duration
}

// renew begins anew when it is time to.
func (v *favour) renew(now time.Time) {
	if now.Before(v.until) {
		return
	}
	wait := min(max(2*v.wait, quietFirst), quietMost)
	*v = favour{echoAt: v.echoAt, wait: wait, until: now.Add(wait)}
}

// pong reports whether another pong may go there, and counts it if so.
func (v *favour) pong(now time.Time) bool {
	v.renew(now)
	if v.pongs >= mostPongs {
		return false
	}
	v.pongs++
	v.until = now.Add(v.wait)
	return true
}

// echo is pong for a ping.
func (v *favour) echo(now time.Time) bool {
	v.renew(now)
	if v.echoes >= mostEchoes || now.Sub(v.echoAt) < echoGap {
		return false
	}
	v.echoes++
	v.echoAt, v.until = now, now.Add(v.wait)
	return true
}

// handlePing answers, and asks back where nobody has answered lately.
func (f *finder) handlePing(now time.Time, from netip.AddrPort, m probe) (out []send) {
	f.unasked(now, from)
	s := f.spot(now, from)
	pong := probe{kind: probePong, id: m.id, observed: from}
	if s == nil { // there is no room to remember more than how much such addresses get
		if f.crowd.pong(now) {
			out = append(out, send{from, pong})
		}
		return out
	}
	pong.got = uint32(s.tally.got.Load())
	if s.proved() || s.favour.pong(now) {
		out = append(out, send{from, pong})
	}
	switch {
	case s.fresh(now):
	case s.proved() && now.Sub(s.favour.echoAt) >= echoGap:
		s.favour.echoAt = now
		out = append(out, f.ping(now, s))
	case !s.proved() && s.favour.echo(now):
		out = append(out, f.ping(now, s))
	}
	return out
}
