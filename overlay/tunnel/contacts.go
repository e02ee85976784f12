package tunnel

import (
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"
	"golang.zx2c4.com/wireguard/device"

	"overlayd/overlay/key"
)

// contacts knows what passed between this device and its peers besides packets:
// it stands where both edges meet, since WireGuard itself tells nobody.
//
// It finds the peers that still use a session which ended when this device's
// predecessor did. WireGuard drops their packets without a word, and they notice
// after fifteen seconds. They are known by their first message: a peer that
// begins with data means a session that we do not have. Who can make a peer's
// endpoint send that can make us wish for one handshake with the peer, once.
type contacts struct {
	stranded func(key.Public) // set by newContacts, then read-only

	byName sync.Map // string, an endpoint's name, to *contact

	mu    sync.Mutex // guards byKey, and the changes of byName
	byKey map[key.Public]*contact
}

// contact is one peer.
type contact struct {
	key  key.Public // these are set by follow, then read-only
	name string
	met  atomic.Bool // something has come from it

	mu    sync.Mutex // guards shook; held while WireGuard forgets a handshake
	shook time.Time  // we last sent it an initiation, or got an answer to one; zero: never
}

// shake takes note of a message of a handshake that we began.
func (n *contact) shake(now time.Time) {
	n.mu.Lock()
	defer n.mu.Unlock()
	n.shook = now
}

func newContacts(stranded func(key.Public)) *contacts {
	return &contacts{stranded: stranded, byKey: map[key.Public]*contact{}}
}

// follow makes the contacts those of want; those that stay are kept.
func (c *contacts) follow(want []Peer) {
	c.mu.Lock()
	defer c.mu.Unlock()
	stays := make(map[key.Public]bool, len(want))
	for _, p := range want {
		if p.Device { // it has no name, and notices a lost session by itself
			continue
		}
		stays[p.Key] = true
		if old := c.byKey[p.Key]; old == nil || old.name != p.Endpoint {
			n := &contact{key: p.Key, name: p.Endpoint}
			c.byKey[p.Key] = n
			c.byName.Store(n.name, n)
		}
	}
	for k, old := range c.byKey {
		if !stays[k] {
			delete(c.byKey, k)
			c.byName.CompareAndDelete(old.name, old)
		}
	}
}

// received takes note of who sent a batch.
func (c *contacts) received(bufs [][]byte, sizes []int, eps []conn.Endpoint, now func() time.Time) {
	last := "" // batches come from few
	for i, size := range sizes {
		if size == 0 {
			continue
		}
		name, kind := eps[i].DstToString(), bufs[i][0]
		if name == last && kind != device.MessageResponseType {
			continue
		}
		last = name
		v, ok := c.byName.Load(name)
		if !ok {
			continue
		}
		n := v.(*contact)
		if kind == device.MessageResponseType {
			n.shake(now())
		}
		if !n.met.Swap(true) && kind == device.MessageTransportType {
			c.stranded(n.key)
		}
	}
}

// sends takes note of a batch that goes to a peer.
func (c *contacts) sends(bufs [][]byte, ep conn.Endpoint, now func() time.Time) {
	if len(bufs) == 0 || len(bufs[0]) == 0 || bufs[0][0] != device.MessageInitiationType {
		return
	}
	if v, ok := c.byName.Load(ep.DstToString()); ok {
		v.(*contact).shake(now())
	}
}

// forget calls f, which makes WireGuard forget what it has of a handshake and a
// session with a peer, unless there is a handshake under way: then it returns
// since when, and else the zero value.
//
// WireGuard opens an answer first and makes a session of it then. What is forgotten
// in between takes with it the number that the peer addresses its data to, not the
// session: ours arrives, the peer's is dropped, and we notice after fifteen
// seconds. So an answer that comes during f waits, and f does not follow upon one.
func (c *contacts) forget(k key.Public, now func() time.Time, f func()) (busy time.Time) {
	c.mu.Lock()
	n := c.byKey[k]
	c.mu.Unlock()
	if n == nil {
		f()
		return time.Time{}
	}
	n.mu.Lock()
	defer n.mu.Unlock()
	if since := now().Sub(n.shook); since >= 0 && since < yieldFor { // negative: the clock was set back
		return n.shook
	}
	f()
	return time.Time{}
}
