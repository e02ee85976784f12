//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"os"
	"os/exec"
	"path/filepath"
	"strconv"
	"strings"
	"syscall"
	"time"
)

const terminate = syscall.SIGTERM

// stopWithin is how long a process may take to end after SIGTERM. overlayd
// puts the machine back as it was meanwhile, which takes far less.
const stopWithin = 10 * time.Second

// Process is a program running in a machine, its output in a file.
type Process struct {
	Log string // the file with stdout and stderr

	cmd  *exec.Cmd
	done chan struct{} // closed by wait, after err is set
	err  error
}

// Start starts a program that the lab ends when it closes, if nobody does
// before. The log is named after the machine and the program.
func (m *Machine) Start(name string, args ...string) (*Process, error) {
	return m.start(m.Command(context.Background(), name, args...), filepath.Base(name))
}

func (m *Machine) start(cmd *exec.Cmd, name string) (*Process, error) {
	m.lab.mu.Lock()
	defer m.lab.mu.Unlock()
	if m.lab.closed {
		return nil, fmt.Errorf("start %s on %s: the lab is closed", name, m.Name)
	}
	// One file for all runs of a program: the story of a restart reads on.
	log, err := os.OpenFile(filepath.Join(m.lab.Dir, m.Name+"-"+name+".log"), os.O_CREATE|os.O_APPEND|os.O_WRONLY, 0o600)
	if err != nil {
		return nil, fmt.Errorf("start %s on %s: %w", name, m.Name, err)
	}
	defer log.Close() // the child has its own
	cmd.Stdout, cmd.Stderr = log, log
	if err := cmd.Start(); err != nil {
		return nil, fmt.Errorf("start %s on %s: %w", name, m.Name, err)
	}
	p := &Process{Log: log.Name(), cmd: cmd, done: make(chan struct{})}
	m.lab.processes = append(m.lab.processes, p)
	go p.wait() // Stop and Lab.Close wait for it
	return p, nil
}

func (p *Process) wait() {
	p.err = p.cmd.Wait()
	close(p.done)
}

// PID is the program's own: ip netns exec becomes the program.
func (p *Process) PID() int { return p.cmd.Process.Pid }

// Done is closed when the process has ended.
func (p *Process) Done() <-chan struct{} { return p.done }

// Err returns how the process ended, nil while it runs.
func (p *Process) Err() error {
	select {
	case <-p.done:
		return p.err
	default:
		return nil
	}
}

// Running reports whether the process has not ended.
func (p *Process) Running() bool {
	select {
	case <-p.done:
		return false
	default:
		return true
	}
}

// Signal sends a signal; a process that has ended does not mind.
func (p *Process) Signal(s syscall.Signal) {
	if p.Running() {
		_ = p.cmd.Process.Signal(s) // os.ErrProcessDone is all that can happen
	}
}

// Stop asks the process to end and waits for it; one that does not listen is
// killed, which is an error.
func (p *Process) Stop() error { return p.end(terminate) }

// Interrupt is Ctrl-C, and otherwise like Stop.
func (p *Process) Interrupt() error { return p.end(syscall.SIGINT) }

// Hangup is a terminal that was closed, and otherwise like Stop.
func (p *Process) Hangup() error { return p.end(syscall.SIGHUP) }

func (p *Process) end(s syscall.Signal) error {
	p.Signal(s)
	if err := p.Ended(); err != nil {
		return fmt.Errorf("after a signal (%v): %w", s, err)
	}
	return nil
}

// Ended waits until a process that somebody asked to end has done so; one that
// does not is killed, which is an error.
func (p *Process) Ended() error {
	select {
	case <-p.done:
		return p.err
	case <-time.After(stopWithin):
		p.Kill()
		return fmt.Errorf("%s did not end within %v", strings.Join(p.cmd.Args[3:], " "), stopWithin)
	}
}

// Kill is kill -9, and waits for the end.
func (p *Process) Kill() {
	p.Signal(syscall.SIGKILL)
	<-p.done
}

// Tail returns the end of the log, for a failure's message.
func (p *Process) Tail() string {
	b, err := os.ReadFile(p.Log)
	if err != nil {
		return err.Error()
	}
	const most = 4000 // bytes; some forty lines
	return string(b[max(0, len(b)-most):])
}

// Usage is what a process has used so far, from /proc.
type Usage struct {
	CPU  time.Duration // user and system, in ticks of 10 ms
	RSS  int64         // bytes resident now
	Peak int64         // bytes resident at most
}

// tick is the unit of /proc/PID/stat: USER_HZ is 100 on every Linux that Go
// runs on.
const tick = 10 * time.Millisecond

// Usage reads what the process has used.
func (p *Process) Usage() (Usage, error) {
	dir := filepath.Join("/proc", strconv.Itoa(p.PID()))
	stat, err := os.ReadFile(filepath.Join(dir, "stat"))
	if err != nil {
		return Usage{}, fmt.Errorf("read the usage of a process: %w", err)
	}
	status, err := os.ReadFile(filepath.Join(dir, "status"))
	if err != nil {
		return Usage{}, fmt.Errorf("read the usage of a process: %w", err)
	}
	return parseUsage(string(stat), string(status))
}

// parseUsage reads proc(5): stat's fields 14 and 15, status's VmRSS and VmHWM.
func parseUsage(stat, status string) (Usage, error) {
	// The second field is the program's name in parentheses, which may hold
	// spaces and parentheses itself.
	fields := strings.Fields(stat[strings.LastIndexByte(stat, ')')+1:])
	if len(fields) < 13 {
		return Usage{}, errors.New("read the usage of a process: stat is too short")
	}
	user, err1 := strconv.ParseInt(fields[11], 10, 64)
	system, err2 := strconv.ParseInt(fields[12], 10, 64)
	u := Usage{CPU: time.Duration(user+system) * tick}
	err3 := errors.New("read the usage of a process: status has no VmRSS")
	for line := range strings.Lines(status) {
		var kib int64
		if _, err := fmt.Sscanf(line, "VmRSS: %d kB", &kib); err == nil {
			u.RSS, err3 = kib<<10, nil
		}
		if _, err := fmt.Sscanf(line, "VmHWM: %d kB", &kib); err == nil {
			u.Peak = kib << 10
		}
	}
	return u, errors.Join(err1, err2, err3)
}
