//go:build linux

package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"io"
	"net"
	"os"
	"slices"
	"strconv"
	"strings"
	"sync"
	"sync/atomic"
	"text/tabwriter"
	"time"

	"overlayd/examples/lab"
	"overlayd/overlay"
)

const (
	// parallel is how many connections are held at once.
	parallel = 1000
	// dialers is how many connect at the same time.
	dialers = 16
	// benchPort is where the LAN host serves.
	benchPort = "9000"
)

// What a client asks the LAN host's server for, with its first byte.
const (
	askSink   = 'u' // take what comes
	askSource = 'd' // send until told to stop
	askOnce   = 'x' // answer with a byte, and close
	askHold   = 'h' // answer with a byte, and wait for the end
)

// wayIn is overlayd with or without root at either end.
type wayIn struct {
	Name          string `json:"name"`
	clientUser    bool
	gatewayUser   bool
	lab           *lab.Lab
	client, gate  *lab.Process
	local         *overlay.Local
	server        *benchServer
	figuresByName map[string][]float64
}

func waysIn() []*wayIn {
	return []*wayIn{
		{Name: "with interfaces"},
		{Name: "root-less client", clientUser: true},
		{Name: "root-less gateway", gatewayUser: true},
		{Name: "both root-less", clientUser: true, gatewayUser: true},
	}
}

// The figures of a way in, in the order of the table.
var wayFigures = []struct{ name, head, format string }{
	{"one_mbps", "one stream, Mbit/s", "%.0f"},
	{"reverse_mbps", "reversed", "%.0f"},
	{"conns_per_s", "connections/s", "%.0f"},
	{"open_1000_ms", "1,000 at once, ms", "%.0f"},
	{"client_kib_per_conn", "KiB each: client", "%.1f"},
	{"gateway_kib_per_conn", "gateway", "%.1f"},
}

// waysReport is the JSON of a run of `bench ways`.
type waysReport struct {
	Schema string `json:"schema"`
	machine
	Busy    float64      `json:"busy_before"`
	Seconds int          `json:"seconds"`
	Rounds  int          `json:"rounds"`
	Medians []sample     `json:"medians"`
	Targets []wayVerdict `json:"targets"`
}

type wayVerdict struct {
	Name  string  `json:"name"`
	Value float64 `json:"value"`
	Want  string  `json:"want"`
	Met   bool    `json:"met"`
}

// runWays measures the ways in that are not an interface with routes, beside it.
func runWays(ctx context.Context, args []string) error {
	seconds, err1 := strconv.Atoi(cmp.Or(os.Getenv("BENCH_SECONDS"), "5"))
	rounds, err2 := strconv.Atoi(cmp.Or(os.Getenv("BENCH_ROUNDS"), "3"))
	if err := errors.Join(err1, err2); err != nil {
		return fmt.Errorf("read BENCH_SECONDS and BENCH_ROUNDS: %w", err)
	}
	flags := flag.NewFlagSet("bench ways", flag.ExitOnError)
	binary := flags.String("overlayd", "bin/overlayd", "the overlayd `binary`")
	flags.IntVar(&seconds, "seconds", seconds, "how long each transfer lasts")
	flags.IntVar(&rounds, "rounds", rounds, "how often everything is measured")
	out := flags.String("out", "bench-results", "the `directory` of the JSON")
	if err := flags.Parse(args); err != nil {
		return err
	}
	rep := &waysReport{Schema: "overlayd.bench-ways/v1", machine: thisMachine(), Seconds: seconds, Rounds: rounds}
	var err error
	if rep.Busy, err = busy(ctx); err != nil {
		return err
	}
	ways := waysIn()
	for _, w := range ways {
		defer w.close()
		if err := w.open(ctx, *binary); err != nil {
			return fmt.Errorf("%s: %w", w.Name, err)
		}
	}
	for round := range rounds {
		for _, w := range ways {
			f, err := w.measure(ctx, seconds)
			if err != nil {
				return fmt.Errorf("%s: %w", w.Name, err)
			}
			fmt.Printf("round %d, %-18s", round+1, w.Name)
			for _, fig := range wayFigures {
				w.figuresByName[fig.name] = append(w.figuresByName[fig.name], f[fig.name])
				fmt.Printf("  %s "+fig.format, fig.name, f[fig.name])
			}
			fmt.Println()
		}
	}
	rep.finish(ways)
	fmt.Print("\n", rep.text())
	file, err := save(*out, "ways-", time.Now().UTC(), rep)
	if err != nil {
		return err
	}
	fmt.Println("\nas JSON:", file)
	return nil
}

// open builds a lab between two cones, so that the path is direct.
func (w *wayIn) open(ctx context.Context, binary string) error {
	l, err := lab.New(ctx, lab.Options{Overlayd: binary})
	if err != nil {
		return err
	}
	w.lab, w.figuresByName = l, map[string][]float64{}
	if w.server, err = newBenchServer(l.Host); err != nil {
		return err
	}
	if _, err := l.VPS.Serve(ctx, lab.RelayArgs...); err != nil {
		return err
	}
	serve := func(m *lab.Machine, user bool, verb string, invite []string) (*lab.Process, error) {
		link, err := l.VPS.Overlayd(ctx, invite...)
		if err != nil {
			return nil, err
		}
		args := []string{verb, link}
		if user {
			args = []string{verb, "--userspace", link}
		}
		return m.Serve(ctx, args...)
	}
	if w.gate, err = serve(l.Gateway, w.gatewayUser, "gateway", lab.GatewayInvite); err != nil {
		return err
	}
	if w.client, err = serve(l.Laptop, w.clientUser, "up", lab.LaptopInvite); err != nil {
		return err
	}
	w.local = overlay.Dial(l.Laptop.Socket())
	return lab.Until(ctx, func(ctx context.Context) error {
		if err := w.once(ctx); err != nil { // only who talks is looked for a path
			return err
		}
		p, err := pathTo(ctx, l.Laptop, "lab-gw")
		if err == nil && p.Kind != "direct" {
			err = fmt.Errorf("the path is %+v, not direct", p)
		}
		return err
	})
}

func (w *wayIn) close() {
	if w.lab == nil {
		return
	}
	if w.local != nil {
		w.local.Close()
	}
	if w.server != nil {
		w.server.close()
	}
	if err := w.lab.Close(); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
	}
}

// conn is a connection of either kind.
type conn interface {
	net.Conn
	CloseWrite() error
}

// dial connects from where the caller is: inside the laptop, or by the daemon's
// socket.
func (w *wayIn) dial(ctx context.Context, ask byte) (conn, error) {
	ctx, cancel := context.WithTimeout(ctx, 10*time.Second)
	defer cancel()
	var c conn
	var err error
	if w.clientUser {
		var l *overlay.LocalConn
		if l, err = w.local.Dial(ctx, "tcp", lab.HostAddr+":"+benchPort); err == nil {
			c = l
		}
	} else {
		var k net.Conn
		if k, err = new(net.Dialer).DialContext(ctx, "tcp4", lab.HostAddr+":"+benchPort); err == nil {
			c = k.(*net.TCPConn)
		}
	}
	if err != nil {
		return nil, err
	}
	if _, err := c.Write([]byte{ask}); err != nil {
		c.Close()
		return nil, err
	}
	return c, nil
}

// inside runs f where dial works.
func (w *wayIn) inside(f func() error) error {
	if w.clientUser {
		return f()
	}
	return w.lab.Laptop.Enter(f)
}

// once makes a connection and takes its answer.
func (w *wayIn) once(ctx context.Context) error {
	return w.inside(func() error { return w.answer(ctx) })
}

func (w *wayIn) answer(ctx context.Context) error {
	c, err := w.dial(ctx, askOnce)
	if err != nil {
		return err
	}
	defer c.Close()
	_ = c.SetDeadline(time.Now().Add(10 * time.Second))
	b, err := io.ReadAll(c) // the server closes first, so that no port of ours stays taken
	if err == nil && len(b) != 1 {
		err = io.ErrUnexpectedEOF
	}
	return err
}

func (w *wayIn) measure(ctx context.Context, seconds int) (map[string]float64, error) {
	f := map[string]float64{}
	span := time.Duration(seconds) * time.Second
	var errs []error
	for _, take := range []func(context.Context, time.Duration, map[string]float64) error{w.hold, w.upload, w.download, w.churn} {
		errs = append(errs, take(ctx, span, f))
	}
	return f, errors.Join(errs...)
}

const benchPiece = 128 << 10

func (w *wayIn) upload(ctx context.Context, span time.Duration, f map[string]float64) error {
	return w.inside(func() error {
		c, err := w.dial(ctx, askSink)
		if err != nil {
			return err
		}
		defer c.Close()
		began, before := time.Now(), w.server.taken.Load()
		_ = c.SetWriteDeadline(began.Add(span))
		piece := make([]byte, benchPiece)
		for err == nil {
			_, err = c.Write(piece)
		}
		f["one_mbps"] = mbps(w.server.taken.Load()-before, time.Since(began))
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		return nil
	})
}

func (w *wayIn) download(ctx context.Context, span time.Duration, f map[string]float64) error {
	return w.inside(func() error {
		c, err := w.dial(ctx, askSource)
		if err != nil {
			return err
		}
		defer c.Close()
		began := time.Now()
		_ = c.SetReadDeadline(began.Add(span))
		n, err := io.CopyBuffer(io.Discard, struct{ io.Reader }{c}, make([]byte, benchPiece))
		f["reverse_mbps"] = mbps(uint64(n), time.Since(began))
		if !errors.Is(err, os.ErrDeadlineExceeded) {
			return err
		}
		return nil
	})
}

func mbps(bytes uint64, d time.Duration) float64 { return float64(bytes) * 8 / 1e6 / d.Seconds() }

// churn makes connections, one after the other at several places.
func (w *wayIn) churn(ctx context.Context, span time.Duration, f map[string]float64) error {
	var made atomic.Int64
	began := time.Now()
	err := w.each(dialers, func(int) error {
		for time.Since(began) < span {
			if err := w.answer(ctx); err != nil {
				return err
			}
			made.Add(1)
		}
		return nil
	})
	f["conns_per_s"] = float64(made.Load()) / time.Since(began).Seconds()
	return err
}

// hold opens many connections, and sees what the daemons need for them while
// nothing passes.
func (w *wayIn) hold(ctx context.Context, _ time.Duration, f map[string]float64) error {
	before, err := w.memory()
	if err != nil {
		return err
	}
	held := make([]conn, parallel)
	defer func() {
		for _, c := range held {
			if c != nil {
				c.Close()
			}
		}
	}()
	began := time.Now()
	err = w.each(dialers, func(worker int) error {
		for i := worker; i < parallel; i += dialers {
			c, err := w.dial(ctx, askHold)
			if err != nil {
				return err
			}
			held[i] = c
			_ = c.SetDeadline(time.Now().Add(time.Minute))
			if _, err := io.ReadFull(c, make([]byte, 1)); err != nil {
				return err
			}
		}
		return nil
	})
	f["open_1000_ms"] = ms(time.Since(began))
	if err != nil {
		return err
	}
	after, err := w.memory()
	for role := range after {
		f[role+"_kib_per_conn"] = max(0, after[role]-before[role]) / 1024 / parallel
	}
	return err
}

// each runs f at several places at once.
func (w *wayIn) each(n int, f func(worker int) error) error {
	errs := make([]error, n)
	var all sync.WaitGroup
	for i := range n {
		all.Go(func() { errs[i] = w.inside(func() error { return f(i) }) })
	}
	all.Wait()
	return errors.Join(errs...)
}

func (w *wayIn) memory() (map[string]float64, error) {
	out := map[string]float64{}
	for role, p := range map[string]*lab.Process{"client": w.client, "gateway": w.gate} {
		u, err := p.Usage()
		if err != nil {
			return nil, fmt.Errorf("%s: %w", role, err)
		}
		out[role] = float64(u.RSS)
	}
	return out, nil
}

// benchServer answers on the LAN host.
type benchServer struct {
	l       net.Listener
	running sync.WaitGroup
	taken   atomic.Uint64 // bytes
}

func newBenchServer(m *lab.Machine) (*benchServer, error) {
	l, err := m.Listen("tcp4", lab.HostAddr+":"+benchPort)
	if err != nil {
		return nil, err
	}
	s := &benchServer{l: l}
	s.running.Go(func() {
		for {
			c, err := l.Accept()
			if err != nil {
				return
			}
			s.running.Go(func() { s.serve(c) })
		}
	})
	return s, nil
}

func (s *benchServer) serve(c net.Conn) {
	defer c.Close()
	ask := make([]byte, 1)
	if _, err := io.ReadFull(c, ask); err != nil {
		return
	}
	switch ask[0] {
	case askSink:
		b := make([]byte, benchPiece)
		for {
			n, err := c.Read(b)
			s.taken.Add(uint64(n))
			if err != nil {
				return
			}
		}
	case askSource:
		b := make([]byte, benchPiece)
		for {
			if _, err := c.Write(b); err != nil {
				return
			}
		}
	case askOnce:
		_, _ = c.Write(ask) // who asked sees that nothing came
	case askHold:
		_, _ = c.Write(ask)
		_, _ = io.Copy(io.Discard, c)
	}
}

func (s *benchServer) close() {
	s.l.Close() // connections end with their clients
}

// finish computes medians and verdicts.
func (r *waysReport) finish(ways []*wayIn) {
	base := ways[0]
	for _, w := range ways {
		m := sample{System: w.Name, Offload: true, Figures: map[string]float64{}}
		for name, all := range w.figuresByName {
			m.Figures[name] = median(slices.Clone(all))
			if strings.Contains(name, "_kib_") {
				m.Figures[name] = slices.Max(all) // what a round leaves behind, the next one need not ask for
			}
		}
		r.Medians = append(r.Medians, m)
		if w == base {
			continue
		}
		for _, name := range []string{"one_mbps", "reverse_mbps"} {
			var ratios []float64
			for i, v := range w.figuresByName[name] {
				ratios = append(ratios, v/base.figuresByName[name][i])
			}
			v := median(ratios)
			r.Targets = append(r.Targets, wayVerdict{w.Name + ": " + name + " of that with interfaces", v, "at least 0.5", v >= 0.5})
		}
		v := m.Figures["conns_per_s"]
		r.Targets = append(r.Targets, wayVerdict{w.Name + ": connections per second", v, "at least 500", v >= 500})
		for role, user := range map[string]bool{"client": w.clientUser, "gateway": w.gatewayUser} {
			if user {
				v := m.Figures[role+"_kib_per_conn"]
				r.Targets = append(r.Targets, wayVerdict{w.Name + ": KiB per idle connection, " + role, v, "below 64", v < 64})
			}
		}
	}
	slices.SortStableFunc(r.Targets, func(a, b wayVerdict) int { return strings.Compare(a.Name, b.Name) })
}

// text renders the table.
func (r *waysReport) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Linux %s, %d CPUs, %s; ways in beside the interface, medians of %d rounds of %d s, of memory the worst;\ndirect path, TCP to the LAN host;\n"+
		"without an interface the client connects by the daemon's socket\n\n", r.Kernel, r.CPUs, r.Go, r.Rounds, r.Seconds)
	w := tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
	fmt.Fprint(w, "  overlayd")
	for _, f := range wayFigures {
		fmt.Fprint(w, "\t", f.head)
	}
	fmt.Fprintln(w)
	for _, m := range r.Medians {
		fmt.Fprint(w, "  ", m.System)
		for _, f := range wayFigures {
			fmt.Fprintf(w, "\t"+f.format, m.Figures[f.name])
		}
		fmt.Fprintln(w)
	}
	w.Flush()
	fmt.Fprint(&b, "\nTargets (ratios are medians of the ratios of neighbours)\n")
	w = tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
	for _, v := range r.Targets {
		fmt.Fprintf(w, "  %s\t%s\t%.3f\t%s\n", verdict{Met: v.Met}.word(), v.Name, v.Value, v.Want)
	}
	w.Flush()
	return b.String()
}
