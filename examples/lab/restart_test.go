//go:build linux

package lab_test

import (
	"bytes"
	"context"
	"fmt"
	"os"
	"slices"
	"testing"
	"time"

	"overlayd/examples/lab"
	"overlayd/examples/lab/labtest"
)

// healsWithin is how soon after the restart traffic has to be back: a second
// by the promise, the rest for a busy test machine.
const healsWithin = 3 * time.Second

// daemon is one of the three, and how it is started again.
type daemon struct {
	machine *lab.Machine
	process *lab.Process
	args    []string
}

func daemons(l *lab.Lab, j *lab.Joined) map[string]*daemon {
	return map[string]*daemon{
		"relay":   {l.VPS, j.Relay, lab.RelayArgs},
		"gateway": {l.Gateway, j.Gateway, []string{"gateway"}},
		"laptop":  {l.Laptop, j.Laptop, []string{"up"}},
	}
}

// start starts the daemon again and returns when that was, and how long it took
// to log that it is ready.
func (d *daemon) start(ctx context.Context, t *testing.T, l *lab.Lab) (at time.Time, ready time.Duration) {
	t.Helper()
	before := d.readied(t)
	at = time.Now()
	var err error
	if d.process, err = d.machine.Start(l.Options.Overlayd, d.args...); err != nil {
		t.Fatal(err)
	}
	err = lab.Until(ctx, func(context.Context) error {
		if d.readied(t) == before {
			return fmt.Errorf("%s is not ready: %s", d.machine.Name, d.process.Tail())
		}
		return nil
	})
	if err != nil {
		t.Fatal(err)
	}
	return at, time.Since(at)
}

// readied counts how often the daemon said so in its log.
func (d *daemon) readied(t *testing.T) int {
	b, err := os.ReadFile(d.process.Log)
	if err != nil {
		t.Fatal(err)
	}
	return bytes.Count(b, []byte("msg=ready "))
}

// Whichever daemon is killed under traffic: once it runs again, traffic is back
// within a second, a TCP stream goes on where it was, and nobody touched the
// other two.
func TestKilledAndRestarted(t *testing.T) {
	labtest.Waits(t)
	rounds, downtimes := 1, []time.Duration{0, 10 * time.Second}
	if long {
		rounds, downtimes = 10, []time.Duration{0, 10 * time.Second, 90 * time.Second}
	}
	for _, c := range []struct {
		name, path string
		nat        lab.NAT
	}{{"relay", "relay", lab.Hard}, {"gateway", "relay", lab.Hard}, {"laptop", "relay", lab.Hard}, {"relay", "direct", lab.Cone}, {"gateway", "direct", lab.Cone}} {
		t.Run(c.name+", "+c.path, func(t *testing.T) {
			labtest.Waits(t)
			name, downtimes := c.name, downtimes
			if c.path == "direct" && !long {
				downtimes = downtimes[:1]
			}
			ctx, l, j := labtest.JoinedFor(t, time.Hour, lab.Options{Home: c.nat, Lab: c.nat})
			tcp, _ := echoServers(t, l.Host)
			d := daemons(l, j)[name]
			pings := pinging(t, l.Laptop, lab.HostAddr)
			data := streaming(ctx, t, l.Laptop, tcp)
			pings.back(ctx, t, time.Now())
			path(ctx, t, l.Laptop, "lab-gw", c.path)
			for _, down := range downtimes {
				n := rounds
				if down > time.Minute {
					n = 1
				}
				var all []time.Duration
				for range n {
					all = append(all, killRound(ctx, t, l, d, pings, data, down))
				}
				p50, worst := spread(all)
				t.Logf("%s killed, down for %v: traffic back after p50 %v, worst %v of %d", name, down, p50, worst, len(all))
			}
		})
	}
}

// spread returns the median and the worst of some times.
func spread(all []time.Duration) (p50, worst time.Duration) {
	slices.Sort(all)
	return all[len(all)/2].Round(time.Millisecond), all[len(all)-1].Round(time.Millisecond)
}

// killRound kills a daemon, leaves it dead for a while, starts it again, and
// returns how long after that the traffic was back.
func killRound(ctx context.Context, t *testing.T, l *lab.Lab, d *daemon, pings pinger, data *stream, down time.Duration) time.Duration {
	t.Helper()
	data.flows(ctx, t, time.Now())
	d.process.Kill()
	select {
	case <-time.After(down): // the time that its absence lasts is what is tested
	case <-ctx.Done():
		t.Fatal(ctx.Err())
	}
	at, ready := d.start(ctx, t, l)
	back := pings.back(ctx, t, at)
	if back > healsWithin {
		t.Errorf("traffic was back %v after the restart, and %v after the daemon was ready", back, back-ready)
	}
	// TCP itself waits the longer between its tries the longer it was cut off:
	// each gap is twice the one before, and the other end begins its own later.
	within, cancel := context.WithTimeout(ctx, healsWithin+4*down)
	defer cancel()
	stream := data.flows(within, t, at)
	t.Logf("ready after %v, ping after %v, TCP after %v", ready.Round(time.Millisecond), back.Round(time.Millisecond), stream.Round(time.Millisecond))
	return back.Round(time.Millisecond)
}
