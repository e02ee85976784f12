//go:build linux

package main

import (
	"math/rand/v2"
	"net"
	"net/netip"
	"sync"
	"sync/atomic"
	"time"

	"overlayd/examples/lab"
)

const (
	// crowdSockets on one machine and crowdPorts on another make 50,000 flows:
	// less than the 65,536 that a filter leaves to one source.
	crowdSockets   = 250
	crowdPorts     = 200
	firstCrowdPort = 20000
	// firstCrowdSocket is where a machine's own ports begin. They are the same in
	// every round, as the gateway's kernel remembers flows for two minutes, and
	// no more than some 260,000.
	firstCrowdSocket = 21000
	// crowdFlows are at each machine, those of two pairs.
	crowdFlows = 2 * crowdSockets * crowdPorts
	// crowdShare of them must be there: one whose packet was lost is forgotten
	// for a while.
	crowdShare = 0.99

	// crowdEvery is how often some packets are sent.
	crowdEvery = 10 * time.Millisecond
	// gatherRate is how many flows are begun in a second: the 150,000 of three
	// pairs in 8 s, and no queue of the lab overflows.
	gatherRate = 20000
	// keepRate is how many of them speak in a second: each every 150 s, before a
	// filter forgets it after 180.
	keepRate = 1000
)

// crowd is many flows of UDP, in which a datagram is sent now and then, and
// answered.
type crowd struct {
	flows    []*crowdFlow
	answered atomic.Int64 // of the flows
	open     []*net.UDPConn
	stop     chan struct{} // closed by close
	running  sync.WaitGroup
}

type crowdFlow struct {
	from     *net.UDPConn
	to       netip.AddrPort
	answered atomic.Bool
}

// gather makes a crowd among the three members of a lab, so that each has
// crowdFlows.
func gather(l *lab.Lab) (*crowd, error) {
	c := &crowd{stop: make(chan struct{})}
	err := c.gather(l)
	if err != nil {
		c.close()
		return nil, err
	}
	c.start()
	return c, nil
}

func (c *crowd) gather(l *lab.Lab) error {
	at := netip.AddrPortFrom(netip.IPv4Unspecified(), firstCrowdPort)
	for _, m := range []*lab.Machine{l.Gateway, l.VPS} {
		if err := m.Enter(func() error { return c.echo(at, crowdPorts) }); err != nil {
			return err
		}
	}
	for i, p := range []struct {
		from *lab.Machine
		to   string
	}{{l.Laptop, lab.GatewayOverlay}, {l.Laptop, lab.VPSOverlay}, {l.VPS, lab.GatewayOverlay}} {
		from := netip.AddrPortFrom(at.Addr(), firstCrowdSocket+uint16(i)*crowdSockets)
		to := netip.AddrPortFrom(netip.MustParseAddr(p.to), firstCrowdPort)
		if err := p.from.Enter(func() error { return c.call(from, crowdSockets, to, crowdPorts) }); err != nil {
			return err
		}
	}
	return nil
}

func (c *crowd) listen(at netip.AddrPort) (*net.UDPConn, error) {
	s, err := net.ListenUDP("udp4", net.UDPAddrFromAddrPort(at))
	if err == nil {
		c.open = append(c.open, s)
	}
	return s, err
}

// echo answers on ports in a row, of which at is the first.
func (c *crowd) echo(at netip.AddrPort, ports int) error {
	for i := range ports {
		s, err := c.listen(netip.AddrPortFrom(at.Addr(), at.Port()+uint16(i)))
		if err != nil {
			return err
		}
		c.running.Go(func() {
			b := make([]byte, 64)
			for {
				n, from, err := s.ReadFromUDPAddrPort(b)
				if err != nil {
					return // it is closed
				}
				_, _ = s.WriteToUDPAddrPort(b[:n], from) // without an answer they ask again
			}
		})
	}
	return nil
}

// call makes flows from some sockets, whose ports stand in a row from that of
// at on, to ports in a row from that of to on.
func (c *crowd) call(at netip.AddrPort, sockets int, to netip.AddrPort, ports int) error {
	for i := range sockets {
		s, err := c.listen(netip.AddrPortFrom(at.Addr(), at.Port()+uint16(i)))
		if err != nil {
			return err
		}
		own := make([]*crowdFlow, ports)
		for i := range own {
			own[i] = &crowdFlow{from: s, to: netip.AddrPortFrom(to.Addr(), to.Port()+uint16(i))}
		}
		c.flows = append(c.flows, own...)
		c.running.Go(func() {
			b := make([]byte, 64)
			for {
				_, from, err := s.ReadFromUDPAddrPort(b)
				if err != nil {
					return // it is closed
				}
				i := int(from.Port()) - int(to.Port())
				if i >= 0 && i < ports && !own[i].answered.Swap(true) {
					c.answered.Add(1)
				}
			}
		})
	}
	return nil
}

// start lets them talk until close, in no order.
func (c *crowd) start() {
	rand.Shuffle(len(c.flows), func(i, j int) { c.flows[i], c.flows[j] = c.flows[j], c.flows[i] })
	c.running.Go(c.talk)
}

// talk begins all flows, each again and again until it is answered, and keeps
// them alive then.
func (c *crowd) talk() {
	ticker := time.NewTicker(crowdEvery)
	defer ticker.Stop()
	at, last := 0, time.Now()
	for {
		select {
		case <-c.stop:
			return
		case <-ticker.C:
		}
		now := time.Now() // a tick that found nobody awake is made up for
		quiet, rate := c.silent() > 0, keepRate
		if quiet {
			rate = gatherRate
		}
		due := int(now.Sub(last).Seconds() * float64(rate))
		last = last.Add(time.Duration(due) * time.Second / time.Duration(rate))
		for looked := 0; due > 0 && looked < len(c.flows); looked++ {
			f := c.flows[at]
			at = (at + 1) % len(c.flows)
			if quiet && f.answered.Load() {
				continue
			}
			_, _ = f.from.WriteToUDPAddrPort([]byte{1}, f.to) // what is lost is sent again
			due--
		}
	}
}

// silent is how many flows have no answer so far.
func (c *crowd) silent() int { return len(c.flows) - int(c.answered.Load()) }

// close ends all flows.
func (c *crowd) close() {
	close(c.stop)
	for _, s := range c.open {
		s.Close()
	}
	c.running.Wait()
}
