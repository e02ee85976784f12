package underlay

import (
	"testing"

	"overlayd/overlay/key"
)

// A peer with another key and the same ID is the same peer to WireGuard, under
// the key's name; one with another ID is another. What is sealed is sealed with
// the keys of today.
func TestRekey(t *testing.T) {
	own := key.NewPrivate()
	b := New(Options{Key: own})
	first, second, third := key.NewPrivate(), key.NewPrivate(), key.NewPrivate()
	at := func(k key.Private) *peer {
		t.Helper()
		ep, err := b.ParseEndpoint(Endpoint(k.Public()))
		if err != nil {
			t.Fatal(err)
		}
		return ep.(*peer)
	}
	b.SetPeers([]Peer{{ID: "n1", Key: first.Public(), Label: 11}})
	p := at(first)
	p.mu.Lock()
	p.sealed(b)
	p.mu.Unlock()
	b.SetPeers([]Peer{{ID: "n1", Key: second.Public(), Label: 11}})
	if at(second) != p || p.DstToString() != Endpoint(second.Public()) || b.table.Load().peers[11] != p {
		t.Error("another key made it another peer")
	}
	talks := func(mine, theirs key.Private) {
		t.Helper()
		p.mu.Lock()
		s := p.sealed(b)
		p.mu.Unlock()
		far, err := newSeal(theirs, mine.Public())
		if err != nil {
			t.Fatal(err)
		}
		if _, err := far.open(s.close(11, probe{kind: probePing})); err != nil {
			t.Errorf("the peer cannot open what is sealed for it: %v", err)
		}
		if _, err := s.open(far.close(11, probe{kind: probePing})); err != nil {
			t.Errorf("what the peer sealed cannot be opened: %v", err)
		}
	}
	talks(own, second)
	next := key.NewPrivate()
	b.SetKey(next)
	talks(next, second)
	b.SetPeers([]Peer{{ID: "n2", Key: third.Public(), Label: 11}})
	if at(third) == p {
		t.Error("another node has the peer of one that is gone")
	}
}
