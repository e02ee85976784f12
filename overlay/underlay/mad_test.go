package underlay

import (
	"math/rand/v2"
	"net/netip"
	"time"
)

// madPeer drives a finder by the bytes of a script.
type madPeer struct {
	random   *rand.Rand
	finder   *finder
	now      time.Time
	out      []send // what the finder sent last
	answered map[netip.AddrPort]bool
}

func newMadPeer(seed uint64) *madPeer {
	random := rand.New(rand.NewPCG(seed, 1))
	return &madPeer{
		random: random, now: time.Unix(1e9, 0), answered: map[netip.AddrPort]bool{},
		finder: newFinder(random, &locality{candidates: []netip.AddrPort{netip.MustParseAddrPort("10.0.0.1:1")}}),
	}
}

func (p *madPeer) addr() netip.AddrPort {
	return netip.AddrPortFrom(netip.AddrFrom4([4]byte{192, 0, 2, byte(p.random.IntN(4))}), uint16(p.random.IntN(20)))
}

func (p *madPeer) step(b byte) {
	var out []send
	switch m := (probe{id: p.finder.id()}); b % 8 {
	case 0, 1:
		p.now = p.now.Add(time.Duration(b) * 20 * time.Millisecond)
		out, _ = p.finder.Tick(p.now, b > 64)
	case 2:
		m.kind = probePing
		out, _ = p.finder.Handle(p.now, p.addr(), m)
	case 3:
		m.kind = probeCallMe
		for range b / 16 {
			m.candidates = append(m.candidates, p.addr())
		}
		out, _ = p.finder.Handle(p.now, netip.AddrPort{}, m)
	case 4: // an honest answer
		for _, s := range p.out {
			if s.m.kind == probePing {
				p.answered[s.to] = true
				p.finder.Handle(p.now, s.to, probe{kind: probePong, id: s.m.id, got: uint32(b)})
			}
		}
	case 5: // an answer from elsewhere
		for _, s := range p.out {
			if from := p.addr(); from != s.to {
				p.finder.Handle(p.now, from, probe{kind: probePong, id: s.m.id})
			}
		}
	case 6:
		for _, s := range p.finder.spots {
			s.tally.sent.Add(uint64(b))
		}
	case 7:
		p.finder.Kick(p.now)
		p.now = p.now.Add(time.Duration(b) * time.Minute)
	}
	if out != nil {
		p.out = out
	}
}
