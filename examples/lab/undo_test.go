//go:build linux

package lab_test

import (
	"context"
	"regexp"
	"strings"
	"testing"
	"time"

	"overlayd/examples/lab"
	"overlayd/examples/lab/labtest"
)

// endings are the ways in which a daemon's life ends, after which the machine
// has to be as it was.
var endings = []struct {
	name string
	end  func(context.Context, *testing.T, *daemon)
}{
	{"Ctrl-C", func(_ context.Context, t *testing.T, d *daemon) {
		if err := d.process.Interrupt(); err != nil {
			t.Errorf("%s after Ctrl-C: %v", d.machine.Name, err)
		}
	}},
	{"overlayd down", func(ctx context.Context, t *testing.T, d *daemon) {
		if _, err := d.machine.Overlayd(ctx, "down"); err != nil {
			t.Fatal(err)
		}
		if err := d.process.Ended(); err != nil {
			t.Errorf("%s after overlayd down: %v", d.machine.Name, err)
		}
	}},
	{"a closed terminal", func(_ context.Context, t *testing.T, d *daemon) {
		if err := d.process.Hangup(); err != nil {
			t.Errorf("%s after SIGHUP: %v", d.machine.Name, err)
		}
	}},
	{"kill -9 and overlayd cleanup", func(ctx context.Context, t *testing.T, d *daemon) {
		d.process.Kill()
		out, err := d.machine.Overlayd(ctx, "cleanup")
		if err != nil {
			t.Fatal(err)
		}
		if gateway := d.args[0] == "gateway"; !strings.Contains(out, "rule del ") || strings.Contains(out, "iptables -t nat -X OVL-") != gateway {
			t.Errorf("cleanup of %s took back:\n%s", d.machine.Name, out)
		}
		if again, err := d.machine.Overlayd(ctx, "cleanup"); err != nil || again != "nothing to clean up" {
			t.Errorf("a second cleanup of %s: %v\n%s", d.machine.Name, err, again)
		}
	}},
	{"kill -9, a restart, and Ctrl-C", func(ctx context.Context, t *testing.T, d *daemon) {
		d.process.Kill()
		var err error
		if d.process, err = d.machine.Serve(ctx, d.args...); err != nil {
			t.Fatal(err)
		}
		if err := d.process.Interrupt(); err != nil {
			t.Errorf("%s after Ctrl-C: %v", d.machine.Name, err)
		}
	}},
}

// However the daemons end, the machines are as before, and while they run, no
// rule of anybody else has changed.
func TestNothingIsChangedForGood(t *testing.T) {
	for _, c := range []struct {
		name string
		o    lab.Options
	}{
		{"bare machines", lab.Options{}},
		{"Docker on the gateway", lab.Options{Docker: true}},
	} {
		t.Run(c.name, func(t *testing.T) {
			c.o.Overlayd = labtest.Overlayd(t)
			ctx, l := labtest.New(t, c.o)
			machines := []*lab.Machine{l.Laptop, l.Gateway, l.VPS} // the relay last
			before := map[*lab.Machine]string{}
			foreign := map[*lab.Machine]string{}
			for _, m := range machines {
				before[m], foreign[m] = everything(ctx, t, m), rules(ctx, t, m)
			}
			j, err := l.Join(ctx)
			if err != nil {
				t.Fatal(err)
			}
			all := daemons(l, j)
			pings := pinging(t, l.Laptop, lab.HostAddr)
			for i, ending := range endings {
				if i > 0 {
					for _, name := range []string{"relay", "gateway", "laptop"} {
						all[name].start(ctx, t, l)
					}
				}
				pings.back(ctx, t, time.Now())
				for _, m := range machines {
					if d := lab.Differences(foreign[m], withoutOurs(rules(ctx, t, m))); d != "" {
						t.Errorf("%s: rules of others have changed:\n%s", m.Name, d)
					}
				}
				for _, name := range []string{"laptop", "gateway", "relay"} {
					ending.end(ctx, t, all[name])
				}
				for _, m := range machines {
					if d := lab.Differences(before[m], everything(ctx, t, m)); d != "" {
						t.Errorf("%s: after %s the machine is not as before:\n%s", m.Name, ending.name, d)
					}
				}
			}
		})
	}
}

// everything is the machine's snapshot, and its firewall to the last byte but
// for counters and dates.
func everything(ctx context.Context, t *testing.T, m *lab.Machine) string {
	t.Helper()
	s, err := m.Snapshot(ctx)
	if err != nil {
		t.Fatal(err)
	}
	return s + rules(ctx, t, m)
}

var (
	savedDate  = regexp.MustCompile(`(?m)^#.*\n`)
	savedCount = regexp.MustCompile(`(?m)^(:.*) \[\d+:\d+\]$`)
)

func rules(ctx context.Context, t *testing.T, m *lab.Machine) string {
	t.Helper()
	var all strings.Builder
	for _, save := range []string{"iptables-save", "ip6tables-save"} {
		out, err := m.Command(ctx, save).Output()
		if err != nil {
			t.Fatal(err)
		}
		all.WriteString(savedCount.ReplaceAllString(savedDate.ReplaceAllString(string(out), ""), "$1"))
	}
	return all.String()
}

// emptyTable is a table in which nothing happens: ours leave one while we run.
var emptyTable = regexp.MustCompile(`(?m)^\*\w+\n(?::[A-Z]+ ACCEPT\n)*COMMIT\n`)

// withoutOurs takes the rules of overlayd out.
func withoutOurs(saved string) string {
	var rest strings.Builder
	for line := range strings.Lines(saved) {
		if !strings.Contains(line, "OVL-") {
			rest.WriteString(line)
		}
	}
	return emptyTable.ReplaceAllString(rest.String(), "")
}
