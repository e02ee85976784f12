package portmap

import (
	"bufio"
	"context"
	"fmt"
	"net/netip"
	"os"
	"time"
)

// insideEnv makes this test binary the machine behind the router: see inside.
const insideEnv = "PORTMAP_INSIDE"

// inside keeps a port mapped by a protocol until its standard input ends. It says
// on a line each what is offered, and at last how long it took to stop.
func inside(p Protocol) int {
	m := New(Options{Control: markForTest, Changed: func(a netip.AddrPort) { fmt.Println(a) }})
	m.keeper.order = []Protocol{p}
	m.SetTarget(testTarget)
	ctx, cancel := context.WithCancel(context.Background())
	done := make(chan struct{})
	go func() {
		defer close(done)
		m.Run(ctx)
	}()
	for in := bufio.NewScanner(os.Stdin); in.Scan(); {
		m.Kick()
	}
	at := time.Now()
	cancel()
	<-done
	fmt.Println(time.Since(at))
	return 0
}
