package splice

import (
	"context"
	"errors"
	"fmt"
	"log/slog"
	"net"
	"time"
)

// acceptAgain is the pause when a connection could not be accepted, as where the
// system has no descriptors left: short, as somebody waits, and it takes no time to
// speak of.
const acceptAgain = 50 * time.Millisecond

// Accept hands each connection of ln to take until ctx ends, when it closes ln. It
// fails only when somebody else did that.
func Accept(ctx context.Context, ln net.Listener, log *slog.Logger, take func(net.Conn)) error {
	stop := context.AfterFunc(ctx, func() { ln.Close() })
	defer stop()
	waits := false
	for {
		c, err := ln.Accept()
		switch {
		case ctx.Err() != nil:
			if err == nil {
				c.Close()
			}
			return nil
		case err == nil:
			waits = false
			take(c)
			continue
		case errors.Is(err, net.ErrClosed):
			return fmt.Errorf("accept on %s: %w", ln.Addr(), err)
		case !waits:
			waits = true
			log.Warn("connections wait", "addr", ln.Addr(), "err", err)
		}
		select {
		case <-ctx.Done():
		case <-time.After(acceptAgain):
		}
	}
}
