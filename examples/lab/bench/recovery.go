//go:build linux

package main

import (
	"cmp"
	"context"
	"errors"
	"flag"
	"fmt"
	"math/rand/v2"
	"os"
	"slices"
	"strconv"
	"strings"
	"time"
)

// recovery are the settings of `bench recovery`: how soon packets flow again
// after something has happened.
type recovery struct {
	settings
	events []event
	sleep  time.Duration // how long a suspended machine sleeps
}

func parseRecovery(args []string) (recovery, error) {
	rounds, err := strconv.Atoi(cmp.Or(os.Getenv("ROUNDS"), "10"))
	if err != nil {
		return recovery{}, fmt.Errorf("read ROUNDS: %w", err)
	}
	var r recovery
	flags := flag.NewFlagSet("bench recovery", flag.ExitOnError)
	flags.StringVar(&r.overlayd, "overlayd", "bin/overlayd", "the overlayd `binary`")
	flags.IntVar(&r.rounds, "rounds", rounds, "how often everything happens")
	flags.DurationVar(&r.sleep, "sleep", 200*time.Second, "how long a suspended machine sleeps")
	only := flags.String("only", os.Getenv("ONLY"), "the `events` whose names begin with one of these words; empty: all")
	flags.StringVar(&r.out, "out", "bench-results", "the `directory` of the JSON")
	if err := flags.Parse(args); err != nil {
		return recovery{}, err
	}
	if r.rounds < 1 || r.rounds > 1000 {
		return recovery{}, errors.New("rounds are 1 to 1000")
	}
	words := strings.Split(*only, ",")
	for _, e := range events {
		if slices.ContainsFunc(words, func(w string) bool { return strings.HasPrefix(e.name, w) }) {
			r.events = append(r.events, e)
		}
	}
	if len(r.events) == 0 {
		var names []string
		for _, e := range events {
			names = append(names, e.name)
		}
		return recovery{}, fmt.Errorf("no event %s: there are %s", *only, strings.Join(names, ", "))
	}
	return r, nil
}

const (
	// patience is how long a round waits for packets to flow again. One in which
	// they do not counts as that.
	patience = time.Minute
	// watched is how long after a harmless event something may be lost.
	watched = 10 * time.Second
	// spread sets rounds apart by a random time: timers of seconds must not be
	// met in the same phase each time.
	spread = 3 * time.Second
)

func runRecovery(ctx context.Context, args []string) error {
	r, err := parseRecovery(args)
	if err != nil {
		return err
	}
	rep := &recoveryReport{Schema: "overlayd.bench-recovery/v1", machine: thisMachine(), Rounds: r.rounds, SleepS: r.sleep.Seconds()}
	if rep.Busy, err = busy(ctx); err != nil {
		return err
	}
	if rep.Busy > quiet {
		fmt.Printf("careful: %.0f %% of this machine is busy with something else\n", 100*rep.Busy)
	}
	var failed error
	for _, e := range r.events {
		row, err := r.measure(ctx, e)
		if err != nil && ctx.Err() != nil {
			return err
		}
		if err != nil { // the others may still be measured
			failed = errors.Join(failed, fmt.Errorf("%s: %w", e.name, err))
			continue
		}
		rep.Events = append(rep.Events, row)
	}
	fmt.Print("\n", rep.text())
	file, err := save(r.out, "recovery-", rep.stamp(time.Now()), rep)
	if err != nil {
		return err
	}
	fmt.Println("\nas JSON:", file)
	return failed
}

// measure lets an event happen again and again to a lab of its own.
func (r recovery) measure(ctx context.Context, e event) (row outcome, err error) {
	s := &scene{overlaid: *e.on(r.settings)}
	defer func() { err = errors.Join(err, s.close()) }()
	if err := within(ctx, time.Minute, s.begin); err != nil {
		return row, err
	}
	row = outcome{Name: e.name, What: e.what, target: e.target}
	for s.round = 1; s.round <= r.rounds; s.round++ {
		took, err := r.happen(ctx, e, s)
		if err != nil {
			return row, err
		}
		row.SecondsOfRounds = append(row.SecondsOfRounds, took.Seconds())
		fmt.Printf("%-24s round %d/%d  %7.3f s\n", e.name, s.round, r.rounds, took.Seconds())
	}
	return row.judged(), nil
}

// happen is one round.
func (r recovery) happen(ctx context.Context, e event, s *scene) (took time.Duration, err error) {
	if err := within(ctx, patience, s.settle); err != nil {
		return 0, fmt.Errorf("before the event: %w", err)
	}
	if err := pause(ctx, time.Second+rand.N(spread)); err != nil {
		return 0, err
	}
	if e.before != nil {
		if err := within(ctx, r.sleep+patience, func(ctx context.Context) error { return e.before(ctx, s, r) }); err != nil {
			return 0, err
		}
	}
	waiting := false // all is done, and it is only a matter of time
	err = within(ctx, patience, func(ctx context.Context) error {
		begin := time.Now()
		if err := e.do(ctx, s); err != nil {
			return err
		}
		waiting = true
		switch {
		case e.harmless:
			if err := pause(ctx, watched); err != nil {
				return err
			}
			took = s.train.Gap(begin, begin.Add(watched-time.Second)) // the last second's may be on their way
		case e.until != nil:
			if err := e.until(ctx, s); err != nil {
				return err
			}
			took = time.Since(begin)
		default:
			at, err := s.train.Back(ctx, time.Now())
			if err != nil {
				return err
			}
			took = at.Sub(begin)
		}
		return nil
	})
	if err != nil {
		if !waiting || ctx.Err() != nil {
			return 0, err
		}
		took = patience // not back: it counts as that, and the next round may tell more
		fmt.Printf("%s: %v\n", e.name, err)
	}
	if e.undo != nil {
		return took, e.undo(ctx, s)
	}
	return took, nil
}

// pause waits.
func pause(ctx context.Context, d time.Duration) error {
	select {
	case <-ctx.Done():
		return context.Cause(ctx)
	case <-time.After(d):
		return nil
	}
}
