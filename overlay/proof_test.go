package overlay

import (
	"testing"
	"time"

	"overlayd/overlay/key"
	"overlayd/overlay/tunnel"
	"overlayd/overlay/underlay"
)

// Every good word turns when its proof is older than three intervals.
func TestProofs(t *testing.T) {
	for _, c := range []struct {
		name                  string
		heard, echo           time.Duration // ago
		state, control, relay string
		health                string // ID of the only item
	}{
		{"all proved just now", time.Second, time.Second, StateReady, "connected", "up", ""},
		{"at the limit", controlProof, relayProof, StateReady, "connected", "up", ""},
		{"the coordinator fell silent", controlProof + time.Second, time.Second, StateDegraded, "degraded", "up", "coordinator_silent"},
		{"the relay fell silent", time.Second, relayProof + time.Second, StateDegraded, "connected", "degraded", "relay_silent"},
	} {
		t.Run(c.name, func(t *testing.T) {
			s := testSnapshot()
			s.heard = testNow.Add(-c.heard)
			s.relays[0].LastEcho = testNow.Add(-c.echo)
			out := s.status()
			if out.State != c.state || out.Network.Control.State != c.control || out.Relays[0].State != c.relay {
				t.Errorf("%s, control %s, relay %s", out.State, out.Network.Control.State, out.Relays[0].State)
			}
			if got := out.Relays[0].ProofAgeMS; got == nil || *got != c.echo.Milliseconds() {
				t.Errorf("relay's proof: %v", got)
			}
			if got := out.Network.Control.ProofAgeMS; got == nil || *got != c.heard.Milliseconds() {
				t.Errorf("control's proof: %v", got)
			}
			if c.health == "" && len(out.Health) > 0 || c.health != "" && (len(out.Health) != 1 || out.Health[0].ID != c.health) {
				t.Errorf("health %+v", out.Health)
			}
		})
	}
}

// A peer that is sent something and does not answer is degraded in time, one to
// which nothing is sent is idle, however long.
func TestPeerProofs(t *testing.T) {
	k := key.NewPrivate().Public()
	var rx, tx uint64
	var echoes map[key.Public]echo
	now := testNow
	pass := func(d time.Duration, dtx, drx uint64) {
		for end := now.Add(d); now.Before(end); {
			now = now.Add(lookEvery)
			tx, rx = tx+dtx, rx+drx
			echoes = lookAt(echoes, map[key.Public]tunnel.Stat{k: {TxBytes: tx, RxBytes: rx}}, now)
		}
	}
	want := func(when string, online bool, word string) {
		t.Helper()
		if got := peerState(online, false, echoes[k], echoes[k].heard, now); got != word {
			t.Errorf("%s: %s, want %s", when, got, word)
		}
	}
	want("at first", true, PeerIdle)
	want("at first, away", false, PeerOffline)
	pass(10*time.Second, 100, 100)
	want("talking", true, PeerAnswering)
	want("talking, the coordinator does not see it", false, PeerAnswering)
	pass(awayProof, 0, 0)
	want("silent for a moment, the coordinator does not see it", false, PeerAnswering)
	pass(lookEvery, 0, 0)
	want("silent for a moment", true, PeerAnswering)
	want("silent for a moment, and away", false, PeerOffline)
	pass(time.Hour, 0, 0)
	want("quiet", true, PeerIdle)
	pass(lookEvery, 100, 100)
	pass(lookEvery, keepaliveBytes, 0)
	pass(time.Hour, 0, 0)
	want("quiet after our keepalive", true, PeerIdle)
	pass(peerProof, 100, 0)
	want("unanswered so far", true, PeerIdle)
	pass(2*lookEvery, 100, 0)
	want("unanswered", true, ProofDegraded)
	want("unanswered, and away", false, PeerOffline)
	pass(lookEvery, 0, 100)
	want("it answers", true, PeerAnswering)
	pass(peerProof+lookEvery, 100, 0)
	pass(time.Hour, 0, 0)
	want("it never answered", true, ProofDegraded)
	tx, rx = 0, 0
	pass(lookEvery, 0, 0)
	want("a new tunnel, whose counters begin anew, proves nothing", true, ProofDegraded)
	pass(lookEvery, 0, 100)
	want("it answers by the new tunnel", true, PeerAnswering)
}

// TestSilentPeer: a peer that leaves probes unanswered is degraded sooner.
func TestSilentPeer(t *testing.T) {
	for name, c := range map[string]struct {
		heard  time.Duration // ago
		online bool
		want   string
	}{
		"a moment ago":             {awayProof, true, PeerAnswering},
		"some time ago":            {awayProof + time.Second, true, PeerUnanswered},
		"some time ago, and away":  {awayProof + time.Second, false, PeerOffline},
		"longer ago than anything": {time.Hour, true, PeerUnanswered},
	} {
		s := testSnapshot()
		gw := &s.m.Peers[0]
		gw.Online = c.online
		s.paths[gw.WireGuard] = underlay.Path{Kind: underlay.KindRelay, Reason: underlay.ReasonPeerSilent}
		s.stats[gw.WireGuard] = tunnel.Stat{LastHandshake: testNow.Add(-c.heard)}
		if got := s.status().Peers[0].State; got != c.want {
			t.Errorf("heard %s: %s, want %s", name, got, c.want)
		}
	}
}
