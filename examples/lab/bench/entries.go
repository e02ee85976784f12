//go:build linux

package main

import (
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"strings"
	"sync"
	"sync/atomic"
	"time"

	"overlayd/examples/lab"
	"overlayd/overlay"
)

const (
	sourcePort = 5001 // of the LAN host: sends as long as anybody reads
	echoPort   = 5002

	entryProxy  = "127.0.0.1:1080"
	entrySource = "127.0.0.1:5001" // a forward
	entryEcho   = "127.0.0.1:5002"
	manyClients = 16  // that make connections at the same time
	manyIdle    = 500 // connections, to see what one takes
	// startOver is until a daemon has given back what its start needed, two seconds
	// after that: it would count as given by connections.
	startOver = 3 * time.Second
)

// entry is one way from the laptop to a port of the LAN host.
type entry struct {
	name string
	dial func(ctx context.Context, port uint16) (net.Conn, error)
}

// entryLab is a lab whose laptop is in the network with an interface or without.
type entryLab struct {
	mode   string
	lab    *lab.Lab
	laptop *lab.Process
	open   []io.Closer
	ways   []entry
}

// runEntries measures the ways in without routes beside plain packets of the interface.
func runEntries(ctx context.Context, args []string) (err error) {
	flags := flag.NewFlagSet("bench entries", flag.ExitOnError)
	binary := flags.String("overlayd", "bin/overlayd", "the overlayd `binary`")
	modes := flags.String("modes", "tun,userspace", "how the laptop is in the network")
	seconds := flags.Int("seconds", 5, "how long each transfer lasts")
	rounds := flags.Int("rounds", 3, "how often everything is measured")
	if err := flags.Parse(args); err != nil {
		return err
	}
	if *seconds < 1 || *rounds < 1 {
		return errors.New("at least a second and a round")
	}
	var labs []*entryLab
	defer func() {
		for _, w := range labs {
			err = errors.Join(err, w.close())
		}
	}()
	for mode := range strings.SplitSeq(*modes, ",") {
		w := &entryLab{mode: mode}
		labs = append(labs, w)
		if err := w.begin(ctx, *binary); err != nil {
			return fmt.Errorf("%s: %w", mode, err)
		}
	}
	found := map[string][]float64{}
	time.Sleep(startOver)
	for _, w := range labs { // first, as memory that was used once is used again
		if err := w.idle(ctx, found); err != nil {
			return fmt.Errorf("%s: %w", w.mode, err)
		}
	}
	for round := range *rounds {
		for _, w := range labs {
			if err := w.measure(ctx, time.Duration(*seconds)*time.Second, found); err != nil {
				return fmt.Errorf("round %d, %s: %w", round+1, w.mode, err)
			}
		}
	}
	fmt.Printf("\n%-20s %10s %10s %10s %12s\n", "way in", "Mbit/s", "of plain", "conns/s", "KiB a conn")
	plain := 0.0 // unknown
	if v := found["tun plain mbps"]; len(v) > 0 {
		plain = median(v)
	}
	for _, w := range labs {
		for _, way := range w.ways {
			key := w.mode + " " + way.name
			rate, share, idle := median(found[key+" mbps"]), "-", "-"
			if plain > 0 {
				share = fmt.Sprintf("%.0f%%", 100*rate/plain)
			}
			if v := found[key+" kib"]; len(v) > 0 {
				idle = fmt.Sprintf("%.1f", v[0])
			}
			fmt.Printf("%-20s %10.0f %10s %10.0f %12s\n", key, rate, share, median(found[key+" rate"]), idle)
		}
	}
	return nil
}

// begin builds the lab, with the two services and with everything turned on.
func (w *entryLab) begin(ctx context.Context, binary string) (err error) {
	if w.lab, err = lab.New(ctx, lab.Options{Overlayd: binary}); err != nil {
		return err
	}
	l := w.lab
	if _, err = l.VPS.Serve(ctx, lab.RelayArgs...); err != nil {
		return err
	}
	link, err := l.VPS.Overlayd(ctx, lab.GatewayInvite...)
	if err != nil {
		return err
	}
	if _, err = l.Gateway.Serve(ctx, "gateway", link); err != nil {
		return err
	}
	if link, err = l.VPS.Overlayd(ctx, lab.LaptopInvite...); err != nil {
		return err
	}
	up := []string{"up", link}
	if w.mode == "userspace" {
		up = append(up, "--userspace")
	}
	if w.laptop, err = l.Laptop.Serve(ctx, up...); err != nil {
		return err
	}
	// Without it the ports to one host and port are used up in half a minute, for
	// plain connections too.
	if err := say(ctx, l.Laptop, "sysctl -qw net.ipv4.tcp_tw_reuse=1"); err != nil {
		return err
	}
	for _, verb := range [][]string{
		{"proxy"}, {"forward", entrySource, fmt.Sprintf("%s:%d", lab.HostAddr, sourcePort)}, {"forward", entryEcho, fmt.Sprintf("%s:%d", lab.HostAddr, echoPort)},
	} {
		if _, err := l.Laptop.Overlayd(ctx, verb...); err != nil {
			return err
		}
	}
	if err := errors.Join(w.serve(sourcePort, sendForever), w.serve(echoPort, func(c net.Conn) { io.Copy(c, c) })); err != nil {
		return err
	}
	if w.mode == "tun" {
		w.ways = append(w.ways, entry{"plain", func(ctx context.Context, port uint16) (net.Conn, error) {
			return l.Laptop.DialContext(ctx, "tcp", fmt.Sprintf("%s:%d", lab.HostAddr, port))
		}})
	}
	w.ways = append(w.ways, entry{"socks5", w.socks}, entry{"forward", func(ctx context.Context, port uint16) (net.Conn, error) {
		at := entrySource
		if port == echoPort {
			at = entryEcho
		}
		return l.Laptop.DialContext(ctx, "tcp", at)
	}}, entry{"nc", w.nc})
	return lab.Until(ctx, func(ctx context.Context) error { // the direct path is what is measured
		p, err := pathTo(ctx, l.Laptop, "lab-gw")
		if err == nil && p.Kind != "direct" {
			err = fmt.Errorf("the path is %+v", p)
		}
		return errors.Join(err, w.echo(ctx, w.ways[0]))
	})
}

// sendForever sends until nobody reads.
func sendForever(c net.Conn) {
	b := make([]byte, 256<<10)
	for {
		if _, err := c.Write(b); err != nil {
			return
		}
	}
}

// serve answers on a port of the LAN host until the lab is closed.
func (w *entryLab) serve(port uint16, answer func(net.Conn)) error {
	ln, err := w.lab.Host.Listen("tcp4", fmt.Sprintf("%s:%d", lab.HostAddr, port))
	if err != nil {
		return err
	}
	w.open = append(w.open, ln)
	go func() { // ends when the listener closes
		for {
			c, err := ln.Accept()
			if err != nil {
				return
			}
			go func() { // ends with the client, at the latest with its network
				defer c.Close()
				answer(c)
			}()
		}
	}()
	return nil
}

// socks connects by the proxy.
func (w *entryLab) socks(ctx context.Context, port uint16) (net.Conn, error) {
	c, err := w.lab.Laptop.DialContext(ctx, "tcp", entryProxy)
	if err != nil {
		return nil, err
	}
	answer := make([]byte, 2+10)
	if _, err = c.Write([]byte{5, 1, 0, 5, 1, 0, 1, 192, 168, 1, 201, byte(port >> 8), byte(port)}); err == nil {
		_, err = io.ReadFull(c, answer)
	}
	if err == nil && answer[3] != 0 {
		err = fmt.Errorf("the proxy replies %d", answer[3])
	}
	if err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// nc connects as the verb does, by the daemon's socket.
func (w *entryLab) nc(ctx context.Context, port uint16) (net.Conn, error) {
	return overlay.Dial(w.lab.Laptop.Socket()).Dial(ctx, "tcp", fmt.Sprintf("%s:%d", lab.HostAddr, port))
}

// measure takes the throughput and the connections per second of every way.
func (w *entryLab) measure(ctx context.Context, d time.Duration, found map[string][]float64) error {
	for _, way := range w.ways {
		key := w.mode + " " + way.name
		rate, err := w.download(ctx, way, d)
		if err != nil {
			return fmt.Errorf("%s: %w", way.name, err)
		}
		made, err := w.connections(ctx, way, d)
		if err != nil {
			return fmt.Errorf("%s: %w", way.name, err)
		}
		found[key+" mbps"] = append(found[key+" mbps"], rate)
		found[key+" rate"] = append(found[key+" rate"], made)
		fmt.Printf("%-20s %8.0f Mbit/s %8.0f connections/s\n", key, rate, made)
	}
	return nil
}

// download reads for a while, and returns the rate in Mbit/s.
func (w *entryLab) download(ctx context.Context, way entry, d time.Duration) (float64, error) {
	c, err := way.dial(ctx, sourcePort)
	if err != nil {
		return 0, err
	}
	defer c.Close()
	buf := make([]byte, 256<<10)
	read := func(until time.Time) (n int64, err error) {
		c.SetReadDeadline(until)
		for time.Now().Before(until) && err == nil {
			var k int
			k, err = c.Read(buf)
			n += int64(k)
		}
		if late, ok := errors.AsType[net.Error](err); ok && late.Timeout() {
			err = nil
		}
		return n, err
	}
	if _, err := read(time.Now().Add(500 * time.Millisecond)); err != nil { // TCP finds its pace
		return 0, err
	}
	began := time.Now()
	n, err := read(began.Add(d))
	return float64(n) * 8 / 1e6 / time.Since(began).Seconds(), err
}

// echo makes a connection, says a byte and hears it.
func (w *entryLab) echo(ctx context.Context, way entry) error {
	c, err := way.dial(ctx, echoPort)
	if err != nil {
		return err
	}
	defer c.Close()
	c.SetDeadline(time.Now().Add(5 * time.Second))
	if _, err := c.Write([]byte{1}); err != nil {
		return err
	}
	_, err = io.ReadFull(c, make([]byte, 1))
	return err
}

// connections returns how many are made, used and ended in a second.
func (w *entryLab) connections(ctx context.Context, way entry, d time.Duration) (float64, error) {
	began := time.Now()
	var made atomic.Int64
	var failed atomic.Pointer[error]
	var all sync.WaitGroup
	for range manyClients {
		all.Go(func() {
			for time.Since(began) < d && failed.Load() == nil {
				if err := w.echo(ctx, way); err != nil {
					failed.Store(&err)
					return
				}
				made.Add(1)
			}
		})
	}
	all.Wait()
	if err := failed.Load(); err != nil {
		return 0, *err
	}
	return float64(made.Load()) / time.Since(began).Seconds(), nil
}

// idle finds what the laptop's daemon takes for a connection that does nothing.
func (w *entryLab) idle(ctx context.Context, found map[string][]float64) error {
	var open []net.Conn // all of them to the end: what one way gives back the next would take
	defer func() {
		for _, c := range open {
			c.Close()
		}
	}()
	for _, way := range w.ways {
		if way.name == "plain" {
			continue // the kernel's own
		}
		before, err := w.laptop.Usage()
		if err != nil {
			return err
		}
		for range manyIdle {
			c, err := way.dial(ctx, echoPort)
			if err != nil {
				return fmt.Errorf("%s: %d connections: %w", way.name, len(open), err)
			}
			open = append(open, c)
		}
		after, err := w.laptop.Usage()
		if err != nil {
			return err
		}
		key := w.mode + " " + way.name + " kib"
		found[key] = append(found[key], max(0, float64(after.RSS-before.RSS)/1024/manyIdle))
	}
	return nil
}

func (w *entryLab) close() error {
	for _, c := range w.open {
		c.Close()
	}
	if w.lab == nil {
		return nil
	}
	return w.lab.Close()
}
