//go:build linux

package lab

import (
	"context"
	"errors"
	"fmt"
	"time"
)

// Until calls f every few milliseconds until it returns nil. When ctx ends
// first, it returns f's last error that says more than that.
func Until(ctx context.Context, f func(context.Context) error) error {
	const pause = 5 * time.Millisecond // long enough to leave the machine to those it waits for
	ticker := time.NewTicker(pause)
	defer ticker.Stop()
	var said error
	for {
		err := f(ctx)
		if err == nil {
			return nil
		}
		if ctx.Err() != nil && said != nil {
			err = said // an f that was cut short has nothing to say
		}
		said = err
		select {
		case <-ctx.Done():
			if cause := context.Cause(ctx); !errors.Is(err, cause) {
				return fmt.Errorf("%w (gave up: %w)", err, cause)
			}
			return err
		case <-ticker.C:
		}
	}
}
