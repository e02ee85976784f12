package underlay

import (
	"fmt"
	"os"
	"strings"
	"testing"
	"time"

	"overlayd/overlay/netsim"
)

// TestPairings runs every kind of NAT against every other, with a relay that is
// reached by UDP or TLS: cones meet with anything but ports at random, everything
// else works by the relay, and a node without UDP reaches it by TLS.
func TestPairings(t *testing.T) {
	var table strings.Builder
	fmt.Fprintf(&table, "%-17s%-17s%-11s%-11s%-9s%s\n", "left", "right", "left by", "right by", "settled", "first datagram")
	for _, left := range netsim.Kinds {
		for _, right := range netsim.Kinds {
			t.Run(fmt.Sprintf("%s, %s", left, right), func(t *testing.T) {
				l := newLand(t, 1, left, right)
				a, b := l.nodes[0].peers[1], l.nodes[1].peers[0]
				a.every, b.every = 50*time.Millisecond, 50*time.Millisecond
				start := l.w.Now()
				var settled, first time.Duration
				was := ""
				for l.w.Now().Sub(start) < 30*time.Second {
					l.w.Run(10 * time.Millisecond)
					if now := a.path() + b.path(); now != was {
						was, settled = now, l.w.Now().Sub(start)
					}
					if first == 0 && a.gotN > 0 && b.gotN > 0 {
						first = l.w.Now().Sub(start)
					}
				}
				fmt.Fprintf(&table, "%-17s%-17s%-11s%-11s%-9v%v\n", left, right, a.path(), b.path(), settled, first)
				want := func(self netsim.Kind) string {
					switch {
					case meets(left, right):
						return "direct"
					case self == netsim.Blocked:
						return "relay TLS"
					}
					return "relay UDP"
				}
				if lucky(left, right) && a.path() == "direct" && b.path() == "direct" {
					return
				}
				if a.path() != want(left) || b.path() != want(right) {
					t.Errorf("%s, %s, want %s, %s", a.path(), b.path(), want(left), want(right))
				}
				limit := time.Second
				if left == netsim.Symmetric || right == netsim.Symmetric || left == netsim.Blocked || right == netsim.Blocked {
					limit = 2 * time.Second
				}
				if settled > limit || first > limit {
					t.Errorf("settled after %v, first datagrams after %v", settled, first)
				}
				sent, got := a.sentN, b.gotN
				l.w.Run(10 * time.Second)
				if sent, got = a.sentN-sent, b.gotN-got; got < sent-2 {
					t.Errorf("then %d of %d arrived", got, sent)
				}
			})
		}
	}
	t.Log("\n" + table.String())
}

// climate is a land's history: what happens to it at random, and what must hold
// all the same.
type climate struct {
	*land
	relayAt time.Time // the relay runs, or does not, since

	direct [][]time.Time // by pair: when both used a direct path last
	worth  [][]time.Time // by pair: since when there is a path, and both talk; zero: not
	reset  []time.Time   // by node: when its NAT forgot all, or it was started last
	worst  time.Duration // the longest silence while there was a path
	counts map[string]int
	latest []string // events, for who has to find out
}

const (
	// flowsWithin is how long there is a path before datagrams must flow.
	flowsWithin = 10 * time.Second
	// bearable is the loss with which a path still counts as one.
	bearable = 0.3
)

func newClimate(t testing.TB, seed uint64, kinds ...netsim.Kind) *climate {
	c := &climate{land: newLand(t, seed, kinds...), counts: map[string]int{}, reset: make([]time.Time, len(kinds))}
	for range kinds {
		c.direct = append(c.direct, make([]time.Time, len(kinds)))
		c.worth = append(c.worth, make([]time.Time, len(kinds)))
	}
	return c
}

// change makes one thing worse, or some better.
func (c *climate) change() {
	random := c.w.Rand
	i := random.IntN(len(c.nodes))
	j := (i + 1 + random.IntN(len(c.nodes)-1)) % len(c.nodes)
	n := c.nodes[i]
	w := &c.weather
	event := []string{
		"cut", "cut one way", "loss", "access loss", "UDP blocked", "TCP blocked", "NAT reset",
		"node restarted", "relay restarted", "burst", "idle", "calm", "calm", "calm",
	}[random.IntN(14)]
	c.counts[event]++
	c.latest = append(c.latest[max(0, len(c.latest)-9):], fmt.Sprintf("%v: %s %d %d", c.w.Now().Sub(simStart), event, i+1, j+1))
	switch event {
	case "cut":
		w.path[[2]int{i, j}], w.path[[2]int{j, i}] = 1, 1
	case "cut one way":
		w.path[[2]int{i, j}] = 1
	case "loss":
		w.path[[2]int{i, j}], w.path[[2]int{j, i}] = random.Float64()*0.5, random.Float64()*0.5
	case "access loss":
		w.access[i] = random.Float64() * bearable / 2
	case "UDP blocked":
		w.udp[i] = true
	case "TCP blocked":
		w.tcp[i] = true
	case "NAT reset":
		n.nat.Forget()
		if n.stream != nil {
			n.stream.dead = true
		}
		c.reset[i] = c.w.Now()
		c.forget(i, c.direct)
		c.forget(i, c.worth) // what was there is gone, and something new there
	case "node restarted":
		c.restart(n, time.Duration(random.IntN(20))*time.Second)
	case "relay restarted":
		c.restartRelay(time.Duration(random.IntN(120)) * time.Second)
	case "burst":
		if p := n.peers[j]; p != nil {
			p.every = 20 * time.Millisecond
			life := n.life
			c.w.After(20*time.Second, func() {
				if n.life == life {
					p.every = landEvery
				}
			})
		}
	case "idle":
		p := n.peers[j]
		p.every = 0
		life := n.life
		c.w.After(2*time.Minute, func() {
			if n.life == life {
				p.every, p.talking = landEvery, c.w.Now()
			}
		})
	case "calm":
		clear(w.path)
		clear(w.access)
		clear(w.udp)
		clear(w.tcp)
	}
}

func (c *climate) restart(n *landNode, after time.Duration) {
	if !n.running {
		return
	}
	n.stop()
	c.reset[n.index] = c.w.Now()
	c.forget(n.index, c.direct)
	c.forget(n.index, c.worth)
	c.w.After(after, n.start)
}

// forget takes back what is known of all pairs of a node.
func (c *climate) forget(i int, pairs [][]time.Time) {
	for k := range pairs {
		pairs[i][k], pairs[k][i] = time.Time{}, time.Time{}
	}
}

func (c *climate) restartRelay(after time.Duration) {
	if !c.relay.running {
		return
	}
	c.relay.stop()
	c.relayAt = c.w.Now()
	c.w.After(after, func() { c.relay.start(); c.relayAt = c.w.Now() })
}

// observe looks at every pair, once a second.
func (c *climate) observe() {
	now := c.w.Now()
	for i, a := range c.nodes {
		for j, b := range c.nodes {
			if i >= j {
				continue
			}
			p, q := a.peers[j], b.peers[i]
			exists := a.running && b.running && c.exists(now, p, q)
			for _, one := range []*landPeer{p, q} {
				from, to := one.other.index, one.node.index // what one receives
				since := &c.worth[from][to]
				if !exists || !a.running || !b.running || b.peers[i].every == 0 || a.peers[j].every == 0 {
					*since = time.Time{}
					continue
				}
				if since.IsZero() {
					*since = now
				}
				if from := later(*since, one.lastAt); now.Sub(from) > flowsWithin {
					c.t.Fatalf("%v after the start: nothing came from %s to %s for %v, though there is a path for %v; %s, %s; weather %+v, relay up %t; %s",
						now.Sub(simStart), one.other.public, one.node.public, now.Sub(one.lastAt), now.Sub(*since), one.path(), one.other.peers[to].path(), c.weather, c.relay.running, c.describe(one))
				} else {
					c.worst = max(c.worst, now.Sub(from))
				}
			}
		}
	}
}

func (c *climate) describe(p *landPeer) string {
	n, o := p.node, p.other
	return fmt.Sprintf("relay up %t %t, tls %t %t, sessions %v %v, dials %d %d, stream %t %t, dialing %t %t, next %v %v; %q %+v %+v", n.relayUp, o.relayUp, n.race.tls, o.race.tls, n.session.Status().State, o.session.Status().State, n.redials, o.redials, n.stream != nil, o.stream != nil, n.dialing, o.dialing, n.nextLeg.Sub(simStart), o.nextLeg.Sub(simStart), c.latest, c.relay.sessions[n.label], c.relay.sessions[o.label])
}

var simStart = time.Date(2026, 1, 1, 0, 0, 0, 0, time.UTC)

// exists reports whether a path exists between two that run: by the relay, or a
// direct one that they know of, whose NATs have not forgotten it.
func (c *climate) exists(now time.Time, p, q *landPeer) bool {
	a, b := p.node.index, q.node.index
	w := &c.weather
	direct := &c.direct[a][b]
	passes := !w.udp[a] && !w.udp[b] && w.path[[2]int{a, b}] <= bearable && w.path[[2]int{b, a}] <= bearable
	reset := later(c.reset[a], c.reset[b]).Add(time.Second)
	uses := func(p *landPeer) bool {
		return p.finder.use != nil && p.finder.use.fresh(now) && p.finder.use.heardAt.After(reset)
	}
	if uses(p) && uses(q) {
		*direct = now
	}
	known := !direct.IsZero() && (now.Sub(*direct) < 15*time.Second || !p.node.relayUp && !q.node.relayUp)
	if known && (now.Sub(*direct) > 15*time.Second) {
		// While there is no relay they ask each other all the time, so that no
		// NAT forgets; one that is silent itself asks nobody.
		known = p.every > 0 && q.every > 0
	}
	if !known {
		*direct = time.Time{}
	}
	reached := func(n int) bool { return !w.udp[n] && c.nodes[n].nat.Kind != netsim.Blocked || !w.tcp[n] }
	return c.relay.running && reached(a) && reached(b) || known && passes
}

// bounded checks that nothing grows.
func (c *climate) bounded() {
	for _, n := range c.nodes {
		if len(n.forecast.opened) > mostOpenings {
			c.t.Fatalf("%d destinations are remembered", len(n.forecast.opened))
		}
		for _, p := range n.peers {
			if p == nil {
				continue
			}
			f := p.finder
			if len(f.spots) > mostSpots || len(f.seen) > recentIDs || len(f.seenAll) > recentIDs || len(f.relay.pings) > mostPings {
				c.t.Fatalf("%d spots, %d ids, %d pings by the relay", len(f.spots), len(f.seen), len(f.relay.pings))
			}
			for _, s := range f.spots {
				if len(s.pings) > mostPings {
					c.t.Fatalf("%d pings without an answer", len(s.pings))
				}
			}
		}
	}
	if n := c.w.Pending(); n > 2000 {
		c.t.Fatalf("%d events are planned", n)
	}
}

// TestClimate runs for a hundred thousand virtual seconds in all, or with
// LAB_LONG for a million, through random cuts, losses, NAT resets, blocked UDP and TCP, and restarts of nodes and the relay.
// Whenever there is some path for ten seconds, datagrams flow; no state grows;
// and no address is probed more than note says.
func TestClimate(t *testing.T) {
	const lands = 10
	each := 10_000 * time.Second
	switch {
	case os.Getenv("LAB_LONG") != "":
		each = 100_000 * time.Second
	case testing.Short():
		each = 2_000 * time.Second
	}
	kinds := [][]netsim.Kind{
		{netsim.PortRestricted, netsim.PortRestricted, netsim.None},
		{netsim.FullCone, netsim.Symmetric, netsim.PortRestricted},
		{netsim.Restricted, netsim.SymmetricRandom, netsim.FullCone},
		{netsim.Blocked, netsim.PortRestricted, netsim.Symmetric},
		{netsim.SymmetricRandom, netsim.SymmetricRandom, netsim.Blocked},
	}
	for seed := range uint64(lands) {
		t.Run(fmt.Sprint(seed), func(t *testing.T) {
			t.Parallel()
			c := newClimate(t, seed, kinds[seed%uint64(len(kinds))]...)
			next := c.w.Now()
			for c.w.Now().Sub(simStart) < each {
				if !c.w.Now().Before(next) {
					c.change()
					c.bounded()
					next = c.w.Now().Add(time.Duration(1+c.w.Rand.IntN(90)) * time.Second)
				}
				c.w.Run(time.Second)
				c.observe()
			}
			t.Logf("the longest silence while there was a path: %v; %v", c.worst, c.counts)
		})
	}
}
