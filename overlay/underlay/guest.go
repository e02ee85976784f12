package underlay

import (
	"crypto/subtle"
	"hash"
	"hash/maphash"
	"net"
	"net/netip"

	"golang.org/x/crypto/blake2s"
	"golang.zx2c4.com/wireguard/conn"

	"overlayd/overlay/relay"
)

// guest is where a stock WireGuard is, and WireGuard's Endpoint for it: an
// address, as its own sockets would give it. WireGuard moves such a peer to
// whatever address its authentic datagrams come from.
type guest struct {
	at   netip.AddrPort // set by newGuest, then read-only, as all here
	name string
	raw  []byte // what cookies are bound to
}

var _ conn.Endpoint = (*guest)(nil)

func newGuest(at netip.AddrPort) *guest {
	raw, err := at.MarshalBinary()
	if err != nil {
		panic("internal error: an address does not marshal: " + err.Error())
	}
	return &guest{at: at, name: at.String(), raw: raw}
}

func (g *guest) ClearSrc()           {}
func (g *guest) SrcToString() string { return "" }
func (g *guest) SrcIP() netip.Addr   { return netip.Addr{} }
func (g *guest) DstToString() string { return g.name }
func (g *guest) DstToBytes() []byte  { return g.raw }
func (g *guest) DstIP() netip.Addr   { return g.at.Addr() }

// sendGuest sends to a guest by the relay in this process.
func (b *Bind) sendGuest(bufs [][]byte, ep conn.Endpoint) error {
	g, ok := ep.(*guest)
	if !ok || b.o.Own == nil {
		return conn.ErrWrongEndpointType
	}
	b.o.Own.SendGuest(g.at, bufs)
	return nil
}

// guestsKnown is how many guests' endpoints are kept at hand. Beyond that, or when
// two fall into one place, one is made anew when its next datagram comes.
const guestsKnown = 1 << 10

// guestReceiver gives WireGuard what comes to the relay in this process from who
// is no node. An initiation that does not show the key of this machine's device
// is dropped: whoever does not know it gets no answer and costs one hash.
type guestReceiver struct {
	b     *Bind
	port  *relay.Port
	src   []netip.AddrPort
	seed  maphash.Seed
	known [guestsKnown]*guest
	own   *ownKey   // whose mac is; nil: nobody's
	mac   hash.Hash // MAC1 of a message to this device
	sum   [blake2s.Size128]byte
}

func newGuestReceiver(b *Bind, p *relay.Port) *guestReceiver {
	return &guestReceiver{b: b, port: p, src: make([]netip.AddrPort, batchSize), seed: maphash.MakeSeed()}
}

// heed makes mac that of the key that this machine's device has now; false: it
// has none.
func (r *guestReceiver) heed() bool {
	own := r.b.own.Load()
	if own == nil || own == r.own {
		return own != nil
	}
	key := blake2s.Sum256(append([]byte("mac1----"), own.public.Bytes()...)) // the paper's section 5.4.4
	mac, err := blake2s.New128(key[:])
	if err != nil {
		panic("internal error: a key of 32 bytes is too long: " + err.Error())
	}
	r.own, r.mac = own, mac
	return true
}

// receive is a conn.ReceiveFunc.
func (r *guestReceiver) receive(bufs [][]byte, sizes []int, eps []conn.Endpoint) (int, error) {
	for {
		n, err := r.port.ReceiveGuests(bufs, sizes, r.src[:min(len(bufs), len(r.src))])
		if err != nil {
			return 0, net.ErrClosed
		}
		used := 0
		for i := range n {
			if b := bufs[i][:sizes[i]]; b[0] == typeInitiation && !r.addressed(b) {
				r.b.count.add(dropStranger, 1)
				sizes[i], eps[i] = 0, nil
				continue
			}
			eps[i] = r.guest(r.src[i])
			used++
		}
		if used > 0 {
			return n, nil
		}
	}
}

// The parts of an initiation: what MAC1 is of, and MAC1.
const (
	initiationMAC1 = 116
	initiationMAC2 = 132
	initiationSize = 148
)

// addressed reports whether an initiation is for this machine's device.
func (r *guestReceiver) addressed(b []byte) bool {
	if len(b) != initiationSize || !r.heed() {
		return false
	}
	r.mac.Reset()
	r.mac.Write(b[:initiationMAC1])
	return subtle.ConstantTimeCompare(r.mac.Sum(r.sum[:0]), b[initiationMAC1:initiationMAC2]) == 1
}

// guest returns the endpoint of a source.
func (r *guestReceiver) guest(src netip.AddrPort) *guest {
	at := &r.known[maphash.Comparable(r.seed, src)%guestsKnown]
	if *at == nil || (*at).at != src {
		*at = newGuest(src)
	}
	return *at
}
