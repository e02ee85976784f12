package underlay

import "time"

// echoEvery is how often the way by the relay is asked for its round trip while
// it is in use. Two small datagrams each time are nothing beside what made the
// pair count as talking.
const echoEvery = 5 * time.Second

// echo asks for the round trip by the relay while that carries data.
func (f *finder) echo(now time.Time) (out []send) {
	if f.confirmed || f.noRelay || now.Sub(f.relay.pingAt) < echoEvery {
		return nil
	}
	return []send{f.ping(now, f.relay)}
}

// relayRTT is the round trip by the relay; 0: unknown, or long ago.
func (f *finder) relayRTT(now time.Time) time.Duration {
	if !f.relay.proved() || now.Sub(f.relay.provedAt) > 3*echoEvery {
		return 0
	}
	return f.relay.rtt
}

// rerouted forgets the round trip when the way by the relay is another one.
func (p *peer) rerouted(w *way) {
	if old := p.relayed; p.finder != nil && (old.path.RelayID != w.path.RelayID || old.path.Transport != w.path.Transport) {
		p.finder.relay.rtt, p.finder.relay.provedAt = 0, time.Time{}
	}
}

// onlyTLS reports whether no relay answers by UDP, while one does by TLS: a peer
// that is told so can say why there is no direct path.
func (b *Bind) onlyTLS() bool {
	some := false
	for _, l := range b.snapshot() {
		l.mu.Lock()
		tls, udp := l.race.tls, l.port != nil || l.up && !l.race.tls
		l.mu.Unlock()
		if udp {
			return false
		}
		some = some || tls
	}
	return some
}
