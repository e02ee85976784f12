package overlay

import (
	"context"
	"encoding/binary"
	"fmt"
	"math/rand/v2"
	"net"
	"net/netip"
	"strings"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"

	"overlayd/overlay/coord"
	"overlayd/overlay/underlay"
)

const (
	// pingTimeout is how long an echo is waited for before it counts as lost.
	pingTimeout = 2 * time.Second
	// pingInterval is the pause between echoes when the caller names none.
	pingInterval = time.Second
	// pingSize is the payload of the ping everybody knows.
	pingSize = 56
)

// Pong is the answer to one echo request, or the lack of one.
type Pong struct {
	Seq  int
	Addr netip.Addr
	RTT  time.Duration
	Lost bool
	Path string // "relay vps udp", "direct udp 198.51.100.2:41641"
}

// pingTarget finds the address of a node's name, or reads an address.
func pingTarget(m *coord.Map, target string) (netip.Addr, error) {
	if a, err := netip.ParseAddr(target); err == nil {
		if !a.Is4() {
			return a, fmt.Errorf("ping %s: only IPv4 addresses can be pinged", target)
		}
		return a, nil
	}
	for _, n := range append([]coord.Node{m.Self}, m.Peers...) {
		if strings.EqualFold(n.Name, target) && len(n.Addrs) > 0 {
			return n.Addrs[0], nil
		}
	}
	return netip.Addr{}, fmt.Errorf("no node is called %q, and it is no address; `overlayd peers` lists the nodes", target)
}

// ping sends ICMP echo requests one after the other until count of them (0: no
// end) are answered or lost, ctx ends, or each returns an error.
func ping(ctx context.Context, addr netip.Addr, count int, interval time.Duration, each func(Pong) error) error {
	c, err := icmp.ListenPacket("ip4:icmp", "0.0.0.0")
	if err != nil {
		return fmt.Errorf("open ICMP socket: %w", err)
	}
	defer c.Close()
	stop := context.AfterFunc(ctx, func() { c.SetReadDeadline(time.Unix(1, 0)) })
	defer stop()
	if interval <= 0 {
		interval = pingInterval
	}
	p := pinger{conn: c, addr: addr, id: rand.N(1 << 16)}
	tick := time.NewTicker(interval)
	defer tick.Stop()
	for seq := 1; ; seq++ {
		pong, err := p.echo(seq)
		if ctx.Err() != nil {
			return nil
		}
		if err != nil {
			return err
		}
		if err := each(pong); err != nil {
			return err
		}
		if seq == count {
			return nil
		}
		select {
		case <-ctx.Done():
			return nil
		case <-tick.C:
		}
	}
}

type pinger struct {
	conn *icmp.PacketConn
	addr netip.Addr
	id   int
}

// echo sends one request and waits for its answer.
func (p *pinger) echo(seq int) (Pong, error) {
	pong := Pong{Seq: seq, Addr: p.addr, Lost: true}
	nonce := rand.Uint64()
	data := binary.BigEndian.AppendUint64(make([]byte, 0, pingSize), nonce)
	msg := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: p.id, Seq: seq & 0xffff, Data: data[:pingSize]}}
	b, err := msg.Marshal(nil)
	if err != nil {
		return pong, fmt.Errorf("encode echo: %w", err)
	}
	sent := time.Now()
	// A send that the kernel refuses (no route, no key yet) is a lost echo.
	if _, err := p.conn.WriteTo(b, &net.IPAddr{IP: p.addr.AsSlice()}); err != nil {
		return pong, nil
	}
	if err := p.conn.SetReadDeadline(sent.Add(pingTimeout)); err != nil {
		return pong, fmt.Errorf("wait for echo: %w", err)
	}
	buf := make([]byte, 1500)
	for {
		size, _, err := p.conn.ReadFrom(buf)
		if err != nil {
			return pong, nil // the deadline: lost
		}
		if p.answers(buf[:size], nonce) {
			pong.RTT, pong.Lost = time.Since(sent), false
			return pong, nil
		}
	}
}

// answers reports whether b is the reply to the request with this nonce.
func (p *pinger) answers(b []byte, nonce uint64) bool {
	m, err := icmp.ParseMessage(1, b) // 1 is ICMP for IPv4 in the protocol registry
	if err != nil || m.Type != ipv4.ICMPTypeEchoReply {
		return false
	}
	e, ok := m.Body.(*icmp.Echo)
	return ok && e.ID == p.id && len(e.Data) >= 8 && binary.BigEndian.Uint64(e.Data) == nonce
}

// pathTo says how packets reach an address: the path of the peer that carries it.
func (n *Node) pathTo(addr netip.Addr) string {
	v := n.look()
	if v.plan == nil || v.live == nil {
		return "-"
	}
	for _, a := range v.m.Self.Addrs {
		if a == addr {
			return "this machine"
		}
	}
	peer := v.plan.carrier(addr)
	if peer == nil {
		return "outside the overlay"
	}
	path := v.live.bind.Path(peer.Key)
	words := []string{path.Kind}
	for _, r := range v.m.Relays {
		if r.ID == path.RelayID && path.Kind == "relay" {
			words = append(words, r.Name)
		}
	}
	words = append(words, path.Transport)
	if path.Kind == underlay.KindDirect {
		words = append(words, path.Endpoint)
	}
	if !peer.owns(addr) {
		words = append(words, "via "+peer.Name)
	}
	return strings.Join(words, " ")
}

// carrier is the peer whose allowed prefixes match an address best; nil when
// none does.
func (p *Plan) carrier(addr netip.Addr) *PlanPeer {
	var best *PlanPeer
	bits := -1
	for i := range p.Peers {
		for _, prefix := range p.Peers[i].AllowedIPs {
			if prefix.Contains(addr) && prefix.Bits() > bits {
				best, bits = &p.Peers[i], prefix.Bits()
			}
		}
	}
	return best
}

// owns reports whether an address is the peer's own, not one behind it.
func (p *PlanPeer) owns(addr netip.Addr) bool {
	for _, prefix := range p.AllowedIPs {
		if prefix.Addr() == addr && prefix.IsSingleIP() {
			return true
		}
	}
	return false
}
