package underlay

import "sync/atomic"

// event is something that is counted instead of logged.
type event int

const (
	dropUnknownSource event = iota // from an address that is no relay of ours, nor a peer's
	dropUnknownLabel               // from a peer that is not in the map
	dropMalformed                  // too short, or of no known type
	dropProbe                      // a peer probe, where no direct paths are looked for
	dropProbeLimit                 // a peer probe of a source that sends too many
	dropProbeForged                // a peer probe that does not open
	dropProbeStale                 // a peer probe that came before, or answers nothing
	dropDirectLabel                // from a peer's own address, with a label
	dropControl                    // a relay's control message that is forged, malformed, late or came before
	dropHeld                       // older than what is held while no relay is reachable
	dropUnsent                     // the kernel did not take it
	dropStranger                   // an initiation from who is no node and does not know this machine's key
	tlsDials                       // TLS connections to relays that were tried
	tlsFailed                      // of which nothing came
	tlsBroken                      // TLS connections that ended in the middle of something, or spoke no WebSocket
	events
)

// eventNames are the names under which Counters gives the events.
var eventNames = [events]string{
	dropUnknownSource: "drop_unknown_source",
	dropUnknownLabel:  "drop_unknown_label",
	dropMalformed:     "drop_malformed",
	dropProbe:         "drop_probe",
	dropProbeLimit:    "drop_probe_limit",
	dropProbeForged:   "drop_probe_forged",
	dropProbeStale:    "drop_probe_stale",
	dropDirectLabel:   "drop_direct_label",
	dropControl:       "drop_control",
	dropStranger:      "drop_stranger",
	tlsDials:          "tls_dials",
	tlsFailed:         "tls_dials_failed",
	tlsBroken:         "tls_streams_broken",
	dropHeld:          "drop_held",
	dropUnsent:        "drop_unsent",
}

type counters [events]atomic.Uint64

func (c *counters) add(e event, n int) {
	if n > 0 {
		c[e].Add(uint64(n))
	}
}

// Counters returns the totals since New, by name; every name is always there.
func (b *Bind) Counters() map[string]uint64 {
	m := make(map[string]uint64, int(events)+6)
	for e, name := range eventNames {
		m[name] = b.count[e].Load()
	}
	b.mu.Lock()
	defer b.mu.Unlock()
	total := b.closed
	for _, l := range b.lines.Load().all() {
		total = sum(total, l.sock.Counters())
	}
	m["udp_send_drops"] = total.SendDrops
	m["udp_send_errors"] = total.SendErrors
	m["udp_gso_fallbacks"] = total.GSOFallbacks
	m["udp_truncated"] = total.Truncated
	m["udp_recv_errors"] = total.RecvErrors
	m["udp_queue_drops"] = total.QueueDrops
	return m
}
