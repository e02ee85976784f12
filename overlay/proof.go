package overlay

import (
	"context"
	"fmt"
	"time"

	"overlayd/overlay/coord"
	"overlayd/overlay/key"
	"overlayd/overlay/relay"
	"overlayd/overlay/tunnel"
	"overlayd/overlay/underlay"
)

// A word that sounds good rests on a proof, and a proof has an age. These are
// three of the intervals at which proofs come.
const (
	// controlProof: the coordinator sends a heartbeat every 5 s.
	controlProof = 3 * 5 * time.Second
	// relayProof: a relay is sent a PING every 20 to 25 s at least.
	relayProof = 3 * 25 * time.Second
	// peerProof: a peer that is sent something answers within 10 s, if only with
	// WireGuard's keepalive.
	peerProof = 3 * 10 * time.Second
	// awayProof is that of a peer that the coordinator says is away, or that leaves
	// probes by the relay unanswered: one of these intervals, and the time until its
	// end is seen.
	awayProof = 10*time.Second + lookEvery
)

// lookEvery is how often the peers' counters are looked at.
const lookEvery = 5 * time.Second

// States of control and relays beside those of packages coord and underlay, and
// of peers.
const (
	ProofDegraded  = "degraded"  // the proof is older than three intervals
	PeerOffline    = "offline"   // the coordinator does not see it, nor do we
	PeerIdle       = "idle"      // nothing is sent, so nothing is proved
	PeerAnswering  = "answering" // what is sent is answered
	PeerUnanswered = ProofDegraded
)

// echo is what WireGuard's counters have shown of a peer.
type echo struct {
	rx, tx uint64
	heard  time.Time // authentic data or a handshake came; zero: not yet
	asked  time.Time // the first that wants an answer was sent since then; zero: none
}

// keepaliveBytes is WireGuard's keepalive on the wire, which nobody answers: the
// last word of every conversation is one.
const keepaliveBytes = 32

// watchEchoes looks at the peers' counters until ctx ends.
func (n *Node) watchEchoes(ctx context.Context) error {
	return every(ctx, lookEvery, func(now time.Time) {
		v := n.look()
		if v.live == nil {
			return
		}
		if stats, err := v.live.dev.Stats(); err == nil { // else Status says so
			next := lookAt(v.echoes, stats, now)
			n.update(func(v *view) { v.echoes = next })
		}
	})
}

// lookAt returns the echoes after another look. The old ones are not changed.
func lookAt(old map[key.Public]echo, stats map[key.Public]tunnel.Stat, now time.Time) map[key.Public]echo {
	next := make(map[key.Public]echo, len(stats))
	for k, s := range stats {
		e := old[k]
		if s.RxBytes < e.rx || s.TxBytes < e.tx { // of a new tunnel: it counts from zero
			e.rx, e.tx = 0, 0
		}
		switch {
		case s.RxBytes != e.rx:
			e.heard, e.asked = now, time.Time{}
		case s.TxBytes > e.tx+keepaliveBytes && e.asked.IsZero():
			e.asked = now
		}
		e.rx, e.tx = s.RxBytes, s.TxBytes
		next[k] = e
	}
	return next
}

// peerState is the word for a peer. silent says that it leaves probes unanswered, last
// is when it last proved to be there.
func peerState(online, silent bool, e echo, last, now time.Time) string {
	limit := peerProof
	if !online || silent {
		limit = awayProof
	}
	recent := !last.IsZero() && now.Sub(last) <= limit
	switch {
	case recent:
		return PeerAnswering
	case !online:
		return PeerOffline
	case silent, !e.asked.IsZero() && now.Sub(e.asked) > peerProof:
		return PeerUnanswered
	}
	return PeerIdle
}

// stale reports whether a proof is too old to stand for anything. One that never
// came is not: then no word rests on it.
func stale(proof time.Time, limit time.Duration, now time.Time) bool {
	return !proof.IsZero() && now.Sub(proof) > limit
}

// age is how old a proof is, in milliseconds; nil: there is none.
func age(proof, now time.Time) *int64 {
	if proof.IsZero() {
		return nil
	}
	ms := max(now.Sub(proof), 0).Milliseconds()
	return &ms
}

// proofs lists the words that have lost their proof.
func (s snapshot) proofs() (items []HealthItem) {
	if s.control.Phase == coord.PhaseConnected && stale(s.heard, controlProof, s.now) {
		items = append(items, HealthItem{
			ID: "coordinator_silent", Severity: SeverityError,
			Title: fmt.Sprintf("the coordinator was last heard %s ago", s.now.Sub(s.heard).Round(time.Second)),
			Fix:   "tunnels go on with the last map; check that overlayd runs on the relay",
		})
	}
	silent, sound := []HealthItem{}, false
	for _, r := range s.relays {
		switch {
		case r.State != relay.Up.String():
		case !relayStale(r, s.now):
			sound = true
		default:
			silent = append(silent, HealthItem{
				ID: "relay_silent", Severity: SeverityWarning,
				Title: fmt.Sprintf("relay %s last answered %s ago", r.Name, s.now.Sub(r.LastEcho).Round(time.Second)),
				Fix:   "check that overlayd runs on the relay and that its port is open there and here, UDP or TCP",
			})
		}
	}
	if len(silent) > 0 && !sound {
		silent[0].Severity = SeverityError
	}
	return append(items, silent...)
}

func relayStale(r underlay.RelayStatus, now time.Time) bool {
	return r.Transport != underlay.TransportLocal && stale(r.LastEcho, relayProof, now)
}
