//go:build linux

package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"runtime"
	"slices"
	"strconv"
	"strings"
	"syscall"
	"time"
)

func main() {
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM)
	defer stop()
	do, args := run, os.Args[1:]
	if len(args) > 0 && args[0] == "recovery" {
		do, args = runRecovery, args[1:]
	}
	if len(args) > 0 && args[0] == "ways" {
		do, args = runWays, args[1:]
	}
	if len(args) > 0 && args[0] == "entries" {
		do, args = runEntries, args[1:]
	}
	if err := do(ctx, args); err != nil {
		fmt.Fprintln(os.Stderr, "bench:", err)
		os.Exit(1)
	}
}

// settings are what a run measures, and how long.
type settings struct {
	overlayd, wireguard string   // binaries
	unfiltered          string   // overlayd built to let everything pass
	only                []string // sections
	probes              []string // nil: all
	offloads            []bool
	seconds, rounds     int
	out                 string // directory of the JSON
}

func parse(args []string) (settings, error) {
	seconds, err1 := strconv.Atoi(cmp.Or(os.Getenv("BENCH_SECONDS"), "5"))
	rounds, err2 := strconv.Atoi(cmp.Or(os.Getenv("BENCH_ROUNDS"), "3"))
	if err := errors.Join(err1, err2); err != nil {
		return settings{}, fmt.Errorf("read BENCH_SECONDS and BENCH_ROUNDS: %w", err)
	}
	var s settings
	flags := flag.NewFlagSet("bench", flag.ExitOnError)
	flags.StringVar(&s.overlayd, "overlayd", "bin/overlayd", "the overlayd `binary`")
	flags.StringVar(&s.wireguard, "wireguard-go", "bin/wireguard-go", "the wireguard-go `binary`")
	flags.StringVar(&s.unfiltered, "unfiltered", "bin/overlayd-unfiltered", "the `binary` of overlayd without its filter")
	only := flags.String("only", cmp.Or(os.Getenv("ONLY"), "relayed,direct,tls,filter"), "which `sections` to measure, in this order")
	wanted := flags.String("probes", "", "which `probes` to take besides start: idle,one,four,reverse,load,inforce; \"\": all")
	offloads := flags.String("offloads", "on,off", "with which offloads of the wires")
	flags.IntVar(&s.seconds, "seconds", seconds, "how long each transfer lasts")
	flags.IntVar(&s.rounds, "rounds", rounds, "how often everything is measured")
	flags.StringVar(&s.out, "out", "bench-results", "the `directory` of the JSON")
	if err := flags.Parse(args); err != nil {
		return settings{}, err
	}
	s.only = strings.Split(*only, ",")
	for _, name := range s.only {
		if _, err := sectionOf(name); err != nil {
			return settings{}, err
		}
	}
	if *wanted != "" {
		s.probes = append(strings.Split(*wanted, ","), starting)
		for _, name := range s.probes {
			if !slices.ContainsFunc(probes(s), func(p probe) bool { return p.name == name }) {
				return settings{}, fmt.Errorf("-probes %s: there is no %q", *wanted, name)
			}
		}
	}
	for _, o := range strings.Split(*offloads, ",") {
		if o != "on" && o != "off" {
			return settings{}, fmt.Errorf("-offloads %s: on, off or on,off", *offloads)
		}
		s.offloads = append(s.offloads, o == "on")
	}
	if s.seconds < 1 || s.seconds > 600 || s.rounds < 1 || s.rounds > 100 {
		return settings{}, errors.New("seconds are 1 to 600, rounds 1 to 100")
	}
	return s, nil
}

func run(ctx context.Context, args []string) error {
	s, err := parse(args)
	if err != nil {
		return err
	}
	fmt.Println("this takes about", s.estimate().Round(time.Minute))
	r := newReport(s)
	if r.Busy, err = busy(ctx); err != nil {
		return err
	}
	if r.Busy > quiet {
		fmt.Printf("careful: %.0f %% of this machine is busy with something else\n", 100*r.Busy)
	}
	failed := measureAll(ctx, s, r)
	if len(r.Samples) == 0 {
		return failed
	}
	fmt.Print("\n", r.text()) // of the rounds before a failure, too
	file, err := r.save(s.out, time.Now())
	if err != nil {
		return errors.Join(failed, err)
	}
	fmt.Println("\nas JSON:", file)
	return failed
}

func measureAll(ctx context.Context, s settings, r *report) error {
	for _, name := range s.only {
		sec, err := sectionOf(name)
		if err != nil {
			return err
		}
		for _, offload := range s.offloads {
			if err := measure(ctx, s, sec, offload, r); err != nil {
				return err
			}
		}
	}
	return nil
}

// quiet is how busy a machine may be without being warned about.
const quiet = 0.1

// busy watches the machine for a second before anything of ours runs.
func busy(ctx context.Context) (float64, error) {
	before, err := machineCPU()
	if err != nil {
		return 0, err
	}
	select {
	case <-ctx.Done():
		return 0, context.Cause(ctx)
	case <-time.After(time.Second):
	}
	after, err := machineCPU()
	return (after - before).Seconds() / float64(runtime.NumCPU()), err
}

// estimate is how long a run takes: a round of a system is its probes, of which
// each transfer has its time, and some five seconds of starting and stopping.
func (s settings) estimate() (all time.Duration) {
	for _, name := range s.only {
		if sec, err := sectionOf(name); err == nil {
			each := time.Duration(len(probesOf(s, sec))*s.seconds+8) * time.Second
			all += each * time.Duration(s.rounds*len(sec.systems)*len(s.offloads))
		}
	}
	return all
}

func sectionOf(name string) (section, error) {
	for _, sec := range sections {
		if sec.name == name {
			return sec, nil
		}
	}
	return section{}, fmt.Errorf("no section %q: relayed, direct, tls or filter", name)
}

// measure opens a lab for each system of a section and takes every figure,
// alternating.
func measure(ctx context.Context, s settings, sec section, offload bool, r *report) (err error) {
	var systems []system
	defer func() {
		for _, sys := range systems {
			err = errors.Join(err, sys.close())
		}
	}()
	for _, open := range sec.systems {
		sys := open(s)
		systems = append(systems, sys)
		if err := within(ctx, time.Minute, func(ctx context.Context) error { return sys.open(ctx, !offload) }); err != nil {
			return fmt.Errorf("%s: %w", sys.name(), err)
		}
	}
	for round := range s.rounds {
		samples := make([]sample, len(systems))
		for i, sys := range systems {
			samples[i] = sample{System: sys.name(), Offload: offload, Round: round + 1, Figures: map[string]float64{}}
		}
		for _, p := range probesOf(s, sec) {
			for i, sys := range systems {
				err := within(ctx, time.Duration(s.seconds)*time.Second+time.Minute, func(ctx context.Context) error {
					return p.take(ctx, sys, samples[i].Figures)
				})
				if err != nil {
					return fmt.Errorf("%s, %s: %w", sys.name(), p.name, err)
				}
				fmt.Printf("offloads %-3s  round %d/%d  %-7s %-19s %s\n",
					onOff(offload), round+1, s.rounds, p.name, sys.name(), p.say(samples[i].Figures))
			}
		}
		for i, sys := range systems {
			if err := sys.stop(); err != nil {
				return fmt.Errorf("stop %s: %w", sys.name(), err)
			}
			r.Samples = append(r.Samples, samples[i])
		}
		slices.Reverse(systems) // a machine that drifts in one direction favours neither of two neighbours
	}
	return nil
}

// within gives f a deadline.
func within(ctx context.Context, d time.Duration, f func(context.Context) error) error {
	ctx, cancel := context.WithTimeout(ctx, d)
	defer cancel()
	return f(ctx)
}

func onOff(on bool) string {
	if on {
		return "on"
	}
	return "off"
}
