package main

import (
	"context"
	"errors"
	"io"
	"net"
	"os"
	"strconv"
	"time"

	"github.com/spf13/cobra"

	"overlayd/overlay"
)

// stream is a connection that the daemon makes for a verb.
type stream interface {
	io.ReadWriteCloser
	CloseWrite() error
	SetReadDeadline(time.Time) error
	Fate(context.Context) (over bool, err error)
}

// lastAnswers is how long answers are waited for when the last datagram has
// been sent: a resolver's usual patience.
const lastAnswers = 5 * time.Second

// ncFlags are what one run of nc is told.
type ncFlags struct {
	udp  bool
	wait patience
}

// patience is a time span; a number alone is seconds, as nc takes it.
type patience struct{ span }

func (d *patience) Set(s string) error {
	if _, err := strconv.ParseUint(s, 10, 16); err == nil {
		s += "s"
	}
	return d.span.Set(s)
}

func (p *program) ncCommand() *cobra.Command {
	var f ncFlags
	cmd := &cobra.Command{
		Use:   "nc HOST PORT",
		Short: "connect standard input and output to a host",
		Long: `Connect to a machine of the network, or to a host behind a gateway: standard input
goes there, and what comes back goes to standard output. HOST is an address, the
name of a machine, or a name that the LAN knows. The system's DNS is not asked.

The end of standard input is told to the host, and the rest of its answer still
comes. Ends with 0 when both have ended, with 6 when the policy refuses it, and with
7 when the host cannot be reached or the connection is torn. With --udp each read is
a datagram.

As ssh's ProxyCommand: overlayd nc %h %p`,
		Example: `  overlayd nc 192.168.1.201 22
  printf 'GET / HTTP/1.0\r\n\r\n' | overlayd nc nas.lab 80
  ssh -o ProxyCommand='overlayd nc %h %p' ubuntu@192.168.1.201`,
		Args:              words(2, 2, "HOST and PORT"),
		ValidArgsFunction: p.completeFirst(p.peerNames),
		RunE: func(cmd *cobra.Command, args []string) error {
			return p.netcat(cmd.Context(), args[0], args[1], f)
		},
	}
	flags := cmd.Flags()
	flags.SortFlags = false
	flags.BoolVarP(&f.udp, "udp", "u", false, "send datagrams")
	flags.VarP(&f.wait, "wait", "w", "give up when there is no connection after so long, 3 being 3s; with --udp: end after so long without an answer")
	return cmd
}

// netcat connects standard input and output to a host until both have ended.
func (p *program) netcat(ctx context.Context, host, port string, f ncFlags) error {
	network := "tcp"
	if f.udp {
		network = "udp"
	}
	dialing, stop := ctx, context.CancelFunc(func() {})
	if f.wait.span > 0 {
		dialing, stop = context.WithTimeout(ctx, time.Duration(f.wait.span))
	}
	c, err := p.engine.connect(dialing, p.common.socket, network, net.JoinHostPort(host, port))
	stop()
	if err != nil {
		if errors.Is(err, context.DeadlineExceeded) && ctx.Err() == nil {
			return failure(overlay.ExitUnreachable, "try overlayd ping "+host, "no connection to %s within %s", net.JoinHostPort(host, port), time.Duration(f.wait.span))
		}
		return err
	}
	defer c.Close()
	defer context.AfterFunc(ctx, func() { c.Close() })()
	if f.udp {
		err = p.netcatUDP(c, f)
	} else {
		err = p.netcatTCP(ctx, c)
	}
	if ctx.Err() != nil { // as ssh ends the command that it has its connection from: nothing is wrong
		return quiet(overlay.ExitFailure)
	}
	return err
}

// netcatTCP carries both directions. When the host has ended and standard input
// has not, it is asked whether anybody is left to read that.
func (p *program) netcatTCP(ctx context.Context, c stream) error {
	sent := make(chan error, 1)
	go func() { // ends with standard input or, at the latest, with the process
		_, err := io.Copy(c, p.stdin)
		c.CloseWrite() // fails when the connection is over
		sent <- err
	}()
	if _, err := io.Copy(p.stdout, c); err != nil && !p.over(ctx, c) {
		return err
	}
	over, err := c.Fate(ctx)
	if over || p.interactive() {
		return err
	}
	<-sent
	_, err = c.Fate(ctx)
	return err
}

// over reports whether the daemon says that the connection is.
func (p *program) over(ctx context.Context, c stream) bool {
	over, _ := c.Fate(ctx)
	return over
}

// interactive reports whether a person types what is sent.
func (p *program) interactive() bool {
	f, ok := p.stdin.(*os.File)
	return ok && isTerminal(f)
}

// netcatUDP sends each read as a datagram and prints the answers, until none has
// come for the wait that was asked for, or for a while after the last was sent.
func (p *program) netcatUDP(c stream, f ncFlags) error {
	go func() { // as in netcatTCP
		io.Copy(c, p.stdin)
		if f.wait.span == 0 {
			c.SetReadDeadline(time.Now().Add(lastAnswers))
		}
	}()
	buf := make([]byte, 1<<16)
	for {
		if f.wait.span > 0 {
			c.SetReadDeadline(time.Now().Add(time.Duration(f.wait.span)))
		}
		n, err := c.Read(buf)
		if errors.Is(err, os.ErrDeadlineExceeded) {
			return nil
		}
		if err != nil {
			_, err = c.Fate(context.Background())
			return err
		}
		if _, err := p.stdout.Write(buf[:n]); err != nil {
			return err
		}
	}
}
