//go:build linux

package main

import (
	"context"
	"encoding/json"
	"errors"
	"fmt"
	"strconv"
	"strings"

	"overlayd/examples/lab"
)

// transfer is a way to fill the way.
type transfer struct {
	name string
	args []string // of iperf3
}

var transfers = []transfer{
	{"one", nil},
	{"four", []string{"-P", "4"}},
	{"reverse", []string{"-R"}},
}

// serveIperf starts the server on a machine; it serves one client after the
// other until the lab closes.
func serveIperf(ctx context.Context, m *lab.Machine) error {
	p, err := m.Start("iperf3", "-s", "--forceflush")
	if err != nil {
		return err
	}
	return lab.Until(ctx, func(context.Context) error {
		if tail := p.Tail(); !strings.Contains(tail, "Server listening") {
			return fmt.Errorf("iperf3 does not listen: %s", tail)
		}
		return nil
	})
}

// result is what the receiver got.
type result struct{ mbps, bytes float64 }

// iperf runs a transfer between the laptop and the goal.
func iperf(ctx context.Context, s system, t transfer, seconds int) (result, error) {
	args := append([]string{"-c", s.goal(), "-J", "-t", strconv.Itoa(seconds), "--connect-timeout", "5000"}, t.args...)
	out, err := s.machines().Laptop.Command(ctx, "iperf3", args...).Output()
	r, parseErr := parseIperf(out)
	if err := errors.Join(err, parseErr); err != nil {
		return result{}, fmt.Errorf("iperf3: %w", err)
	}
	return r, nil
}

// parseIperf reads iperf3's JSON.
func parseIperf(out []byte) (result, error) {
	var report struct {
		Error string `json:"error"`
		End   struct {
			Received struct {
				Bytes float64 `json:"bytes"`
				Rate  float64 `json:"bits_per_second"`
			} `json:"sum_received"`
		} `json:"end"`
	}
	if err := json.Unmarshal(out, &report); err != nil {
		return result{}, fmt.Errorf("read its report: %w", err)
	}
	if report.Error != "" {
		return result{}, errors.New(report.Error)
	}
	if report.End.Received.Bytes == 0 {
		return result{}, errors.New("nothing arrived")
	}
	return result{mbps: report.End.Received.Rate / 1e6, bytes: report.End.Received.Bytes}, nil
}
