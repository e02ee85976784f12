//go:build linux

package main

import (
	"context"
	"errors"
	"fmt"
	"maps"
	"strings"

	"overlayd/examples/lab"
)

// The systems of the section filter.
const (
	noFilter      = "no filter"
	oneRule       = "1 rule"
	noFilterCrowd = "no filter, crowd"
	manyRules     = "10,000 rules, crowd"
)

// filtered is overlayd by its direct path, where what its filter takes is to be
// seen: with it or built without, alone or among a crowd of flows.
type filtered struct {
	overlaid
	rules     int  // of the policy; 0: there is no filter
	isCrowded bool // when it runs, there is a crowd
	crowd     *crowd
}

func bare(s settings, title string) *filtered {
	s.overlayd = s.unfiltered
	f := held(s, title, 1)
	f.rules = 0
	return f
}

func held(s settings, title string, rules int) *filtered {
	f := &filtered{overlaid: *direct(s), rules: rules}
	f.title, f.policy = title, policyOf(rules)
	return f
}

func crowded(f *filtered) *filtered {
	f.isCrowded, f.policy = true, policyOf(10000) // with a filter or without, all else is the same
	return f
}

// policyOf has so many rules. The last lets everything pass; the others are in
// force on every node, and some name both ends.
func policyOf(rules int) string {
	var b strings.Builder
	b.WriteString("rules:\n")
	for i := range rules - 1 {
		src := []string{`"*"`, "node:laptop", "node:lab-gw"}[i%3]
		fmt.Fprintf(&b, "  - {name: r%d, src: %s, dst: [192.168.1.%d, nodes], ports: tcp/%d}\n", i, src, i%250+1, 20000+i)
	}
	b.WriteString("  - {name: everything, src: \"*\", dst: \"*\"}\n")
	return b.String()
}

// settle gathers the crowd, and sees that the filter knows all of it.
func (f *filtered) settle(ctx context.Context) error {
	if err := f.overlaid.settle(ctx); err != nil {
		return err
	}
	if f.isCrowded && f.crowd == nil {
		var err error
		if f.crowd, err = gather(f.lab); err != nil {
			return err
		}
	}
	return lab.Until(ctx, func(ctx context.Context) error {
		_, err := f.inForce(ctx)
		return err
	})
}

func (f *filtered) stop() error {
	f.disperse()
	return f.overlaid.stop()
}

func (f *filtered) close() error {
	f.disperse()
	return f.overlaid.close()
}

func (f *filtered) disperse() {
	if f.crowd != nil {
		f.crowd.close()
		f.crowd = nil
	}
}

// inForce returns what the daemons of both ends say of their filters, and an
// error when that is not what is to be measured.
func (f *filtered) inForce(ctx context.Context) (map[string]float64, error) {
	figures := map[string]float64{}
	for role, m := range map[string]*lab.Machine{"client": f.lab.Laptop, "gateway": f.lab.Gateway} {
		s, err := statusOf(ctx, m)
		if err != nil {
			return nil, err
		}
		count := map[string]float64{}
		for _, c := range s.Counters {
			count[c.Name] = float64(c.Value)
		}
		rules, flows := count["filter_rules"], count["filter_flows"]-count["filter_flows_unproved"]
		switch {
		case f.rules == 0 && count["filter_flows"] > 0:
			return nil, fmt.Errorf("%s has a filter, with %.0f flows", m.Name, count["filter_flows"])
		case f.rules > 0 && rules < float64(f.rules):
			return nil, fmt.Errorf("%s enforces %.0f rules", m.Name, rules)
		case f.rules > 0 && f.isCrowded && flows < crowdFlows*crowdShare:
			return nil, fmt.Errorf("%s has %.0f established flows", m.Name, flows)
		case f.rules > 0:
			figures[role+"_rules"], figures[role+"_flows"] = rules, flows
		}
	}
	if f.crowd != nil && f.crowd.silent() > 0 {
		return nil, fmt.Errorf("%d flows of the crowd have no answer yet", f.crowd.silent())
	}
	return figures, nil
}

// takeInForce takes what a filter enforces, after all that a round carried.
func takeInForce(ctx context.Context, s system, f map[string]float64) error {
	sys, ok := s.(*filtered)
	if !ok {
		return errors.New("it has no filter of ours")
	}
	figures, err := sys.inForce(ctx)
	maps.Copy(f, figures)
	return err
}
