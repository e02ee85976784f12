//go:build linux

package lab

import (
	"bytes"
	"context"
	"errors"
	"fmt"
	"os"
	"path/filepath"
	"regexp"
	"strings"
	"syscall"
	"time"
)

// Capture is a running tcpdump.
type Capture struct {
	File string // the pcap file; removed with the lab

	process *Process
}

// Capture records what passes a link of the machine ("any": all of them) and
// the filter, in tcpdump's words ("": everything). It returns when tcpdump
// listens, so what is sent afterwards is in the file.
func (m *Machine) Capture(ctx context.Context, link, filter string) (*Capture, error) {
	// AppArmor lets tcpdump write only to names that end in .pcap.
	file := filepath.Join(m.lab.Dir, fmt.Sprintf("%s-%d.pcap", m.Name, time.Now().UnixNano()))
	// Whole packets, written one by one, by root (the directory is root's),
	// with room for bursts: 64 MiB.
	args := []string{"-i", link, "-n", "-s", "0", "-U", "--immediate-mode", "-Z", "root", "-B", "65536", "-w", file}
	if filter != "" {
		args = append(args, filter)
	}
	p, err := m.start(m.Command(context.Background(), "tcpdump", args...), filepath.Base(file))
	if err != nil {
		return nil, err
	}
	err = Until(ctx, func(context.Context) error {
		if strings.Contains(p.Tail(), "listening on") {
			return nil
		}
		return fmt.Errorf("capture on %s: tcpdump does not listen: %s", m.Name, p.Tail())
	})
	if err != nil {
		return nil, errors.Join(err, p.Stop())
	}
	return &Capture{File: file, process: p}, nil
}

// progress is what tcpdump says when it is asked with SIGUSR1.
var progress = regexp.MustCompile(`(\d+) packets? captured, (\d+) packets? received by filter`)

// Stop ends the capture; the file is complete afterwards. It fails when the
// kernel dropped packets, as then the file proves nothing.
func (c *Capture) Stop() error {
	// On a busy machine tcpdump lags behind, and an interrupt would end it there.
	ctx, cancel := context.WithTimeout(context.Background(), 10*time.Second)
	defer cancel()
	err := Until(ctx, func(context.Context) error {
		c.process.Signal(syscall.SIGUSR1)
		said := progress.FindAllStringSubmatch(c.process.Tail(), -1)
		if len(said) == 0 || said[len(said)-1][1] != said[len(said)-1][2] {
			return fmt.Errorf("tcpdump lags behind: %s", c.process.Tail())
		}
		return nil
	})
	if err != nil {
		return errors.Join(fmt.Errorf("capture: %w", err), c.process.Stop())
	}
	if err := c.process.Interrupt(); err != nil {
		return fmt.Errorf("capture: %w: %s", err, c.process.Tail())
	}
	if tail := c.process.Tail(); !strings.Contains(tail, "\n0 packets dropped by kernel") {
		return fmt.Errorf("capture: %s", tail)
	}
	return nil
}

// Count returns how often the bytes occur in the stopped capture.
func (c *Capture) Count(marker []byte) (int, error) {
	b, err := os.ReadFile(c.File)
	if err != nil {
		return 0, fmt.Errorf("read the capture: %w", err)
	}
	return bytes.Count(b, marker), nil
}
