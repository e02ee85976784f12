//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"

	"golang.org/x/net/icmp"
	"golang.org/x/net/ipv4"

	"overlayd/examples/lab"
)

// probe takes some figures of a system.
type probe struct {
	name string
	take func(ctx context.Context, s system, f map[string]float64) error
	say  func(f map[string]float64) string // one line of progress
}

// starting is the probe that every round begins with: it brings the system up.
const starting = "start"

// inForce is the probe of what a filter enforces.
const inForce = "inforce"

// probesOf lists what a round of a section does, in order.
func probesOf(s settings, sec section) []probe {
	return slices.DeleteFunc(probes(s), func(p probe) bool {
		return slices.Contains(sec.without, p.name) || s.probes != nil && !slices.Contains(s.probes, p.name)
	})
}

// probes lists all there are, in order.
func probes(s settings) []probe {
	list := []probe{
		{starting, takeStart, func(f map[string]float64) string { return fmt.Sprintf("%8.0f ms", f["start_ms"]) }},
		{"idle", takeIdle, func(f map[string]float64) string {
			return fmt.Sprintf("%8.2f ms p50 %6.2f p99", f["rtt_idle_p50_ms"], f["rtt_idle_p99_ms"])
		}},
	}
	for _, t := range transfers {
		list = append(list, probe{t.name, func(ctx context.Context, sys system, f map[string]float64) error {
			return takeTransfer(ctx, sys, t, s.seconds, f)
		}, func(f map[string]float64) string {
			text := fmt.Sprintf("%8.0f Mbit/s", f[t.name+"_mbps"])
			for _, r := range roles {
				if cpu, ok := f[t.name+"_"+r+"_cpu_s_per_gb"]; ok {
					text += fmt.Sprintf("  %s %.2f", r, cpu)
				}
			}
			return text
		}})
	}
	return append(list, probe{"load", func(ctx context.Context, sys system, f map[string]float64) error {
		return takeLoad(ctx, sys, s.seconds, f)
	}, func(f map[string]float64) string {
		return fmt.Sprintf("%8.2f ms p50 %6.2f p99", f["rtt_load_p50_ms"], f["rtt_load_p99_ms"])
	}}, probe{inForce, takeInForce, func(f map[string]float64) string {
		return fmt.Sprintf("%8.0f rules and %.0f flows at the gateway", f["gateway_rules"], f["gateway_flows"])
	}})
}

// takeStart brings the system up; the clock runs from the start of the
// laptop's end to the first echo of the goal. The way may change after that: it is
// left when it is the one that the system is named for.
func takeStart(ctx context.Context, s system, f map[string]float64) error {
	if err := s.serve(ctx); err != nil {
		return err
	}
	if far := s.far(); far != nil {
		if _, err := firstEcho(ctx, far, s.goal()); err != nil {
			return fmt.Errorf("from the %s: %w", far.Name, err)
		}
	}
	begin := time.Now()
	if err := s.connect(ctx); err != nil {
		return err
	}
	at, err := firstEcho(ctx, s.machines().Laptop, s.goal())
	if err != nil {
		return err
	}
	f["start_ms"] = ms(at.Sub(begin))
	return s.settle(ctx)
}

// takeIdle measures the round trip of an idle system, and its memory when it has
// been idle for that long.
func takeIdle(ctx context.Context, s system, f map[string]float64) error {
	const count = 300 // in three seconds: the 99th percentile is the fourth worst
	if err := takePing(ctx, s, "idle", count, f); err != nil {
		return err
	}
	return takeMemory(s, "idle", f)
}

// takeLoad measures the round trip while one stream fills the way, and the
// memory after all that the round carried.
func takeLoad(ctx context.Context, s system, seconds int, f map[string]float64) error {
	done := make(chan error, 1)
	go func() {
		_, err := iperf(ctx, s, transfers[0], seconds+1)
		done <- err
	}()
	err := takePing(ctx, s, "load", seconds*100, f)
	if err := errors.Join(err, <-done); err != nil {
		return err
	}
	return takeMemory(s, "load", f)
}

func takeMemory(s system, when string, f map[string]float64) error {
	for role, p := range s.daemons() {
		u, err := p.Usage()
		if err != nil {
			return fmt.Errorf("%s: %w", role, err)
		}
		f["rss_"+when+"_"+role+"_mb"] = float64(u.RSS) / 1e6
	}
	return nil
}

// takeTransfer measures throughput and CPU time of a transfer.
func takeTransfer(ctx context.Context, s system, t transfer, seconds int, f map[string]float64) error {
	before, err := usage(s)
	if err != nil {
		return err
	}
	r, err := iperf(ctx, s, t, seconds)
	if err != nil {
		return err
	}
	after, err := usage(s)
	if err != nil {
		return err
	}
	f[t.name+"_mbps"] = r.mbps
	perGB := func(cpu time.Duration) float64 { return cpu.Seconds() / (r.bytes / 1e9) }
	for who, cpu := range after {
		f[t.name+"_"+who+"_cpu_s_per_gb"] = perGB(cpu - before[who])
	}
	if len(s.daemons()) > 0 {
		f[t.name+"_ends_cpu_s_per_gb"] = perGB(after["client"] + after["gateway"] - before["client"] - before["gateway"])
	}
	return s.settle(ctx) // and was so all the time, as far as can be seen
}

// usage returns the CPU time of every daemon and of the machine.
func usage(s system) (map[string]time.Duration, error) {
	all := map[string]time.Duration{}
	for role, p := range s.daemons() {
		u, err := p.Usage()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", role, err)
		}
		all[role] = u.CPU
	}
	var err error
	all["machine"], err = machineCPU()
	return all, err
}

// machineCPU returns the CPU time of everything on the machine.
func machineCPU() (time.Duration, error) {
	stat, err := os.ReadFile("/proc/stat")
	if err != nil {
		return 0, fmt.Errorf("read the machine's usage: %w", err)
	}
	return parseStat(string(stat))
}

// parseStat reads the first line of proc(5)'s stat: user, nice, system, idle,
// iowait, irq, softirq, in ticks of 10 ms. Idle time is left out.
func parseStat(stat string) (busy time.Duration, err error) {
	line, _, _ := strings.Cut(stat, "\n")
	fields := strings.Fields(line)
	if len(fields) < 8 || fields[0] != "cpu" {
		return 0, fmt.Errorf("read the machine's usage: %q", line)
	}
	for _, i := range []int{1, 2, 3, 6, 7} {
		n, err := strconv.ParseInt(fields[i], 10, 64)
		if err != nil {
			return 0, fmt.Errorf("read the machine's usage: %w", err)
		}
		busy += time.Duration(n) * 10 * time.Millisecond
	}
	return busy, nil
}

// takePing pings the goal count times, every 10 ms.
func takePing(ctx context.Context, s system, when string, count int, f map[string]float64) error {
	// -W: an echo that takes a second longer than the last one sent is lost.
	// Lost echoes make ping fail; its output tells them apart from real trouble.
	out, err := s.machines().Laptop.Run(ctx, "ping", "-n", "-i", "0.01", "-c", strconv.Itoa(count), "-W", "1", s.goal())
	rtts := parsePing(out)
	if len(rtts) == 0 {
		return fmt.Errorf("ping: no echo: %w", errors.Join(err, ctx.Err()))
	}
	f["rtt_"+when+"_p50_ms"] = percentile(rtts, 50)
	f["rtt_"+when+"_p99_ms"] = percentile(rtts, 99)
	f["rtt_"+when+"_lost_percent"] = 100 * float64(max(0, count-len(rtts))) / float64(count)
	return nil
}

// parsePing returns the round trips in ms of ping's output, sorted.
func parsePing(out string) []float64 {
	var rtts []float64
	for line := range strings.Lines(out) {
		_, rest, ok := strings.Cut(line, " time=")
		if !ok || strings.Contains(line, "DUP!") {
			continue
		}
		if v, err := strconv.ParseFloat(strings.TrimSuffix(strings.TrimSpace(rest), " ms"), 64); err == nil {
			rtts = append(rtts, v)
		}
	}
	slices.Sort(rtts)
	return rtts
}

// percentile of a sorted list, by the nearest rank.
func percentile(sorted []float64, p int) float64 {
	rank := (len(sorted)*p + 99) / 100
	return sorted[max(0, rank-1)]
}

// firstEcho sends echo requests in quick succession until one is answered,
// and returns when that was.
func firstEcho(ctx context.Context, m *lab.Machine, addr string) (time.Time, error) {
	c, err := m.ListenPacket("ip4:icmp", "0.0.0.0")
	if err != nil {
		return time.Time{}, err
	}
	defer c.Close()
	dst := &net.IPAddr{IP: net.ParseIP(addr)}
	id := os.Getpid() & 0xffff
	buf := make([]byte, 1500)
	for seq := 1; ctx.Err() == nil; seq++ {
		msg := icmp.Message{Type: ipv4.ICMPTypeEcho, Body: &icmp.Echo{ID: id, Seq: seq & 0xffff}}
		b, err := msg.Marshal(nil)
		if err != nil {
			return time.Time{}, fmt.Errorf("make an echo request: %w", err)
		}
		// No route, no neighbour, no permission yet: that is what we wait for.
		_, _ = c.WriteTo(b, dst)
		_ = c.SetReadDeadline(time.Now().Add(time.Millisecond))
		for {
			n, from, err := c.ReadFrom(buf)
			if err != nil {
				break // the millisecond is over
			}
			reply, err := icmp.ParseMessage(1, buf[:n]) // 1: ICMP for IPv4
			if err != nil || reply.Type != ipv4.ICMPTypeEchoReply || from.String() != addr {
				continue
			}
			if echo, ok := reply.Body.(*icmp.Echo); ok && echo.ID == id {
				return time.Now(), nil
			}
		}
	}
	return time.Time{}, fmt.Errorf("no echo from %s: %w", addr, context.Cause(ctx))
}

func ms(d time.Duration) float64 { return float64(d) / float64(time.Millisecond) }
