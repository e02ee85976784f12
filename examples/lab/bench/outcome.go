//go:build linux

package main

import (
	"fmt"
	"slices"
	"strings"
	"text/tabwriter"
	"time"
)

// outcome is what came of an event: how long it took in each round.
type outcome struct {
	Name            string    `json:"name"`
	What            string    `json:"what"`
	SecondsOfRounds []float64 `json:"seconds_of_rounds"`
	P50             float64   `json:"p50_s"`
	Worst           float64   `json:"worst_s"`
	Target          *float64  `json:"target_s"` // null: none is set
	Met             *bool     `json:"met"`      // by the worst round

	target time.Duration
}

// judged computes what follows from the rounds.
func (o outcome) judged() outcome {
	o.P50, o.Worst = median(o.SecondsOfRounds), slices.Max(o.SecondsOfRounds)
	if o.target >= 0 {
		most := o.target.Seconds()
		met := o.Worst <= most
		o.Target, o.Met = &most, &met
	}
	return o
}

// recoveryReport is the JSON of a run of `bench recovery`.
type recoveryReport struct {
	Schema string    `json:"schema"`
	Time   time.Time `json:"time"`
	machine
	Busy   float64   `json:"busy_before"` // share of the machine that others used before the run
	Rounds int       `json:"rounds"`
	SleepS float64   `json:"sleep_s"`
	Events []outcome `json:"events"`
}

func (r *recoveryReport) stamp(now time.Time) time.Time {
	r.Time = now.UTC()
	return r.Time
}

// text renders the table.
func (r *recoveryReport) text() string {
	var b strings.Builder
	fmt.Fprintf(&b, "Linux %s, %d CPUs, %s; seconds from the event to the first of ten echoes in a row, one asked for every %v, in %d rounds; a sleep is %.0f s\n\n",
		r.Kernel, r.CPUs, r.Go, trainEvery, r.Rounds, r.SleepS)
	w := tabwriter.NewWriter(&b, 0, 0, 3, ' ', 0)
	fmt.Fprintln(w, "  \tevent\t\tp50\tworst\tat most")
	for _, o := range r.Events {
		word, limit := "", "-"
		if o.Target != nil {
			word, limit = verdict{Met: *o.Met}.word(), fmt.Sprintf("%.1f", *o.Target)
		}
		fmt.Fprintf(w, "  %s\t%s\t%s\t%.3f\t%.3f\t%s\n", word, o.Name, o.What, o.P50, o.Worst, limit)
	}
	w.Flush()
	return b.String()
}
