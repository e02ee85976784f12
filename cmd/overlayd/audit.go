package main

import (
	"context"
	"encoding/json"
	"fmt"
	"io"
	"strings"
	"time"

	"github.com/spf13/cobra"

	"overlayd/overlay"
)

// auditFlags are what one run of audit is told.
type auditFlags struct {
	follow, denied bool
	user, host     string
	since          moment
}

func (p *program) auditCommand() *cobra.Command {
	var f auditFlags
	cmd := &cobra.Command{
		Use:   "audit",
		Short: "who did what",
		Long: `Print the record of this machine, the oldest line first: flows that came in by the
tunnel, whose they were, where they went, and by which rule they were allowed, or
that they were denied. On the first relay also who changed what in the network.

With --json every line is one object, as it stands in the record.`,
		Example: `  overlayd audit --since 1h --denied
  overlayd audit -f --user alice
  overlayd audit --host 192.168.1.201 --json | jq -r .user | sort | uniq -c`,
		Args: words(0, 0, ""),
		RunE: func(cmd *cobra.Command, _ []string) error { return p.audit(cmd.Context(), f) },
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.BoolVarP(&f.follow, "follow", "f", false, "go on with what comes, until Ctrl-C")
	flags.Var(text{&f.user, "USER"}, "user", "only what this user did")
	flags.Var(text{&f.host, "HOST"}, "host", "only what went to or came from a node, an address or a prefix")
	flags.Var(&f.since, "since", "only what is younger: 2h, 7d, 2026-05-01, \"2026-05-01 10:00\"")
	flags.BoolVar(&f.denied, "denied", false, "only what was refused")
	p.jsonFlag(cmd)
	cmd.AddCommand(p.verifyRecordCommand())
	return cmd
}

func (p *program) audit(ctx context.Context, f auditFlags) error {
	q := overlay.AuditQuery{Follow: f.follow, User: f.user, Host: f.host, Denied: f.denied, Since: f.since.before(p.now())}
	err := p.engine.dial(p.common.socket).Audit(ctx, q, func(line []byte) error {
		if p.common.json {
			_, err := fmt.Fprintf(p.stdout, "%s\n", line)
			return err
		}
		return writeAudit(p.stdout, line)
	})
	if interrupted(ctx, err) {
		return nil
	}
	return err
}

// change is a line of who changed what.
type change struct {
	Time    time.Time       `json:"time"`
	Who     string          `json:"who"`
	Node    string          `json:"node"`
	From    string          `json:"from"`
	Call    string          `json:"call"`
	Request json.RawMessage `json:"request"`
	Refused string          `json:"refused"`
	About   []string        `json:"about"`
}

// writeAudit prints a line for a person.
func writeAudit(w io.Writer, line []byte) error {
	var c change
	if err := json.Unmarshal(line, &c); err != nil {
		return fmt.Errorf("read the record: %w", err)
	}
	if c.Call != "" {
		_, err := fmt.Fprintf(w, "%s  %s\n", timeText(c.Time), changeText(c))
		return err
	}
	var l overlay.FlowLine
	if err := json.Unmarshal(line, &l); err != nil {
		return fmt.Errorf("read the record: %w", err)
	}
	_, err := fmt.Fprintf(w, "%s  %s\n", timeText(l.At), flowText(l))
	return err
}

func timeText(t time.Time) string { return t.Local().Format("2006-01-02 15:04:05") }

// shownRequest is how many characters of a request are shown: that of a policy is
// the whole policy, which --json has.
const shownRequest = 160

func changeText(c change) string {
	who := c.Who
	if c.Node != "" {
		who += " on " + c.Node
	}
	if c.From != "" && c.From != "socket" {
		who += " from " + c.From
	}
	text := who + "  " + c.Call
	if r := []rune(oneLine(string(c.Request))); len(r) > shownRequest {
		text += " " + string(r[:shownRequest]) + "…"
	} else if s := string(r); s != "" && s != "{}" && s != "null" {
		text += " " + s
	}
	if len(c.About) > 0 && len(c.Request) == 0 {
		text += " " + strings.Join(c.About, ", ")
	}
	if c.Refused != "" {
		text += "  refused: " + oneLine(c.Refused)
	}
	return text
}

// flowText is one line of the record of flows, without its time.
func flowText(l overlay.FlowLine) string {
	who := whoText(l)
	way := "to " + l.Target + " " + l.Protocol
	switch {
	case l.SeenAs != "":
		way = l.Source + " (there " + l.SeenAs + ") " + way
	case l.Source != "": // else it was denied before it had one
		way = l.Source + " " + way
	}
	if l.Client != "" {
		who += " from " + l.Client + " by " + l.Via
	}
	if l.Event == overlay.EventLoginRefused {
		return who + "  login refused: " + l.Why
	}
	text := who + "  " + way + "  "
	switch l.Event {
	case overlay.EventFlowDenied:
		return text + "denied: " + l.Why
	case overlay.EventFlowEnded:
		end := l.At
		if l.EndedAt != nil {
			end = *l.EndedAt
		}
		return text + fmt.Sprintf("allowed by %s, ended after %s (%s), %s in, %s out",
			orUnknown(l.Rule), lastedText(end.Sub(l.BeganAt)), l.Why, bytesText(l.InBytes), bytesText(l.OutBytes))
	}
	return text + "allowed by " + orUnknown(l.Rule) + ", began"
}

// whoText is whose a flow is: a person's at a machine, or a machine's own, as all of a
// gateway's and a relay's are. What comes through a published port may be the relay's.
func whoText(l overlay.FlowLine) string {
	switch {
	case l.User == "" && l.Via != "" && l.Event != overlay.EventLoginRefused:
		return "the relay on " + l.Node
	case l.User == "" && l.Via == "":
		return orUnknown(l.Node)
	case l.User == l.Node:
		return l.User
	}
	return orUnknown(l.User) + " on " + l.Node
}

// lastedText writes how long a flow lasted: most are short.
func lastedText(d time.Duration) string {
	if d < 10*time.Second {
		return secondsText(d)
	}
	return roughly(d)
}

// moment is a flag that is a time, or a span back from now.
type moment struct {
	at   time.Time
	back span
	text string
}

// momentForms are how a time may be written.
var momentForms = []string{time.RFC3339, "2006-01-02T15:04:05", "2006-01-02 15:04:05", "2006-01-02 15:04", "2006-01-02"}

// Set implements pflag.Value.
func (m *moment) Set(s string) error {
	*m = moment{text: s}
	if err := m.back.Set(s); err == nil {
		return nil
	}
	for _, form := range momentForms {
		if at, err := time.ParseInLocation(form, s, time.Local); err == nil {
			m.at = at
			return nil
		}
	}
	return fmt.Errorf("%q is not a time like 2026-05-01 or \"2026-05-01 10:00\", nor how long ago: 2h, 7d", s)
}

func (m *moment) String() string { return m.text }

// Type implements pflag.Value.
func (m *moment) Type() string { return "WHEN" }

// before returns the time that is meant; zero: none.
func (m *moment) before(now time.Time) time.Time {
	if m.back > 0 {
		return now.Add(-time.Duration(m.back))
	}
	return m.at
}
