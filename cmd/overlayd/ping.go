package main

import (
	"context"
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"overlayd/overlay"
)

// untilDirectFor is how long --until-direct waits when no --timeout is given: a
// search takes seconds, and the next one follows after some five.
const untilDirectFor = 30 * time.Second

// pingFlags are what one run of ping is told.
type pingFlags struct {
	count       number
	interval    span
	timeout     span
	untilDirect bool
}

func (p *program) pingCommand() *cobra.Command {
	f := pingFlags{count: 4, interval: span(time.Second)}
	cmd := &cobra.Command{
		Use:   "ping NAME|IP",
		Short: "try the way to a machine, or to a host behind a gateway",
		Long: `Send echo requests to a machine of the network, or to a host behind a gateway, and
print with each answer the way it took. Ends with 7 when nothing answered,
and with 6 when the policy refuses it.

With --until-direct it goes on until an answer came with no relay in between, and
ends with 0 then; with 7 and the reason, when none did in time.`,
		Example: `  overlayd ping lab-gw
  overlayd ping 192.168.1.201 -c 10 -i 200ms
  overlayd ping lab-gw --until-direct --timeout 10s`,
		Args: words(1, 1, "one NAME or IP"),
		RunE: func(cmd *cobra.Command, args []string) error {
			if !cmd.Flags().Changed("count") && f.untilDirect {
				f.count = 0
			}
			if f.timeout == 0 && f.untilDirect && f.count == 0 {
				f.timeout = span(untilDirectFor)
			}
			if p.common.json && f.count == 0 && f.timeout == 0 {
				return usage("give --count or --timeout", "one JSON object needs an end")
			}
			return p.ping(cmd.Context(), args[0], f)
		},
		ValidArgsFunction: p.completeFirst(p.peerNames),
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.VarP(&f.count, "count", "c", "how many; 0 goes on until Ctrl-C")
	flags.VarP(&f.interval, "interval", "i", "pause between two")
	flags.Var(&f.timeout, "timeout", "end after so long (with --until-direct: 30s)")
	flags.BoolVar(&f.untilDirect, "until-direct", false, "end when an answer came directly")
	p.jsonFlag(cmd)
	return cmd
}

// ping runs one ping and prints what came of it.
func (p *program) ping(ctx context.Context, target string, f pingFlags) error {
	within, stop := context.WithCancel(ctx)
	defer stop()
	if f.timeout > 0 {
		within, stop = context.WithTimeout(ctx, time.Duration(f.timeout))
		defer stop()
	}
	t := pingTally{target: target}
	err := p.engine.dial(p.common.socket).Ping(within, target, int(f.count), time.Duration(f.interval),
		func(pong overlay.Pong) {
			if t.direct && f.untilDirect {
				return // on its way when we had seen enough
			}
			t.add(pong)
			if p.common.json {
				t.keep(pong)
			} else {
				fmt.Fprintln(p.stdout, pongText(pong))
			}
			if pong.Lost && pong.Path.Via != "" && pong.Path.Kind != "none" && !t.asked && t.answered == 0 {
				t.asked, t.carrier = true, p.askCarrier(within, pong.Path.Via)
			}
			if t.direct && f.untilDirect {
				stop()
			}
		})
	ended := within.Err() != nil && ctx.Err() == nil // by ourselves
	if err != nil && !ended && !(interrupted(ctx, err) && t.sent > 0) {
		return err
	}
	if p.common.json {
		if err := printJSON(p.stdout, t.report()); err != nil {
			return err
		}
	} else {
		fmt.Fprintln(p.stdout, t.text())
	}
	return t.verdict(f.untilDirect)
}

// carrierWord is what is known of the machine that carries a host's packets.
type carrierWord int

const (
	carrierUnknown carrierWord = iota // it was not asked, or could not be
	carrierAnswers
	carrierSilent
)

// askCarrier finds out whether it is the host that does not answer, or the machine
// that carries its packets already.
func (p *program) askCarrier(ctx context.Context, name string) (w carrierWord) {
	_ = p.engine.dial(p.common.socket).Ping(ctx, name, 1, time.Second, func(pong overlay.Pong) {
		switch {
		case !pong.Lost:
			w = carrierAnswers
		case pong.Refused == "":
			w = carrierSilent
		}
	}) // who cannot be asked stays unknown
	return w
}

func pongText(p overlay.Pong) string {
	path := p.Path.String()
	if p.Path.Reason != "" && !p.Path.Direct {
		path += " (" + reasonOf(p.Path.Reason, p.Path.Transport).short + ")"
	}
	switch {
	case p.Refused != "":
		return fmt.Sprintf("refused by policy of %s: seq %d to %s, %s", p.Refused, p.Seq, p.Addr, path)
	case p.Lost:
		return fmt.Sprintf("no answer from %s: seq %d, %s", p.Addr, p.Seq, path)
	}
	return fmt.Sprintf("pong from %s: seq %d, %s, %s", p.Addr, p.Seq, rttText(p.RTT), path)
}

// rttText writes a round trip with the digits that mean something.
func rttText(d time.Duration) string {
	ms := float64(d) / float64(time.Millisecond)
	if ms < 10 {
		return fmt.Sprintf("%.2f ms", ms)
	}
	return fmt.Sprintf("%.1f ms", ms)
}

// pingTally sums up a run of pings.
type pingTally struct {
	target           string
	sent, answered   int
	least, most, sum time.Duration
	direct           bool   // an answer came with nobody in between
	refused          string // who said that it is not allowed
	asked            bool   // after the machine that carries the target's packets
	carrier          carrierWord
	last             overlay.PongPath
	pongs            []pongJSON // the newest
}

func (t *pingTally) add(p overlay.Pong) {
	t.sent++
	t.last = p.Path
	if p.Refused != "" {
		t.refused = p.Refused
	}
	if p.Lost {
		return
	}
	t.direct = t.direct || p.Path.Direct
	if t.answered == 0 || p.RTT < t.least {
		t.least = p.RTT
	}
	t.answered++
	t.most = max(t.most, p.RTT)
	t.sum += p.RTT
}

func (t *pingTally) text() string {
	s := fmt.Sprintf("%d sent, %d answered", t.sent, t.answered)
	if t.answered > 0 {
		s += fmt.Sprintf(", least %s, mean %s, most %s",
			rttText(t.least), rttText(t.sum/time.Duration(t.answered)), rttText(t.most))
	}
	return s
}

// verdict is how the run ends.
func (t *pingTally) verdict(untilDirect bool) error {
	switch {
	case t.answered == 0 && t.refused != "":
		return failure(overlay.ExitDenied, "ask for access with overlayd request "+t.target+"/icmp",
			"%s is refused by the policy that %s enforces", t.target, t.refused)
	case t.answered == 0:
		return t.silence()
	case untilDirect && !t.direct:
		w := reasonOf(t.last.Reason, t.last.Transport)
		return failure(overlay.ExitUnreachable, w.fix, "no answer from %s came directly: %s", t.target, w.long)
	}
	return nil
}

// silence is how a run without any answer ends.
func (t *pingTally) silence() error {
	switch via := t.last.Via; {
	case t.last.Kind == "none":
		return failure(overlay.ExitUnreachable, "look at the relay and the health items of overlayd status",
			"%s does not answer; there is no way to it now: %s", t.target, reasonOf(t.last.Reason, t.last.Transport).long)
	case via != "" && t.carrier == carrierAnswers:
		return failure(overlay.ExitUnreachable, "see that it is on and lets pings in, and ping it from "+via,
			"%s does not answer; %s, which carries its packets, does", t.target, via)
	case via != "" && t.carrier == carrierSilent:
		return failure(overlay.ExitUnreachable, "see that "+via+" is on, and what overlayd status says there",
			"%s does not answer, nor does %s, which carries its packets", t.target, via)
	case via != "":
		return failure(overlay.ExitUnreachable, "try overlayd ping "+via+", which carries its packets",
			"%s does not answer", t.target)
	}
	return failure(overlay.ExitUnreachable, "see that it is on, and what overlayd status says there and here",
		"%s does not answer", t.target)
}

// mostPongs bounds what --json remembers; the sums count all.
const mostPongs = 10_000

// pongJSON is one answer, or its absence.
type pongJSON struct {
	Seq   int      `json:"seq"`
	RTTMS *float64 `json:"rtt_ms"` // null: none came
	Path  pathJSON `json:"path"`
	// RefusedBy says whose policy refused it; null: nobody's.
	RefusedBy *string `json:"refused_by"`
}

// pathJSON is the way that it took.
type pathJSON struct {
	Direct    bool   `json:"direct"`
	Kind      string `json:"kind"`
	Transport string `json:"transport"`
	Relay     string `json:"relay"`
	Endpoint  string `json:"endpoint"`
	Via       string `json:"via"`
	Reason    string `json:"reason"`
}

// keep remembers a pong for report.
func (t *pingTally) keep(p overlay.Pong) {
	j := pongJSON{Seq: p.Seq, Path: pathJSON(p.Path)}
	if p.Refused != "" {
		j.RefusedBy = &p.Refused
	}
	if !p.Lost {
		j.RTTMS = inMilliseconds(p.RTT)
	}
	if len(t.pongs) == mostPongs {
		t.pongs = t.pongs[1:]
	}
	t.pongs = append(t.pongs, j)
}

// pingJSON is what ping --json prints.
type pingJSON struct {
	Schema   string     `json:"schema"`
	Target   string     `json:"target"`
	Sent     int        `json:"sent"`
	Answered int        `json:"answered"`
	Direct   bool       `json:"direct"` // an answer came with no relay in between
	LeastMS  *float64   `json:"rtt_least_ms"`
	MeanMS   *float64   `json:"rtt_mean_ms"`
	MostMS   *float64   `json:"rtt_most_ms"`
	Pongs    []pongJSON `json:"pongs"`
}

func (t *pingTally) report() pingJSON {
	j := pingJSON{Schema: "overlayd.ping/v1", Target: t.target, Sent: t.sent, Answered: t.answered,
		Direct: t.direct, Pongs: notNil(t.pongs)}
	if t.answered > 0 {
		j.LeastMS, j.MostMS = inMilliseconds(t.least), inMilliseconds(t.most)
		j.MeanMS = inMilliseconds(t.sum / time.Duration(t.answered))
	}
	return j
}

// inMilliseconds rounds to microseconds.
func inMilliseconds(d time.Duration) *float64 {
	ms := float64(d.Round(time.Microsecond)) / float64(time.Millisecond)
	return &ms
}
