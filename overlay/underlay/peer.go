package underlay

import (
	"crypto/sha256"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"golang.zx2c4.com/wireguard/conn"

	"overlayd/overlay/key"
	"overlayd/overlay/relay"
)

// Peer is another node, as the map has it.
type Peer struct {
	ID    string // stays when the key changes, and the paths with it; empty: the key tells who it is
	Key   key.Public
	Label relay.Label
	At    []Place // the relays at which the map says it is; nil: unknown

	// AtRelay says that the peer is the relay's own machine: the way to it by the
	// relay is direct already.
	AtRelay bool
}

// Place is a relay at which a node can be reached.
type Place struct {
	Relay relay.Label   // of the relay's own node
	Cost  time.Duration // the node's round trip to the relay, more by TLS; 0: unknown
}

// Endpoint returns the string that names a peer to ParseEndpoint.
func Endpoint(k key.Public) string { return k.Hex() }

// peer is a Peer at work, and WireGuard's Endpoint for it. There is one per
// node, for as long as anybody holds it.
type peer struct {
	addr netip.Addr // stands for the peer wherever WireGuard wants an address; set by newPeer, then read-only
	raw  []byte     // addr's bytes
	name atomic.Pointer[string]

	way    atomic.Pointer[way] // never nil
	talks  atomic.Bool         // data was sent since the finder's last turn
	asleep atomic.Bool         // the finder waits for data to be sent
	detour atomic.Bool         // since the finder's last turn it was told of data that took the relay
	big    atomic.Bool         // a long datagram was sent since the last turn

	byRelay tally // datagrams by the relay

	mu      sync.Mutex // guards the rest
	key     key.Public
	held    held
	label   relay.Label
	relayed *way      // by the relays, whatever else there is
	via     via       // chooses them
	route   route     // what it chose
	roads   *roads    // of which; nil: no longer in the map
	again   time.Time // when it chooses again; zero: not by itself

	presence []presence // where the peer said to be; nil: unknown
	mapped   []Place    // the map's last word of it
	teller   teller
	talkedAt time.Time // when data to the peer was last seen

	suspected time.Time // when a handshake by the relay last put the direct path in doubt

	finder *finder // nil: no direct paths are looked for
	seal   *seal   // made when first needed; nil: none can be made, or not yet
	next   time.Time
	proofs int // of the finder, as last published

	relayGauge relayGauge
	full       int // the longest datagram that WireGuard makes
	mtu        int // as last told, see fit
}

var _ conn.Endpoint = (*peer)(nil)

func newPeer(k key.Public) *peer {
	sum := sha256.Sum256(k.Bytes())
	addr := [16]byte{0xfd, 'o', 'v', 'l'} // a unique local address (RFC 4193) that no packet carries
	copy(addr[4:], sum[:])
	p := &peer{full: fullSize(0), key: k, addr: netip.AddrFrom16(addr), raw: addr[:]}
	name := Endpoint(k)
	p.name.Store(&name)
	p.relayed = &way{reason: reasonUnknownPeer}
	p.way.Store(p.relayed)
	p.asleep.Store(true)
	return p
}

func (p *peer) ClearSrc()           {}
func (p *peer) SrcToString() string { return "" }
func (p *peer) SrcIP() netip.Addr   { return netip.Addr{} }
func (p *peer) DstToString() string { return *p.name.Load() }
func (p *peer) DstToBytes() []byte  { return p.raw }
func (p *peer) DstIP() netip.Addr   { return p.addr }

// rekey gives the peer another key. It goes on where it is: its addresses have
// been proved, and it is asked again with the new key.
func (p *peer) rekey(k key.Public) {
	p.mu.Lock()
	defer p.mu.Unlock()
	name := Endpoint(k)
	p.name.Store(&name)
	p.key, p.seal = k, nil
	p.mtu = 0 // who was told of it knew the old key
}

// send sends by a way that has a carrier.
func (p *peer) send(w *way, bufs [][]byte) (dropped int) {
	if w.relayed == nil || w.both {
		p.byRelay.sent.Add(uint64(len(bufs)))
	}
	return w.carrier.send(w.label, bufs)
}

// hold keeps datagrams until there is a way.
func (p *peer) hold(now time.Time, bufs [][]byte) (dropped int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	for _, b := range bufs {
		dropped += p.held.add(now, b)
	}
	return dropped
}

// expire drops what has been held too long.
func (p *peer) expire(now time.Time) (dropped int) {
	p.mu.Lock()
	defer p.mu.Unlock()
	return p.held.expire(now)
}

// flush sends what was held, if there is a way now.
func (p *peer) flush(now time.Time) (dropped int) {
	w := p.way.Load()
	if w.carrier == nil {
		return 0
	}
	p.mu.Lock()
	dropped = p.held.expire(now)
	bufs := p.held.take()
	p.mu.Unlock()
	if len(bufs) > 0 {
		dropped += p.send(w, bufs)
	}
	return dropped
}
