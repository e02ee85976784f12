//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"time"

	"overlayd/examples/lab"
)

// scene is overlayd at work in a lab, for an event to happen to.
type scene struct {
	overlaid
	train *lab.Train
	round int // counts from 1

	used   string       // the role of the relay that packets go by, of two
	frozen *lab.Freezer // nil: nothing is
}

// trainEvery is how often an echo is asked for: the grain of the figures.
const trainEvery = 10 * time.Millisecond

// begin joins the machines and starts the train.
func (s *scene) begin(ctx context.Context) error {
	if err := s.overlaid.begin(ctx, s.options, lab.HostAddr); err != nil {
		return err
	}
	j, err := s.lab.Join(ctx)
	if err != nil {
		return err
	}
	s.running = map[string]*lab.Process{"client": j.Laptop, "relay": j.Relay, "gateway": j.Gateway}
	if s.options.SecondVPS {
		if s.running["second"], err = s.lab.JoinRelay(ctx); err != nil {
			return err
		}
	}
	s.train, err = s.lab.Laptop.Echoes(lab.HostAddr, trainEvery)
	return err
}

func (s *scene) close() error {
	var err error
	if s.frozen != nil {
		err = s.frozen.Close()
	}
	if s.train != nil {
		s.train.Close()
	}
	return errors.Join(err, s.overlaid.close())
}

// settle waits for all relays too.
func (s *scene) settle(ctx context.Context) error {
	if err := s.overlaid.settle(ctx); err != nil || !s.options.SecondVPS {
		return err
	}
	for _, m := range []*lab.Machine{s.lab.Laptop, s.lab.Gateway} {
		err := lab.Until(ctx, func(ctx context.Context) error {
			st, err := statusOf(ctx, m)
			if err != nil {
				return err
			}
			for _, r := range st.Relays {
				if r.State != "up" {
					return fmt.Errorf("%s has not reached the relay %s: %s", m.Name, r.Name, r.State)
				}
			}
			return nil
		})
		if err != nil {
			return err
		}
	}
	return nil
}

// who is a role's machine, and how its daemon is started when it has joined.
func (s *scene) who(role string) (*lab.Machine, []string) {
	switch role {
	case "relay":
		return s.lab.VPS, lab.RelayArgs
	case "second":
		return s.lab.VPS2, []string{"relay"}
	case "gateway":
		return s.lab.Gateway, []string{"gateway"}
	}
	return s.lab.Laptop, []string{"up"}
}

// start starts a role's daemon.
func (s *scene) start(role string) (err error) {
	m, args := s.who(role)
	s.running[role], err = m.Start(s.lab.Options.Overlayd, args...)
	return err
}

// kill is kill -9.
func (s *scene) kill(role string) { s.running[role].Kill() }

// end stops a role's daemon in order.
func (s *scene) end(role string) error {
	if err := s.running[role].Stop(); err != nil {
		return fmt.Errorf("stop the %s: %w: %s", role, err, s.running[role].Tail())
	}
	return nil
}

// laptopBy waits until the laptop's packets go to the gateway in a way.
func (s *scene) laptopBy(ctx context.Context, kind, transport string) error {
	return lab.Until(ctx, func(ctx context.Context) error {
		p, err := pathTo(ctx, s.lab.Laptop, "lab-gw")
		if err == nil && (p.Kind != kind || p.Transport != transport) {
			err = fmt.Errorf("the laptop's path is %+v, not %s by %s", p, kind, transport)
		}
		return err
	})
}

// say does something to a machine, in the words of its command line.
func say(ctx context.Context, m *lab.Machine, script string, args ...any) error {
	_, err := m.Run(ctx, "sh", "-ec", fmt.Sprintf(script, args...))
	return err
}
