package main

import (
	"fmt"
	"time"

	"github.com/spf13/cobra"

	"overlayd/overlay"
)

func (p *program) pingCommand() *cobra.Command {
	count, interval := number(4), span(time.Second)
	cmd := &cobra.Command{
		Use:   "ping NAME|IP",
		Short: "try the way to a machine, or to a host behind a gateway",
		Long: `Send echo requests to a machine of the network, or to a host behind a gateway, and
print with each answer the way it took. Ends with 7 when nothing answered.`,
		Example: `  overlayd ping lab-gw
  overlayd ping 192.168.1.201 -c 10 -i 200ms`,
		Args: words(1, 1, "one NAME or IP"),
		RunE: func(cmd *cobra.Command, args []string) error {
			var t pingTally
			err := p.engine.dial(p.common.socket).Ping(cmd.Context(), args[0], int(count), time.Duration(interval),
				func(pong overlay.Pong) {
					t.add(pong)
					fmt.Fprintln(p.stdout, pongText(pong))
				})
			if err != nil && !(interrupted(cmd.Context(), err) && t.sent > 0) {
				return err
			}
			fmt.Fprintln(p.stdout, t.text())
			if t.answered == 0 {
				return failure(overlay.ExitUnreachable, "look at the path and the health items of overlayd status",
					"%s does not answer", args[0])
			}
			return nil
		},
		ValidArgsFunction: p.completeFirst(p.peerNames),
	}
	f := cmd.Flags()
	f.SortFlags = false
	f.VarP(&count, "count", "c", "how many; 0 goes on until Ctrl-C")
	f.VarP(&interval, "interval", "i", "pause between two")
	return cmd
}

func pongText(p overlay.Pong) string {
	if p.Lost {
		return fmt.Sprintf("no answer from %s: seq %d, %s", p.Addr, p.Seq, p.Path)
	}
	return fmt.Sprintf("pong from %s: seq %d, %s, %s", p.Addr, p.Seq, rttText(p.RTT), p.Path)
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
	sent, answered   int
	least, most, sum time.Duration
}

func (t *pingTally) add(p overlay.Pong) {
	t.sent++
	if p.Lost {
		return
	}
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
