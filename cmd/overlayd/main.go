package main

import (
	"context"
	"os"
	"os/signal"
)

func main() {
	p := newProgram()
	ctx, cancel := context.WithCancel(context.Background())
	signals := make(chan os.Signal, 2)
	signal.Notify(signals, stopSignals()...)
	go p.watchSignals(signals, cancel) // ends with the process
	os.Exit(p.main(ctx, os.Args[1:]))
}
