package relay

import "sync/atomic"

// event is something the relay counts. Drops are events whose name starts with
// "drop_".
type event int

const (
	none event = iota

	forwarded      // datagrams sent on to a node
	forwardedBytes // their bytes
	delivered      // datagrams given to the relay's own node

	guestCame // datagrams of no node's that were given to the relay's own node
	guestSent // datagrams that it sent to such

	attached    // sessions made
	moved       // sessions whose node has a new address
	repeated    // READYs sent once more
	challenged  // CHALLENGEs sent
	ponged      // PINGs answered
	unknownSent // UNKNOWNs sent
	refused     // ATTACHes refused with a reason
	expired     // sessions forgotten for lack of PINGs
	removed     // sessions ended because their node was removed

	streamsOpened  // TLS connections taken
	streamsRefused // not taken: there are too many, from that source or in all
	streamsIdle    // closed because no node attached by them, or it left for UDP
	streamsBroken  // that ended in the middle of something, or spoke no WebSocket

	dropNoSession   // data from an address without a session
	dropNoPeer      // no session has the label
	dropSelf        // the label is the sender's own
	dropKind        // a first byte we do not know
	dropShape       // a length that no message of the kind has
	dropControl     // a control message that is malformed or not for a relay
	dropTicket      // a ticket of unknown form
	dropForged      // a wrong MAC
	dropReplay      // a PING or an ATTACH that came before
	dropStale       // a PING of an earlier session
	dropOwnLabel    // an ATTACH for the label of the relay's own node
	dropLimited     // an unauthenticated control message above its source's limit
	dropProbeLimit  // a long probe above its sender's limit
	dropSendQueue   // the kernel did not take it
	dropPortFull    // the relay's own node was too slow: the oldest went
	dropSlow        // for a TLS connection that was too slow: the oldest went
	dropNoUpgrade   // a request at the relay's HTTPS port that asks for no WebSocket
	dropPortTooLong // it did not fit the own node's buffer

	events // how many there are
)

var eventNames = [events]string{
	none:            "none",
	forwarded:       "forwarded_datagrams",
	forwardedBytes:  "forwarded_bytes",
	delivered:       "delivered_datagrams",
	guestCame:       "guest_datagrams_received",
	guestSent:       "guest_datagrams_sent",
	attached:        "sessions_attached",
	moved:           "sessions_moved",
	repeated:        "readies_repeated",
	challenged:      "challenges_sent",
	ponged:          "pongs_sent",
	unknownSent:     "unknowns_sent",
	refused:         "attaches_refused",
	expired:         "sessions_expired",
	removed:         "sessions_removed",
	streamsOpened:   "streams_opened",
	streamsRefused:  "streams_refused",
	streamsIdle:     "streams_idle",
	streamsBroken:   "streams_broken",
	dropNoSession:   "drop_no_session",
	dropNoPeer:      "drop_no_peer",
	dropSelf:        "drop_self",
	dropKind:        "drop_kind",
	dropShape:       "drop_shape",
	dropControl:     "drop_control",
	dropTicket:      "drop_ticket",
	dropForged:      "drop_forged",
	dropReplay:      "drop_replay",
	dropStale:       "drop_stale",
	dropOwnLabel:    "drop_own_label",
	dropLimited:     "drop_limited",
	dropProbeLimit:  "drop_probe_limit",
	dropSendQueue:   "drop_send_queue",
	dropPortFull:    "drop_port_full",
	dropSlow:        "drop_slow_stream",
	dropNoUpgrade:   "drop_no_upgrade",
	dropPortTooLong: "drop_port_too_long",
}

// counters counts events. Each goroutine of the hot path has its own, so that
// no cache line is passed around.
type counters [events]atomic.Uint64

func (c *counters) add(e event, n int) { c[e].Add(uint64(n)) }

// addTo adds what was counted to totals by name; every name is present.
func (c *counters) addTo(totals map[string]uint64) {
	for e := none + 1; e < events; e++ {
		totals[eventNames[e]] += c[e].Load()
	}
}

// take adds what another has counted.
func (c *counters) take(other *counters) {
	for e := range other {
		c[e].Add(other[e].Load())
	}
}
