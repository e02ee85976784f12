package relay

import (
	"crypto/rand"
	"encoding/binary"
	"net/netip"
	"time"

	"overlayd/overlay/key"
)

const (
	// forgedPerSource limits ATTACHes with a wrong MAC per source. Right ones
	// are not counted: however many nodes share an address, they all get in.
	// Beyond it a source of right ones, whose address somebody else may use in
	// forged ones, counts as a stranger, and another one is not listened to.
	forgedPerSource, forgedBurst = 200, 1000
	// strangersTotal limits how many ATTACHes have their MACs looked at over all
	// sources, which can be forged: at two to four HMACs, some two microseconds,
	// it is a fifth of a core. Below that a flood keeps nobody out.
	strangersTotal, strangersBurst = 100_000, 50_000
	// membersTotal is the same for sources that showed a right MAC within
	// memberFor: whatever strangers do takes nothing from it.
	membersTotal, membersBurst = 100_000, 50_000
	memberFor                  = 24 * time.Hour
	// membersKnown is how many sources are remembered: 512 KiB.
	membersKnown = 1 << 16
	// unknownPerSource limits UNKNOWNs per address and port. A node needs one.
	unknownPerSource, unknownBurst  = 10, 3
	unknownTotal, unknownTotalBurst = 20_000, 20_000
	// pingPerSource limits PINGs per address and port, before their MAC is
	// looked at. A node in doubt sends ten in a second.
	pingPerSource, pingBurst = 500, 500
	// greetPerSource limits WireGuard's initiations from who is no node: a device
	// sends one in two minutes, and one in five seconds in vain, and a hundred may
	// share an address.
	greetPerSource, greetBurst = 50, 100
	// keepaliveTime is what READY recommends, in case a node has no opinion.
	keepaliveTime = keepaliveMax
)

// door answers control messages: it lets nodes in. It does no I/O.
type door struct {
	secret key.Secret // set by newDoor, then read-only, as all here
	boot   uint64
	start  time.Time // all durations count from here
	table  *table
	tokens *tokens

	forgedHosts              *limiter
	strangers, members       *limiter
	known                    *memory // sources of right MACs
	unknownPorts, unknownAll *limiter
	pingPorts                *limiter
	probePorts, probeAll     *limiter
	greetHosts               *limiter
}

func newDoor(secret key.Secret, start time.Time, t *table) *door {
	var boot [8]byte
	rand.Read(boot[:]) // never fails
	return &door{
		secret:       secret,
		boot:         binary.LittleEndian.Uint64(boot[:]),
		start:        start,
		table:        t,
		tokens:       newTokens(),
		forgedHosts:  newLimiter(bySource, forgedPerSource, forgedBurst),
		strangers:    newLimiter(forAll, strangersTotal, strangersBurst),
		members:      newLimiter(forAll, membersTotal, membersBurst),
		known:        newMemory(membersKnown, memberFor),
		unknownPorts: newLimiter(bySource, unknownPerSource, unknownBurst),
		unknownAll:   newLimiter(forAll, unknownTotal, unknownTotalBurst),
		pingPorts:    newLimiter(bySource, pingPerSource, pingBurst),
		probePorts:   newLimiter(bySource, probesPerPort, probeBurst),
		greetHosts:   newLimiter(bySource, greetPerSource, greetBurst),
		probeAll:     newLimiter(forAll, probesTotal, probesTotalBurst),
	}
}

// control takes a control message from src. It appends the answer, if there is
// one, to b, and returns what happened.
func (d *door) control(b []byte, now time.Time, src origin, frame []byte) ([]byte, event) {
	switch frameType(frame) {
	case frameAttach:
		return d.attach(b, now, src, frame)
	case framePing:
		return d.ping(b, now, src, frame)
	}
	return b, dropControl
}

func (d *door) attach(b []byte, now time.Time, src origin, frame []byte) ([]byte, event) {
	f := parseAttach(frame)
	ticket, err := ParseTicket(f.ticket[:])
	if err != nil {
		return b, dropTicket
	}
	since := now.Sub(d.start)
	host, member := d.forgedHosts.host(src.addr.Addr()), d.known.host(src.addr.Addr())
	counted, ok := d.listen(host, d.known.has(member, since), since)
	if !ok {
		return b, dropLimited
	}
	k := SessionKey(d.secret, f.ticket[:])
	if !authentic(k, frame) {
		return b, dropForged
	}
	if counted {
		d.forgedHosts.refund(host)
	}
	d.known.add(member, since)
	tokenAt, proved := time.Duration(0), false
	if f.token != (token{}) {
		tokenAt, proved = d.tokens.made(since, src, f)
	}
	if !proved {
		c := challenge{nonce: f.nonce, token: d.tokens.make(since, src, f), observed: src.addr}
		return c.Append(b, k), challenged
	}
	what, why := d.table.admit(since, now, admission{src, k, ticket, f.nonce, tokenAt})
	switch what {
	case attached, moved, repeated:
		r := ready{
			nonce:     f.nonce,
			boot:      d.boot,
			observed:  src.addr,
			lease:     uint16(leaseTime / time.Second),
			keepalive: uint16(keepaliveTime / time.Second),
		}
		return r.Append(b, k), what
	case refused:
		return goAway{f.nonce.session(), why}.Append(b, k), what
	}
	return b, what
}

// listen says whether to look at the MAC of an ATTACH from a host, and whether
// the host's allowance was charged for it.
func (d *door) listen(host uint64, known bool, since time.Duration) (counted, ok bool) {
	share := d.strangers
	switch counted = d.forgedHosts.allow(host, since); {
	case counted && known:
		share = d.members
	case !counted && !known:
		return false, false
	}
	if ok = share.allow(0, since); !ok && counted {
		d.forgedHosts.refund(host)
		counted = false
	}
	return counted, ok
}

func (d *door) ping(b []byte, now time.Time, src origin, frame []byte) ([]byte, event) {
	since := now.Sub(d.start)
	if !d.pingPorts.allow(d.pingPorts.port(src.addr), since) {
		return b, dropLimited
	}
	what, k := d.table.ping(since, src, frame)
	switch what {
	case ponged:
		f := parsePing(frame)
		return pong{f.session, f.count, src.addr, d.boot}.Append(b, k), what
	case dropNoSession:
		return d.unknown(b, now, src)
	}
	return b, what
}

// unknown appends the hint for an address that sent something but has no
// session, unless it was told just now.
func (d *door) unknown(b []byte, now time.Time, src origin) ([]byte, event) {
	since := now.Sub(d.start)
	if !d.unknownPorts.allow(d.unknownPorts.port(src.addr), since) || !d.unknownAll.allow(0, since) {
		return b, dropNoSession
	}
	return appendUnknown(b), unknownSent
}

// greets reports whether an initiation from who is no node is let in.
func (d *door) greets(now time.Time, src netip.AddrPort) bool {
	return d.greetHosts.allow(d.greetHosts.host(src.Addr()), now.Sub(d.start))
}
