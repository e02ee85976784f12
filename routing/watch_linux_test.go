package routing

import (
	"context"
	"testing"
	"time"

	"go.uber.org/goleak"

	"overlayd/internal/netnstest"
)

func TestWatch(t *testing.T) {
	for _, tt := range []struct{ name, act string }{
		{"link", "ip link set eth0 mtu 1300"},
		{"address", "ip addr add 10.9.9.9/24 dev eth0"},
		{"route", "ip route add 10.10.0.0/16 dev eth0"},
		{"rule", "ip rule add pref 77 lookup main"},
	} {
		t.Run(tt.name, func(t *testing.T) {
			netnstest.In(t, func(t *testing.T) {
				defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
				machine(t)
				ctx, cancel := context.WithTimeout(t.Context(), 10*time.Second)
				defer cancel()
				socket, err := subscribe(watched)
				if err != nil {
					t.Error(err)
					return
				}
				heard := 0
				done := make(chan error)
				go func() {
					done <- watch(ctx, socket, func() {
						heard++
						cancel()
					})
				}()
				netnstest.Run(t, tt.act)
				if err := <-done; err != nil || heard != 1 {
					t.Errorf("heard %d, %v", heard, err)
				}
			})
		})
	}
}

func TestWatchEnds(t *testing.T) {
	defer goleak.VerifyNone(t, goleak.IgnoreCurrent())
	ctx, cancel := context.WithCancel(t.Context())
	cancel()
	if err := Watch(ctx, func() {}); err != nil {
		t.Error(err)
	}
}
