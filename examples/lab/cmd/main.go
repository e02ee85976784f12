//go:build linux

package main

import (
	"context"
	"flag"
	"fmt"
	"os"
	"os/signal"
	"syscall"

	"overlayd/examples/lab"
)

const usage = `usage: lab [-overlayd BINARY] demo|up|clean

  demo   three machines in one, from the three commands to a page of the LAN
  up     the same machines, kept up for you to enter until Ctrl-C
  clean  remove what a killed lab left behind
`

func main() {
	// A user's PATH may lack the directories of ip, iptables and sshd.
	os.Setenv("PATH", os.Getenv("PATH")+":/usr/local/sbin:/usr/sbin:/sbin")
	ctx, stop := signal.NotifyContext(context.Background(), os.Interrupt, syscall.SIGTERM, syscall.SIGHUP)
	code := run(ctx, os.Args[1:])
	stop()
	os.Exit(code)
}

// run returns the exit code: 0 ok, 1 failure, 2 usage.
func run(ctx context.Context, args []string) int {
	flags := flag.NewFlagSet("lab", flag.ContinueOnError)
	flags.Usage = func() { fmt.Fprint(os.Stderr, usage) }
	binary := flags.String("overlayd", "bin/overlayd", "")
	if err := flags.Parse(args); err != nil || flags.NArg() != 1 {
		flags.Usage()
		return 2
	}
	var err error
	switch flags.Arg(0) {
	case "demo":
		err = demo(ctx, *binary)
	case "up":
		err = keep(ctx, *binary)
	case "clean":
		err = lab.RemoveLeftovers(ctx)
	default:
		flags.Usage()
		return 2
	}
	switch {
	case err != nil && ctx.Err() != nil:
		fmt.Fprintln(os.Stderr, "\nlab: interrupted; the machines are removed")
		return 1
	case err != nil:
		fmt.Fprintln(os.Stderr, "\nlab:", err)
		return 1
	}
	return 0
}
